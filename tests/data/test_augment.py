"""Augmentation stage by stage against float64 NumPy on random pictures, the published recipe, and refused values.

Real radiographs: test_augment_real.py. Distributions of the draws: test_augment_draws.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_augmentation as reference
import pytest
from PIL import Image

from cxr_jax.config import ConfigError, call
from cxr_jax.data.augment import (
    BLUR_PROBS,
    CropRecipe,
    blur_matrix,
    jitter,
    multi_crop_recipes,
    random_crops,
    resized_crop,
    solarise,
)
from cxr_jax.data.geometry import denormalise

ALWAYS = CropRecipe(size=24, scale=(0.3, 1.0), jitter_prob=1.0, blur_prob=1.0, solarise_prob=1.0)


def picture(seed, side=24):
    return np.random.default_rng(seed).random((side, side))


@jax.jit
def crop_and_resize(image, box):
    return resized_crop(image, tuple(box), 24, jnp.array(False), "float32")


@pytest.mark.parametrize("box", [(3, 5, 40, 37), (0, 0, 64, 60), (10, 20, 9, 11), (63, 0, 1, 60)])
def test_crop_then_bicubic_resize_clipped(box):
    """On noise, where nearly every pixel overshoots."""
    image = np.random.default_rng(0).integers(0, 256, (64, 60)).astype(np.uint8)
    expected = reference.crop_and_resize(image / 255, box, 24)
    np.testing.assert_allclose(crop_and_resize(image, jnp.array(box)), expected, atol=1e-5)


def test_crop_resize_is_pillows_on_black_and_white_noise():
    """The hardest picture for it: every pixel overshoots. Pillow rounds after each pass, by half a level on average."""
    image = 255 * np.random.default_rng(1).integers(0, 2, (64, 60)).astype(np.uint8)
    for top, left, height, width in ((0, 0, 64, 60), (10, 30, 50, 25), (50, 50, 12, 10)):
        cut = Image.fromarray(image).crop((left, top, left + width, top + height))
        # Two calls: a single one may take the vertical pass first.
        across = cut.resize((24, height), Image.Resampling.BICUBIC)
        expected = np.asarray(across.resize((24, 24), Image.Resampling.BICUBIC), np.float64)
        error = np.abs(255 * np.asarray(crop_and_resize(image, jnp.array((top, left, height, width)))) - expected)
        assert error.mean() < 0.35 and error.max() < 2, f"mean {error.mean():.2f}, worst {error.max():.1f}"


def test_jitter_is_brightness_and_contrast_in_random_order_each_clipped():
    """Factors and order are drawn again from the key; both orders occur."""
    x = picture(3)
    apply = jax.jit(lambda key: jitter(key, jnp.asarray(x, jnp.float32), ALWAYS))
    orders = set()
    for seed in range(6):
        _, key_order, key_b, key_c = jax.random.split(jax.random.key(seed), 4)
        b, c = (float(jax.random.uniform(key, (), jnp.float32, 0.6, 1.4)) for key in (key_b, key_c))
        contrast_last = bool(jax.random.bernoulli(key_order))
        orders.add(contrast_last)
        if contrast_last:
            expected = reference.contrast(reference.brighten(x, b), c)
        else:
            expected = reference.brighten(reference.contrast(x, c), b)
        np.testing.assert_allclose(apply(jax.random.key(seed)), expected, atol=1e-5)
    assert orders == {True, False}


@pytest.mark.parametrize("side", [5, 16, 24])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_has_nine_taps_and_reflects(sigma, side):
    x = picture(4, side)
    matrix = np.asarray(blur_matrix(jnp.float32(sigma), side))
    np.testing.assert_allclose(matrix @ x @ matrix.T, reference.blur(x, sigma), atol=1e-5)


def test_solarise_inverts_from_128_up():
    levels = np.arange(256) / 255
    x = jnp.asarray(np.resize(levels, (16, 16)), jnp.float32)
    ours = 255 * np.asarray(solarise(jax.random.key(0), x, ALWAYS)).ravel()
    np.testing.assert_allclose(ours, np.where(np.arange(256) >= 128, 255 - np.arange(256), np.arange(256)), atol=1e-3)


PLAIN = (
    CropRecipe(size=16, scale=(0.3, 1.0), jitter_prob=0.0),
    CropRecipe(size=8, scale=(0.05, 0.3), jitter_prob=0.0),
)


@pytest.fixture(scope="module")
def crops():
    return jax.jit(lambda key, images, sizes: random_crops(key, images, sizes, PLAIN))


def test_crops_never_read_beyond_the_image(crops):
    """White canvas beyond a black image: a kernel that reads over the border would turn grey."""
    images = np.full((6, 32, 32), 255, np.uint8)
    images[:, :20, :25] = 0
    sizes = np.tile(np.array([[20, 25]], np.int32), (6, 1))
    for part in crops(jax.random.key(0), images, sizes):
        np.testing.assert_allclose(denormalise(part), 0, atol=1e-6)


PUBLISHED = {
    "global_size": 224,
    "local_size": 96,
    "num_local": 8,
    "global_scale": (0.32, 1.0),
    "local_scale": (0.05, 0.32),
    "blur_probs": "as_documented",
}


def test_multi_crop_recipes_are_the_published_ones():
    recipes = multi_crop_recipes(**PUBLISHED)
    assert [r.size for r in recipes] == [224] * 2 + [96] * 8
    assert [r.scale for r in recipes] == [(0.32, 1.0)] * 2 + [(0.05, 0.32)] * 8
    assert [r.blur_prob for r in recipes] == [1.0, 0.1] + [0.5] * 8
    assert [r.solarise_prob for r in recipes] == [0.0, 0.2] + [0.0] * 8
    assert {(r.flip_prob, r.jitter_prob, r.brightness, r.contrast, r.blur_sigma) for r in recipes} == {
        (0.5, 0.8, 0.4, 0.4, (0.1, 2.0))
    }
    assert {r.aspect for r in recipes} == {(3 / 4, 4 / 3)} and not any(r.extra for r in recipes)
    assert BLUR_PROBS["as_released"] == (0.0, 0.9, 0.5)


REFUSED = {  # changes to the published recipe: words of the message
    "scale falls": ({"local_scale": (0.5, 0.1)}, "crops.local_scale=(0.5, 0.1): expected two rising positive numbers"),
    "scale above 1": ({"global_scale": (0.5, 1.5)}, "crops.global_scale=(0.5, 1.5): expected two rising positive"),
    "scale of 0": ({"local_scale": (0.0, 0.3)}, "at most 1"),
    "aspect": ({"aspect": (-1.0, 1.0)}, "aspect=(-1.0, 1.0): expected two rising positive numbers"),
    "sigma": ({"blur_sigma": (0.0, 2.0)}, "blur_sigma=(0.0, 2.0): expected two rising positive numbers"),
    "sigma without end": ({"blur_sigma": (0.1, float("inf"))}, "blur_sigma"),
    "flip": ({"flip_prob": 1.5}, "flip_prob=1.5: must lie from 0 to 1"),
    "jitter": ({"jitter_prob": -0.1}, "jitter_prob=-0.1: must lie from 0 to 1"),
    "solarise": ({"solarise_prob": 2.0}, "solarise_prob=2.0: must lie from 0 to 1"),
    "not a number": ({"flip_prob": float("nan")}, "flip_prob=nan: must lie"),
    "brightness": ({"brightness": 1.5}, "brightness=1.5: must lie from 0 to 1"),
    "contrast": ({"contrast": -0.5}, "contrast=-0.5: must lie from 0 to 1"),
    "local larger": ({"local_size": 256}, "crops.local_size=256: must be at most crops.global_size=224"),
    "too small to blur": ({"local_size": 4}, "size=4: a crop must have at least 5 px for a blur of 9 taps"),
    "no size": ({"local_size": 0}, "size=0: a crop must have at least"),
    "blur": ({"blur_probs": "none"}, "as_documented, as_released"),
    "extra": (
        {"extra": {"gama": 0.1}},
        "extra.gama is no augmentation; legal are gamma, rotate_deg; did you mean extra.g",
    ),
    "extra far": ({"extra": {"cutout": 0.1}}, "extra.cutout is no augmentation; legal are gamma, rotate_deg"),
    "strength": ({"extra": {"rotate_deg": -5.0}}, "extra.rotate_deg=-5.0: a strength must be at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_no_crop_can_be_made_with_are_refused_in_one_line(case):
    """Through the door of a config, which makes them exit code 2."""
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        call(multi_crop_recipes, "crops", PUBLISHED | changes)
    message = str(caught.value)
    assert message.startswith("config.crops") and words in message and "\n" not in message


def test_a_crop_of_4_px_is_legal_without_blur():
    assert CropRecipe(size=4, scale=(0.5, 1.0)).size == 4
    assert CropRecipe(size=5, scale=(0.5, 1.0), blur_prob=0.5).size == 5
