"""Augmentations beyond the recipe: their formulas, their draws, and that without a strength nothing is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from cxr_jax.data import augment_extra
from cxr_jax.data.augment import CropRecipe, random_crop
from cxr_jax.data.augment_extra import EXTRA, apply_extra, gamma, rotate_deg
from cxr_jax.data.geometry import denormalise

PLAIN = CropRecipe(size=32, scale=(0.5, 1.0), jitter_prob=0.0)


def picture(seed, side=32):
    """Smooth noise in 0..1."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 255


def angle_of(key, strength):
    return float(jax.random.uniform(key, (), jnp.float32, -strength, strength))


def turned(x, degrees):
    """Bilinear, pixel by pixel in float64; whatever lies beyond the border is 0."""
    angle, centre = np.deg2rad(degrees), (len(x) - 1) / 2
    y, z = np.mgrid[0 : len(x), 0 : len(x)] - centre
    rows = np.cos(angle) * y - np.sin(angle) * z + centre
    columns = np.sin(angle) * y + np.cos(angle) * z + centre
    return scipy.ndimage.map_coordinates(x, [rows, columns], order=1, mode="grid-constant", cval=0.0)


def test_gamma_is_a_power_with_a_log_uniform_exponent():
    """The exponent is read from how a grey of 0.5 changes: log2 of it."""
    grey = jnp.full((2, 2), 0.5)
    out = jax.jit(jax.vmap(lambda key: gamma(key, grey, 0.5)[0, 0]))(jax.random.split(jax.random.key(0), 4000))
    exponents = -np.log2(np.asarray(out, np.float64))
    assert exponents.min() > 1 / 1.5 - 1e-4 and exponents.max() < 1.5 + 1e-4
    uniform = scipy.stats.uniform(-np.log(1.5), 2 * np.log(1.5))
    assert scipy.stats.kstest(np.log(exponents), uniform.cdf).pvalue > 1e-3
    key, x = jax.random.key(1), picture(1)
    exponent = -np.log2(float(gamma(key, grey, 0.5)[0, 0]))
    np.testing.assert_allclose(gamma(key, jnp.asarray(x, jnp.float32), 0.5), x**exponent, atol=1e-5)


def test_rotation_is_bilinear_about_the_centre_with_black_beyond(shared_data, capsys):
    """In 64-bit mode, which leaves the draws alone, to 1e-5; coordinates of 112 px in float32 are good for 3e-5."""
    file = next((shared_data / "cxr_small/images/shenzhen").glob("*.jpg"))
    worst = {}
    radiograph = np.asarray(Image.open(file).convert("L").resize((112, 112))) / 255
    for dtype, bound in (("float64", 1e-5), ("float32", 3e-5)):
        errors = []
        with jax.enable_x64(dtype == "float64"):
            for seed in range(6):
                key = jax.random.key(seed)
                ours = rotate_deg(key, jnp.asarray(radiograph, dtype), 10.0)
                assert ours.dtype == dtype
                errors.append(np.abs(np.asarray(ours) - turned(radiograph, angle_of(key, 10.0))).max())
        worst[dtype] = max(errors)
        assert worst[dtype] < bound
    with capsys.disabled():
        print(f"\nrotation of a radiograph, worst error of 0..1: {worst}", end=" ")


def test_rotation_angles_are_uniform_and_turn_both_ways():
    """A ramp turned about its centre: the angle is that of its gradient there."""
    ramp = jnp.asarray(np.tile(np.linspace(0.2, 0.8, 9), (9, 1)), jnp.float32)

    def gradient(key):
        out = rotate_deg(key, ramp, 15.0)
        return jnp.rad2deg(jnp.arctan2(out[5, 4] - out[3, 4], out[4, 5] - out[4, 3]))

    angles = np.asarray(jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), 4000)))
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-15, 30).cdf).pvalue > 1e-3


def program(recipe):
    image, size = jnp.zeros((40, 40), jnp.uint8), jnp.array([40, 40])
    return str(jax.make_jaxpr(lambda key: random_crop(key, image, size, recipe, "float32"))(jax.random.key(0)))


def test_without_a_strength_nothing_is_traced():
    off = dataclasses.replace(PLAIN, extra=dict.fromkeys(EXTRA, 0.0))
    assert program(off) == program(PLAIN)
    for name in EXTRA:
        assert program(dataclasses.replace(PLAIN, extra={name: 0.1})) != program(PLAIN)


def test_extras_come_after_the_resize_and_before_the_jitter():
    """A jittered crop with gamma is the jitter of the crop with gamma, which is not gamma of the jittered crop."""
    image = jnp.asarray(np.round(255 * picture(2, 40)).astype(np.uint8))
    size, key, extra = jnp.array([40, 40]), jax.random.key(5), {"gamma": 0.5, "rotate_deg": 5.0}
    jittered = dataclasses.replace(PLAIN, jitter_prob=1.0, contrast=0.0, extra=extra)
    both_crops = jax.jit(lambda key: [random_crop(key, image, size, recipe, "float32") for recipe in (PLAIN, jittered)])
    plain, both = (denormalise(crop) for crop in both_crops(key))
    key_jitter, key_extra = jax.random.split(key, 6)[np.array([2, 5])]
    brightness = jax.random.uniform(jax.random.split(key_jitter, 4)[2], (), jnp.float32, 0.6, 1.4)
    expected = jnp.clip(brightness * apply_extra(key_extra, plain, extra), 0, 1)
    np.testing.assert_allclose(both, expected, atol=1e-5)
    assert np.abs(apply_extra(key_extra, brightness * plain, extra) - expected).max() > 0.01


def test_a_new_one_at_the_end_of_the_table_leaves_the_draws_of_the_others_alone(monkeypatch):
    x, key, strengths = jnp.asarray(picture(3), jnp.float32), jax.random.key(0), {"gamma": 0.3, "rotate_deg": 5.0}
    before = apply_extra(key, x, strengths)
    inverted = {**EXTRA, "invert_prob": lambda key, x, strength: 1 - x}
    monkeypatch.setattr(augment_extra, "EXTRA", inverted)
    # A shorter dict in another order draws the same.
    after = apply_extra(key, x, {"invert_prob": 1.0, "rotate_deg": 5.0, "gamma": 0.3})
    np.testing.assert_array_equal(1 - before, after)


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_the_heart_stays_left_without_flips(flip_prob):
    """`flip_prob` is a plain key: with 0 no crop is a mirror image, with 1 every one is."""
    image = jnp.asarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (40, 1)))
    recipe = dataclasses.replace(PLAIN, flip_prob=flip_prob)
    crops = jax.jit(jax.vmap(lambda key: random_crop(key, image, jnp.array([40, 40]), recipe, "float32")))
    out = np.asarray(crops(jax.random.split(jax.random.key(0), 100)))
    assert ((out[:, 0, -1] > out[:, 0, 0]) == (flip_prob == 0)).all()
