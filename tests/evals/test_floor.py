"""The hand-made floor: its image arithmetic by hand, and a phantom task it must solve."""

import numpy as np
import pytest

from cxr_jax.evals.floor import floor_features, floor_scores, hog, shrink
from cxr_jax.evals.ranking import auroc


def test_shrink_averages_areas():
    image = np.arange(36.0).reshape(1, 6, 6)
    np.testing.assert_allclose(shrink(image, 3)[0], image[0].reshape(3, 2, 3, 2).mean(axis=(1, 3)))
    uneven = shrink(image, 4)  # each output pixel covers 1.5 input pixels a side
    np.testing.assert_allclose(uneven[0, 0, 0], (0 + 0.5 * 1 + 0.5 * 6 + 0.25 * 7) / 2.25)
    assert uneven.mean() == pytest.approx(image.mean())
    np.testing.assert_array_equal(shrink(image, 6), image)
    with pytest.raises(ValueError, match="images are 6 x 6, smaller than the 8 x 8"):
        shrink(image, 8)


@pytest.mark.parametrize(("axis", "bin_"), [(2, 0), (1, 4)], ids=["vertical_edges", "horizontal_edges"])
def test_hog_finds_the_orientation(axis, bin_):
    ramp = np.broadcast_to(np.arange(32.0)[:, None] if axis == 1 else np.arange(32.0), (1, 32, 32))
    found = hog(ramp, cell=8, orientations=9).reshape(3, 3, 4, 9)
    assert found.shape == (3, 3, 4, 9)
    assert (found.sum(axis=(0, 1, 2)).argmax() - bin_) % 9 in (0, 1)  # pi/2 lies between bins 4 and 5
    np.testing.assert_allclose(np.linalg.norm(found.reshape(9, 36), axis=1), 1.0, rtol=1e-6)


def test_hog_votes_are_shared_between_neighbouring_orientations():
    y, x = np.mgrid[:16, :16]
    angle = np.pi / 9 * 2.25
    votes = hog((x * np.cos(angle) + y * np.sin(angle))[None], cell=8, orientations=9, clip=10.0).reshape(4, 9)[0]
    assert votes[2] / votes[3] == pytest.approx(3.0, rel=1e-6)
    assert votes[[0, 1, 4, 5, 6, 7, 8]].max() == pytest.approx(0.0, abs=1e-6)


def test_features_ignore_brightness_and_contrast():
    images = np.random.default_rng(0).uniform(size=(3, 80, 96))
    for first, second in zip(floor_features(images), floor_features(images * 40 + 7), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def phantoms(rows, seed):
    """Noise, and for positives a faint disc."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=(rows, 1))
    y, x = np.mgrid[:72, :72]
    disc = ((y - 30) ** 2 + (x - 40) ** 2 < 100) * 30.0
    images = rng.normal(120, 25, size=(rows, 72, 72)) + disc * labels[:, :, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def test_floor_solves_an_easy_task_and_repeats_itself():
    (train, train_y), (val, val_y), (test, test_y) = phantoms(120, 0), phantoms(40, 1), phantoms(80, 2)
    scores, val_scores, probe = floor_scores(train, train_y, val, val_y, test, components=20)
    np.testing.assert_array_equal(val_scores, floor_scores(train, train_y, val, val_y, val, components=20)[0])
    assert auroc(scores[:, 0], test_y[:, 0]) > 0.9
    assert probe.fits[0].note is None
    again, *_ = floor_scores(train, train_y, val, val_y, test, components=20)
    np.testing.assert_array_equal(scores, again)


def test_components_are_capped_by_the_train_rows_and_unlearnable_classes_are_nan():
    (train, train_y), (val, val_y), (test, _) = phantoms(12, 0), phantoms(30, 1), phantoms(20, 2)
    columns = [np.concatenate([y, np.zeros_like(y)], axis=1) for y in (train_y, val_y)]
    scores, _, probe = floor_scores(train, columns[0], val, columns[1], test, components=200)
    assert np.isfinite(scores[:, 0]).all() and np.isnan(scores[:, 1]).all()
    assert "0 positives" in probe.fits[1].note
