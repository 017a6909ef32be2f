"""The evaluation geometry: what pad, crop and stretch keep, where they put it, and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.geometry import denormalise, fit_images, normalise

SIDE, HEIGHT, WIDTH = 16, 40, 24


def smooth(height, width):
    """A picture without sharp edges, so that 8-bit rounding is all that separates two resizers."""
    y, x = np.mgrid[0:height, 0:width]
    return (127 + 60 * np.sin(y / 9) + 50 * np.cos(x / 7)).astype(np.uint8)


@pytest.fixture(scope="module")
def canvas():
    canvas = np.zeros((1, 48, 48), np.uint8)
    canvas[0, :HEIGHT, :WIDTH] = smooth(HEIGHT, WIDTH)
    return jnp.asarray(canvas), jnp.array([[HEIGHT, WIDTH]], jnp.int32)


def pillow(x, height, width):
    return np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)) / 255


def fitted(canvas, fit):
    return np.asarray(fit_images(*canvas, SIDE, fit))[0]


def test_pad_keeps_everything_centred_on_black(canvas):
    out, width = fitted(canvas, "pad"), round(WIDTH * SIDE / HEIGHT)
    left = (SIDE - width) // 2
    expected = np.zeros((SIDE, SIDE))
    expected[:, left : left + width] = pillow(smooth(HEIGHT, WIDTH), SIDE, width)
    np.testing.assert_allclose(out, expected, atol=1.5 / 255)  # Pillow rounds to 8 bit after each axis
    assert not out[:, :left].any() and not out[:, left + width :].any()


def test_crop_keeps_the_central_square(canvas):
    top = (HEIGHT - WIDTH) // 2
    expected = pillow(smooth(HEIGHT, WIDTH)[top : top + WIDTH], SIDE, SIDE)
    np.testing.assert_allclose(fitted(canvas, "crop"), expected, atol=1.5 / 255)


def test_stretch_keeps_everything_and_fills_the_square(canvas):
    expected = pillow(smooth(HEIGHT, WIDTH), SIDE, SIDE)
    np.testing.assert_allclose(fitted(canvas, "stretch"), expected, atol=1.5 / 255)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_what_lies_beyond_the_image_is_never_read(canvas, fit):
    images, sizes = canvas
    noisy = np.array(images)
    noisy[0, HEIGHT:], noisy[0, :, WIDTH:] = 255, 255
    np.testing.assert_array_equal(fit_images(jnp.asarray(noisy), sizes, SIDE, fit)[0], fitted(canvas, fit))


def test_a_square_image_of_the_right_size_is_left_as_it_is():
    image = smooth(SIDE, SIDE)
    for fit in ("pad", "crop", "stretch"):
        out = fit_images(jnp.asarray(image[None]), jnp.full((1, 2), SIDE), SIDE, fit)
        np.testing.assert_allclose(out[0], image / 255, atol=1e-6)


def test_an_unknown_fit_is_refused_by_name(canvas):
    with pytest.raises(ValueError, match="pad, crop, stretch"):
        fit_images(*canvas, SIDE, "fill")


def test_normalisation_maps_black_and_white_to_minus_and_plus_two():
    x = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_array_equal(normalise(x), [-2, 0, 2])
    np.testing.assert_array_equal(denormalise(normalise(x)), x)
    assert jax.eval_shape(normalise, x).dtype == x.dtype
