"""Augmentation on real radiographs: stages against float64 NumPy, crops against Pillow, the whole chain against PIL.

Canvases are 512 px, crops 112 and 224 px, at the published scales; figures are printed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_augmentation as reference
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cxr_jax.data.augment import (
    CropRecipe,
    blur,
    jitter,
    multi_crop_recipes,
    random_box,
    random_crop,
    resized_crop,
    solarise,
)
from cxr_jax.data.geometry import denormalise

CANVAS, IMAGES = 512, 24
BICUBIC = Image.Resampling.BICUBIC
GLOBAL, LOCAL = (0.32, 1.0), (0.05, 0.32)
ALWAYS = CropRecipe(size=112, scale=GLOBAL, jitter_prob=1.0, blur_prob=1.0, solarise_prob=1.0)


def report(capsys, text):
    with capsys.disabled():
        print(f"\n{text}", end=" ")


@pytest.fixture(scope="module")
def radiographs(shared_data):
    """Every so many of the shared radiographs: 24 grey uint8 pictures of all three sources."""
    files = sorted((shared_data / "cxr_small/images").rglob("*.jpg"))
    assert len(files) > 1000
    return [np.asarray(Image.open(file).convert("L")) for file in files[:: len(files) // IMAGES][:IMAGES]]


@pytest.fixture(scope="module")
def canvases(radiographs):
    """`[24, 512, 512]` with the pictures at the top left, and their sizes."""
    images = np.zeros((len(radiographs), CANVAS, CANVAS), np.uint8)
    for canvas, picture in zip(images, radiographs, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    return images, np.array([picture.shape for picture in radiographs], np.int32)


def boxes(radiographs, scale, per_image, seed=0):
    """(number of the image, box) by torchvision's algorithm."""
    rng = np.random.default_rng(seed)
    return [
        (number, reference.random_resized_crop(rng, picture.shape, scale, (3 / 4, 4 / 3))[:4])
        for number, picture in enumerate(radiographs)
        for _ in range(per_image)
    ]


def pillow_crop(picture, box):
    top, left, height, width = box
    return Image.fromarray(picture).crop((left, top, left + width, top + height))


def make_cropper(side):
    return jax.jit(lambda image, box: resized_crop(image, tuple(box), side, jnp.array(False), "float32"))


@pytest.fixture(scope="module")
def crop_112():
    return make_cropper(112)


def test_crops_are_the_formula(radiographs, canvases, crop_112, capsys):
    worst = 0.0
    for scale in (GLOBAL, LOCAL):
        for number, box in boxes(radiographs, scale, 1):
            expected = reference.crop_and_resize(radiographs[number] / 255, box, 112)
            worst = max(worst, np.abs(crop_112(canvases[0][number], jnp.array(box)) - expected).max())
    report(capsys, f"crop and resize: worst error {worst:.1e} of 0..1")
    assert worst < 1e-5


@pytest.mark.parametrize("side", [112, 224])
@pytest.mark.parametrize("scale", [GLOBAL, LOCAL])
def test_crops_are_pillows(radiographs, canvases, side, scale, capsys):
    """Pillow rounds to 8 bits after each pass: 0.35 grey levels on average, 2 at the worst pixel.

    Pillow's one call (`plain`) may take the vertical pass first if the result is lower and wider than the crop (newer
    versions do, to save time); two calls with one pass each are horizontal first in all versions.
    """
    crop, errors = make_cropper(side), {"plain": [], "passes": []}
    for number, box in boxes(radiographs, scale, 3, seed=1):
        cut = pillow_crop(radiographs[number], box)
        ours = 255 * np.asarray(crop(canvases[0][number], jnp.array(box)), np.float64)
        for name, horizontal in (("plain", cut), ("passes", cut.resize((side, cut.height), BICUBIC))):
            errors[name].append(np.abs(ours - np.asarray(horizontal.resize((side, side), BICUBIC))))
    for name, found in errors.items():
        means, worst = [error.mean() for error in found], max(error.max() for error in found)
        text = f"{len(found)} crops {scale} to {side} px against Pillow ({name}), grey levels"
        report(capsys, f"{text}: mean {np.mean(means):.3f}, worst crop {max(means):.3f}, worst pixel {worst:.2f}")
        assert max(means) < 0.35 and (worst < 2 or name == "plain")


@pytest.fixture(scope="module")
def crops(radiographs):
    """A global crop of every picture, 112 px in 0..1, float64."""
    return [reference.crop_and_resize(radiographs[n] / 255, box, 112) for n, box in boxes(radiographs, GLOBAL, 1, 2)]


def draws_of_jitter(key, recipe):
    """Whether it is applied, whether contrast comes last, and both factors."""
    key_apply, key_order, key_b, key_c = jax.random.split(key, 4)
    factors = (
        float(jax.random.uniform(k, (), jnp.float32, 1 - s, 1 + s))
        for k, s in ((key_b, recipe.brightness), (key_c, recipe.contrast))
    )
    applied = bool(jax.random.bernoulli(key_apply, recipe.jitter_prob))
    return applied, bool(jax.random.bernoulli(key_order)), *factors


def draws_of_blur(key, recipe):
    key_apply, key_sigma = jax.random.split(key)
    sigma = float(jax.random.uniform(key_sigma, (), jnp.float32, *recipe.blur_sigma))
    return bool(jax.random.bernoulli(key_apply, recipe.blur_prob)), sigma


def jitter_by(brighten, contrast, x, contrast_last, b, c):
    return contrast(brighten(x, b), c) if contrast_last else brighten(contrast(x, c), b)


def test_stages_are_their_formulas(crops, capsys):
    """On the same crop and draws; both orders of the jitter occur, and clipping does."""
    stages = {"jitter": jitter, "blur": blur, "solarise": solarise}
    stages = {name: jax.jit(lambda key, x, stage=stage: stage(key, x, ALWAYS)) for name, stage in stages.items()}
    worst, orders, clipped = dict.fromkeys(stages, 0.0), set(), False
    for seed, crop in enumerate(crops):
        key, x = jax.random.key(seed), crop.astype(np.float32)
        _, contrast_last, b, c = draws_of_jitter(key, ALWAYS)
        orders.add(contrast_last)
        clipped |= bool((b * crop > 1).any())
        expected = {
            "jitter": jitter_by(reference.brighten, reference.contrast, x.astype(np.float64), contrast_last, b, c),
            "blur": reference.blur(crop, draws_of_blur(key, ALWAYS)[1]),
            "solarise": reference.solarise(x.astype(np.float64)),
        }
        for name, stage in stages.items():
            worst[name] = max(worst[name], np.abs(stage(key, x) - expected[name]).max())
    report(capsys, f"stages on {len(crops)} crops, worst errors of 0..1: {worst}")
    assert orders == {True, False} and clipped
    assert max(worst.values()) < 1e-5


def test_the_numpy_formulas_are_what_pil_does(radiographs):
    for seed, picture in enumerate(radiographs[:6]):
        rng, image = np.random.default_rng(seed), Image.fromarray(picture)
        for enhance, formula in (
            (ImageEnhance.Brightness, reference.pil_brighten),
            (ImageEnhance.Contrast, reference.pil_contrast),
        ):
            factor = rng.uniform(0.6, 1.4)
            np.testing.assert_array_equal(formula(picture, factor), np.asarray(enhance(image).enhance(factor)))
        np.testing.assert_array_equal(reference.pil_solarise(picture), np.asarray(ImageOps.solarize(image, 128)))


def pil_chain(picture, key, recipe):
    """The crop in grey levels that torchvision on PIL makes of the same draws, uint8 after every stage."""
    key_box, key_flip, key_jitter, key_blur, key_solarise, _ = jax.random.split(key, 6)
    box = random_box(key_box, jnp.array(picture.shape), recipe.scale, recipe.aspect)
    cut = pillow_crop(picture, [int(number) for number in box])
    x = np.asarray(cut.resize((recipe.size, recipe.size), BICUBIC))
    if jax.random.bernoulli(key_flip, recipe.flip_prob):
        x = x[:, ::-1]
    applied, *draws = draws_of_jitter(key_jitter, recipe)
    if applied:
        x = jitter_by(reference.pil_brighten, reference.pil_contrast, x, *draws)
    applied, sigma = draws_of_blur(key_blur, recipe)
    if applied:
        x = reference.pil_blur(x, sigma)
    if jax.random.bernoulli(key_solarise, recipe.solarise_prob):
        x = reference.pil_solarise(x)
    return x.astype(np.float64)


@pytest.mark.parametrize("side", [112, 224])
def test_the_whole_chain_is_pils(radiographs, canvases, side, capsys):
    """PIL drops the fraction twice in the jitter, half a level each, and rounds elsewhere: 1.3 levels on average."""
    recipes = multi_crop_recipes(
        global_size=side,
        local_size=48 * side // 112,
        num_local=1,
        global_scale=GLOBAL,
        local_scale=LOCAL,
        blur_probs="as_released",
    )
    named = dict(zip(("first global", "second global", "local"), recipes, strict=True))
    # The second global crop has every stage.
    for name, recipe in named.items() if side == 112 else [("second global", named["second global"])]:
        crop = jax.jit(lambda key, image, size, recipe=recipe: random_crop(key, image, size, recipe, "float32"))
        means, worst = [], 0.0
        for number, (image, size) in enumerate(zip(*canvases, strict=True)):
            key = jax.random.fold_in(jax.random.key(7), number)
            ours = 255 * np.asarray(denormalise(crop(key, image, size)), np.float64)
            error = np.abs(ours - pil_chain(radiographs[number], key, recipe))
            means.append(error.mean())
            worst = max(worst, error.max())
        text = f"chain of the {name} crop, {recipe.size} px, {len(means)} images, grey levels"
        report(capsys, f"{text}: mean {np.mean(means):.2f}, worst crop {max(means):.2f}, worst pixel {worst:.1f}")
        assert np.mean(means) < 1.3 and max(means) < 2


def test_pneumoniamnist_at_28_px(shared_data, capsys):
    """Crops of 28 and 16 px from pictures of 28 px, some of a few pixels: the formula, Pillow, and finite crops."""
    with np.load(shared_data / "pneumoniamnist/pneumoniamnist_28.npz", allow_pickle=False) as arrays:
        pictures = arrays["train_images"][::200]
    size = jnp.array([28, 28])
    for side, scale in ((28, GLOBAL), (16, LOCAL)):
        recipe = CropRecipe(size=side, scale=scale, blur_prob=0.5)
        whole = jax.jit(lambda key, image, recipe=recipe: random_crop(key, image, size, recipe, "float32"))
        resize = make_cropper(side)
        means, exact, worst = [], 0.0, 0.0
        for (number, box), picture in zip(boxes(pictures, scale, 1), pictures, strict=True):
            ours = np.asarray(resize(picture, jnp.array(box)), np.float64)
            exact = max(exact, np.abs(ours - reference.crop_and_resize(picture / 255, box, side)).max())
            error = np.abs(255 * ours - np.asarray(pillow_crop(picture, box).resize((side, side), BICUBIC)))
            means.append(error.mean())
            worst = max(worst, error.max())
            crop = np.asarray(denormalise(whole(jax.random.key(number), picture)))
            assert crop.shape == (side, side) and crop.min() >= -1e-6 and crop.max() <= 1 + 1e-6
            assert crop.std() > 0.005
        text = f"{len(means)} pictures of 28 px to {side} px"
        report(capsys, f"{text}: formula {exact:.1e}, Pillow mean {np.mean(means):.3f}, worst pixel {worst:.2f}")
        assert exact < 1e-5 and max(means) < 0.4 and worst < 2
