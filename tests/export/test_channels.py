"""One grey channel to three and back: the same features, and no bit lost with an unchanged normalisation."""

import numpy as np
import pytest

from cxr_jax.export.channels import fold_channels, split_channels

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OURS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.fixture
def patch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32)


def _ours(kernel, bias, x):
    return (x - 0.5) / 0.25 @ kernel.astype(np.float64) + bias


def _theirs(kernel, bias, x, mean, std):
    return sum((x - m) / s @ w.astype(np.float64) for w, m, s in zip(kernel, mean, std, strict=True)) + bias


@pytest.mark.parametrize("normalisation", [OURS, IMAGENET])
def test_split_gives_the_same_embedding(patch, normalisation):
    x = np.random.default_rng(1).uniform(size=(100, 64))
    kernel, bias = split_channels(*patch, **normalisation)
    assert kernel.shape == (3, 64, 24)
    np.testing.assert_allclose(_theirs(kernel, bias, x, **normalisation), _ours(*patch, x), atol=1e-5)


def test_fold_gives_the_same_embedding():
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(3, 64, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    x = rng.uniform(size=(100, 64))
    folded = fold_channels(kernel, bias, **IMAGENET)
    np.testing.assert_allclose(_ours(*folded, x), _theirs(kernel, bias, x, **IMAGENET), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_with_our_normalisation_loses_no_bit(patch, channels):
    options = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    back = fold_channels(*split_channels(*patch, **options), **options)
    np.testing.assert_array_equal(back[0], patch[0])
    np.testing.assert_array_equal(back[1], patch[1])


def test_round_trip_with_imagenet_normalisation_keeps_weights_within_two_ulp(patch):
    kernel, bias = fold_channels(*split_channels(*patch, **IMAGENET), **IMAGENET)
    assert np.max(np.abs(kernel - patch[0]) / np.spacing(np.abs(patch[0]))) <= 2
    # The bias passes through a sum over the patch's weights, whose rounding is that sum's, not the bias's own.
    np.testing.assert_allclose(bias, patch[1], atol=1e-6)


def test_one_channel_changes_nothing(patch):
    kernel, bias = split_channels(*patch, mean=(0.5,), std=(0.25,))
    np.testing.assert_array_equal(kernel[0], patch[0])
    np.testing.assert_array_equal(bias, patch[1])


def test_illegal_channels_are_refused(patch):
    with pytest.raises(ValueError, match="num_channels=2: legal are 1, 3"):
        split_channels(*patch, mean=(0.5, 0.5), std=(0.25, 0.25))
    with pytest.raises(ValueError, match="image_mean has 1 and image_std 1 numbers for 3 channels"):
        fold_channels(np.stack([patch[0]] * 3), patch[1], mean=(0.5,), std=(0.25,))
