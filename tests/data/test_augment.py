"""Augmentation stage by stage against float64 NumPy, and resizing against Pillow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.augment import (
    BLUR_PROBS,
    CropRecipe,
    blur,
    blur_matrix,
    jitter,
    multi_crop_recipes,
    random_box,
    random_crops,
    solarise,
)
from cxr_jax.data.geometry import apply_resize, denormalise, resize_matrix

ALWAYS = CropRecipe(size=24, scale=(0.3, 1.0), jitter_prob=1.0, blur_prob=1.0, solarise_prob=1.0)


def picture(seed, side=24):
    return np.random.default_rng(seed).random((side, side))


def cubic(x):
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resize_numpy(x, out):
    """Antialiased bicubic (a = -0.5) of the first axis, output pixel by output pixel."""
    n = len(x)
    scale = n / out
    widen = max(scale, 1.0)
    rows = []
    for i in range(out):
        weights = cubic((np.arange(n) + 0.5 - (i + 0.5) * scale) / widen)
        rows.append((weights[:, None] * x).sum(0) / weights.sum())
    return np.array(rows)


@jax.jit
def crop_and_resize(image, box):
    rows = resize_matrix(box[0], box[2], image.shape[0], 24)
    columns = resize_matrix(box[1], box[3], image.shape[1], 24)
    return apply_resize(rows, image, columns)


@pytest.mark.parametrize("box", [(3, 5, 40, 37), (0, 0, 64, 60), (10, 20, 9, 11), (63, 0, 1, 60)])
def test_crop_then_bicubic_resize_clipped(box):
    image = np.random.default_rng(0).integers(0, 256, (64, 60)).astype(np.uint8)
    top, left, height, width = box
    crop = image[top : top + height, left : left + width] / 255
    expected = np.clip(resize_numpy(resize_numpy(crop, 24).T, 24).T, 0, 1)
    np.testing.assert_allclose(crop_and_resize(image, jnp.array(box)), expected, atol=1e-5)


def assert_near_pillow(image, box, side):
    """DESIGN's bound: Pillow rounds to 8 bit after each axis, so a few grey levels apart, 0.35 on average."""
    top, left, height, width = box
    cropped = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    ours = 255 * np.asarray(crop_and_resize(image, jnp.array(box)))
    error = np.abs(ours - expected)
    assert error.mean() < 0.35 and error.max() < 8, f"mean {error.mean():.2f}, worst {error.max():.1f}"


def test_crop_resize_is_pillows_on_synthetic_images():
    rng = np.random.default_rng(1)
    ramp = np.add.outer(np.arange(120.0), np.arange(120.0)) + 20 * rng.standard_normal((120, 120))
    image = np.clip(ramp, 0, 255).astype(np.uint8)
    for box in ((0, 0, 120, 120), (10, 30, 70, 55), (50, 50, 15, 12)):
        assert_near_pillow(image, box, 24)


def test_crop_resize_is_pillows_on_radiographs(shared_data):
    files = sorted(path for path in (shared_data / "cxr_small").rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    if not files:
        pytest.skip(f"no images under {shared_data / 'cxr_small'}")
    rng = np.random.default_rng(2)
    for path in files[:: max(1, len(files) // 8)][:8]:
        # One canvas shape for all of them: one compilation.
        image = np.asarray(Image.open(path).convert("L").resize((200, 220)))
        height, width = rng.integers(60, 200, 2)
        assert_near_pillow(image, (int(rng.integers(0, 220 - height)), 3, int(height), min(int(width), 190)), 24)


def jitter_numpy(x, b, c, contrast_last):
    def brighten(y):
        return np.clip(b * y, 0, 1)

    def contrast(y):
        return np.clip(c * y + (1 - c) * y.mean(), 0, 1)

    return contrast(brighten(x)) if contrast_last else brighten(contrast(x))


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
        np.testing.assert_allclose(apply(jax.random.key(seed)), jitter_numpy(x, b, c, contrast_last), atol=1e-5)
    assert orders == {True, False}


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_has_nine_taps_and_reflects(sigma):
    x = picture(4)
    taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    taps /= taps.sum()
    padded = np.pad(x, 4, mode="reflect")
    rows = sum(tap * padded[i : i + 24] for i, tap in enumerate(taps))
    expected = sum(tap * rows[:, i : i + 24] for i, tap in enumerate(taps))
    matrix = np.asarray(blur_matrix(jnp.float32(sigma), 24))
    np.testing.assert_allclose(matrix @ x @ matrix.T, expected, atol=1e-5)


def test_solarise_inverts_from_128_up():
    levels = np.arange(256) / 255
    x = jnp.asarray(np.resize(levels, (16, 16)), jnp.float32)
    ours = 255 * np.asarray(solarise(jax.random.key(0), x, ALWAYS)).ravel()
    np.testing.assert_allclose(ours, np.where(np.arange(256) >= 128, 255 - np.arange(256), np.arange(256)), atol=1e-3)


def test_stages_are_applied_with_their_probabilities():
    """Within four standard deviations of 400 draws."""
    x = jnp.asarray(picture(5), jnp.float32)
    recipe = dataclasses.replace(ALWAYS, jitter_prob=0.8, blur_prob=0.5, solarise_prob=0.2)
    keys = jax.random.split(jax.random.key(0), 400)
    for stage, probability in ((jitter, 0.8), (blur, 0.5), (solarise, 0.2)):
        changed = jax.jit(jax.vmap(lambda key, stage=stage: (stage(key, x, recipe) != x).any()))(keys)
        assert abs(float(changed.mean()) - probability) < 4 * np.sqrt(probability * (1 - probability) / 400)


@pytest.mark.parametrize("size", [(80, 64), (40, 120)])
@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_random_boxes_are_whole_pixels_inside_the_image_of_legal_area_and_aspect(size, scale):
    keys = jax.random.split(jax.random.key(1), 2000)
    boxes = jax.jit(jax.vmap(lambda key: jnp.stack(random_box(key, jnp.array(size), scale, (3 / 4, 4 / 3)))))(keys)
    assert jnp.issubdtype(boxes.dtype, jnp.integer)
    top, left, height, width = np.asarray(boxes).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    # A drawn area and aspect are kept up to the rounding of both sides by half a pixel.
    slack = 0.5 * (1 / height + 1 / width) + 0.01
    central = (height == min(size)) & (width == 53) | (width == min(size)) & (height == 53)
    share, aspect = height * width / (size[0] * size[1]), width / height
    drawn = ~central
    assert (share[drawn] >= scale[0] * (1 - slack[drawn])).all() and (share <= scale[1] * (1 + slack)).all()
    assert (aspect >= 3 / 4 * (1 - slack)).all() and (aspect <= 4 / 3 * (1 + slack)).all()
    if size == (80, 64) and scale[1] < 1:
        # Small boxes always fit at the first try: area is uniform, aspect log-uniform, both centred.
        assert abs(share.mean() - sum(scale) / 2) < 0.01
        assert abs(np.log(aspect).mean()) < 0.02
        # Positions are uniform over what is free.
        free = (size[0] - height) > 0
        assert abs((top / np.maximum(size[0] - height, 1))[free].mean() - 0.5) < 0.03


def test_a_box_that_never_fits_is_the_largest_central_one_of_a_legal_aspect():
    box = random_box(jax.random.key(0), jnp.array([20, 400]), (0.9, 1.0), (3 / 4, 4 / 3))
    assert [int(x) for x in box] == [0, (400 - 27) // 2, 20, 27]


PLAIN = (
    CropRecipe(size=16, scale=(0.3, 1.0), jitter_prob=0.0),
    CropRecipe(size=8, scale=(0.05, 0.3), jitter_prob=0.0),
)


@pytest.fixture(scope="module")
def crops():
    return jax.jit(lambda key, images, sizes: random_crops(key, images, sizes, PLAIN))


def canvases(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 32, 32)).astype(np.uint8), np.full((rows, 2), 32, np.int32)


def test_crops_of_a_row_depend_on_the_key_and_its_number_alone(crops):
    """Other neighbours, and another number of rows, change nothing; another row number or key does."""
    images, sizes = canvases(6)
    key = jax.random.key(3)
    whole, other = crops(key, images, sizes), canvases(6, seed=9)[0]
    other[2] = images[2]
    for a, b in zip(whole, crops(key, other, sizes), strict=True):
        np.testing.assert_allclose(a[2], b[2], atol=1e-5)
    for a, b in zip(whole, crops(key, images[:3], sizes[:3]), strict=True):
        np.testing.assert_allclose(a[:3], b, atol=1e-5)
    same = np.repeat(images[:1], 6, axis=0)
    rows = np.asarray(crops(key, same, sizes)[0])
    assert all(np.abs(rows[0] - row).max() > 0.01 for row in rows[1:])
    assert np.abs(np.asarray(crops(jax.random.key(4), same, sizes)[0]) - rows).max() > 0.01


def test_crops_never_read_beyond_the_image(crops):
    """White canvas beyond a black image: a kernel that reads over the border would turn grey."""
    images = np.full((6, 32, 32), 255, np.uint8)
    images[:, :20, :25] = 0
    sizes = np.tile(np.array([[20, 25]], np.int32), (6, 1))
    for part in crops(jax.random.key(0), images, sizes):
        np.testing.assert_allclose(denormalise(part), 0, atol=1e-6)


def test_flips_are_mirror_images_half_of_the_time():
    """A ramp from left to right keeps or loses its direction."""
    images = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (200, 32, 1))
    sizes = np.full((200, 2), 32, np.int32)
    out = jax.jit(lambda *args: random_crops(*args, PLAIN[:1])[0])(jax.random.key(0), images, sizes)
    rising = np.asarray(out)[:, 0, -1] > np.asarray(out)[:, 0, 0]
    assert abs(rising.mean() - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_multi_crop_recipes_are_the_published_ones():
    recipes = multi_crop_recipes(
        global_size=224,
        local_size=96,
        num_local=8,
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
        blur_probs="as_documented",
    )
    assert [r.size for r in recipes] == [224] * 2 + [96] * 8
    assert [r.scale for r in recipes] == [(0.32, 1.0)] * 2 + [(0.05, 0.32)] * 8
    assert [r.blur_prob for r in recipes] == [1.0, 0.1] + [0.5] * 8
    assert [r.solarise_prob for r in recipes] == [0.0, 0.2] + [0.0] * 8
    assert {(r.flip_prob, r.jitter_prob, r.brightness, r.contrast, r.blur_sigma) for r in recipes} == {
        (0.5, 0.8, 0.4, 0.4, (0.1, 2.0))
    }
    assert BLUR_PROBS["as_released"] == (0.0, 0.9, 0.5)
