"""Augmentation on the device, as matrix products, in the reference's order.

In: grey canvases `[b, H, W]` uint8 with the true `size [b, 2]` of the image at the top left, and a key.
Out: normalised crops `[b, crops, S, S]`; every draw for row r depends on the key and r alone.

    y = clip(M_h clip(x M_w^T))   random resized crop with flip, bicubic a = -0.5, antialiased, cut at the crop
    gamma, rotation               only if a config asks for them, see `augment_extra`
    brightness, contrast          in random order, each clipped, contrast about the crop's mean
    z = B y B^T                   Gaussian blur, 9 taps, reflecting border
    solarise, then (z - 0.5) / 0.25

Grey images have no hue or saturation, so those two of DINOv2's colour jitter do not exist here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cxr_jax.data.augment_extra import GEOMETRIC, apply_extra, check_extra
from cxr_jax.data.geometry import apply_resize, area_matrix, halved, normalise, resize_matrix, shrink_mask

TRIES = 10  # torchvision's RandomResizedCrop gives up after ten draws and takes the centre.
BLUR_TAPS = 9
MIN_BLUR_PX = BLUR_TAPS // 2 + 1  # a reflected border must be shorter than the crop
# Probability of blurring (first global, second global, local crops): the released code inverts its own numbers.
BLUR_PROBS = {"as_documented": (1.0, 0.1, 0.5), "as_released": (0.0, 0.9, 0.5)}


@dataclass(frozen=True)
class CropRecipe:
    """How one kind of crop is made. Raises ValueError for values that no crop can be made with.

    `size` and `blur_sigma` are px of the crop, `scale` is the range of its area as a share of the image, `aspect` of
    width / height, probabilities are per crop. `brightness` and `contrast` are drawn from 1 +- their value. `extra`
    gives strengths to augmentations of `augment_extra`.
    """

    size: int
    scale: tuple[float, float]
    flip_prob: float = 0.5
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_prob: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        check_range("scale", self.scale, most=1.0)
        check_range("aspect", self.aspect)
        check_range("blur_sigma", self.blur_sigma)
        for name in ("flip_prob", "jitter_prob", "blur_prob", "solarise_prob", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie from 0 to 1")
        least = MIN_BLUR_PX if self.blur_prob else 1
        if self.size < least:
            why = f" for a blur of {BLUR_TAPS} taps, whose border is reflected" if self.blur_prob else ""
            raise ValueError(f"size={self.size}: a crop must have at least {least} px{why}")
        check_extra(self.extra)


def check_range(name: str, value: Sequence[Any], most: float = math.inf) -> None:
    """Raises ValueError unless `value` is two rising positive numbers, none above `most`."""
    numbers = [number for number in value if isinstance(number, (int, float))]
    if len(value) != 2 or len(numbers) != 2 or not 0 < value[0] <= value[1] <= most or math.isinf(value[1]):
        legal = "two rising positive numbers" + (f", at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{name}={tuple(value)}: expected {legal}")


def random_box(key: Array, size: Int[Array, "2"], scale, aspect) -> tuple[Array, Array, Array, Array]:
    """Top, left, height, width in whole pixels of torchvision's RandomResizedCrop on an image of `size`.

    Ten draws of area and log-uniform aspect, the first that fits; else the largest central box of a legal aspect.
    """
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    key_area, key_aspect, key_top, key_left = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(key_area, (TRIES,), jnp.float32, *scale)
    log_aspect = jax.random.uniform(key_aspect, (TRIES,), jnp.float32, np.log(aspect[0]), np.log(aspect[1]))
    widths = jnp.round(jnp.sqrt(area * jnp.exp(log_aspect)))
    heights = jnp.round(jnp.sqrt(area / jnp.exp(log_aspect)))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = jnp.argmax(fits)

    ratio = width / height
    central_w = jnp.where(ratio > aspect[1], jnp.round(height * aspect[1]), width)
    central_h = jnp.where(ratio < aspect[0], jnp.round(width / aspect[0]), height)
    found = fits.any()
    w = jnp.where(found, widths[first], central_w).astype(jnp.int32)
    h = jnp.where(found, heights[first], central_h).astype(jnp.int32)
    free_h, free_w = size[0] - h, size[1] - w
    top = jnp.where(found, jax.random.randint(key_top, (), 0, free_h + 1), free_h // 2)
    left = jnp.where(found, jax.random.randint(key_left, (), 0, free_w + 1), free_w // 2)
    return top, left, h, w


def resized_crop(
    image: UInt8[Array, "H W"], box: tuple[Array, Array, Array, Array], side: int, flip: Bool[Array, ""], dtype
) -> Float[Array, "S S"]:
    """The box (top, left, height, width) of a canvas at `side` px in 0..1, mirrored if `flip`.

    Overshoots are cut after each pass. Cut once at the end, single pixels at burnt-in letters and wires are up to 14
    grey levels from Pillow's; cut twice, about 1 from its passes in this order.
    """
    top, left, height, width = box
    rows = resize_matrix(top, height, image.shape[0], side, dtype)
    columns = resize_matrix(left, width, image.shape[1], side, dtype)
    return apply_resize(rows, image, jnp.where(flip, columns[::-1], columns), cut_between=True)


def jitter(key: Array, x: Float[Array, "S S"], recipe: CropRecipe) -> Float[Array, "S S"]:
    """Brightness and contrast by factors in 1 +- strength, in random order, each clipped to 0..1, applied with p."""
    key_apply, key_order, key_b, key_c = jax.random.split(key, 4)
    b = jax.random.uniform(key_b, (), jnp.float32, 1 - recipe.brightness, 1 + recipe.brightness).astype(x.dtype)
    c = jax.random.uniform(key_c, (), jnp.float32, 1 - recipe.contrast, 1 + recipe.contrast).astype(x.dtype)

    def brighten(y):
        return jnp.clip(b * y, 0, 1)

    def contrast(y):
        return jnp.clip(c * y + (1 - c) * y.mean(), 0, 1)

    either = jnp.where(jax.random.bernoulli(key_order), contrast(brighten(x)), brighten(contrast(x)))
    return jnp.where(jax.random.bernoulli(key_apply, recipe.jitter_prob), either, x)


def blur_matrix(sigma: Float[Array, ""], side: int) -> Float[Array, "S S"]:
    """The matrix of a 9-tap Gaussian of standard deviation `sigma` px with reflecting border (torchvision's)."""
    offsets = np.arange(BLUR_TAPS) - BLUR_TAPS // 2
    weights = jnp.exp(-0.5 * jnp.square(offsets / sigma))
    weights = weights / weights.sum()
    source = np.abs(np.arange(side)[None, :] + offsets[:, None])
    source = np.where(source >= side, 2 * (side - 1) - source, source)
    taps = source[:, :, None] == np.arange(side)
    return jnp.einsum("t,tij->ij", weights, jnp.asarray(taps, weights.dtype))


def blur(key: Array, x: Float[Array, "S S"], recipe: CropRecipe) -> Float[Array, "S S"]:
    """Gaussian blur with p `blur_prob`, sigma uniform in `blur_sigma`."""
    key_apply, key_sigma = jax.random.split(key)
    sigma = jax.random.uniform(key_sigma, (), jnp.float32, *recipe.blur_sigma).astype(x.dtype)
    matrix = blur_matrix(sigma, x.shape[0])
    blurred = jnp.matmul(jnp.matmul(matrix, x, precision="highest"), matrix.T, precision="highest")
    return jnp.where(jax.random.bernoulli(key_apply, recipe.blur_prob), blurred, x)


def solarise(key: Array, x: Float[Array, "S S"], recipe: CropRecipe) -> Float[Array, "S S"]:
    """Invert everything from 128/255 up, with p `solarise_prob`."""
    apply = jax.random.bernoulli(key, recipe.solarise_prob)
    return jnp.where(apply & (x >= 128 / 255), 1 - x, x)


def random_crop(
    key: Array, image: UInt8[Array, "H W"], size: Int[Array, "2"], recipe: CropRecipe, dtype
) -> Float[Array, "S S"]:
    """One augmented, normalised crop of one canvas."""
    (box, flip, key_extra), (key_jitter, key_blur, key_solarise) = _draw(key, size, recipe)
    x = resized_crop(image, box, recipe.size, flip, dtype)
    x = apply_extra(key_extra, x, recipe.extra)
    if recipe.jitter_prob:
        x = jitter(key_jitter, x, recipe)
    if recipe.blur_prob:
        x = blur(key_blur, x, recipe)
    if recipe.solarise_prob:
        x = solarise(key_solarise, x, recipe)
    return normalise(x)


def _draw(key: Array, size: Int[Array, "2"], recipe: CropRecipe):
    """Where a crop lies (box, flip, the key of its extras), and the keys of what happens to its grey levels."""
    key_box, key_flip, key_jitter, key_blur, key_solarise, key_extra = jax.random.split(key, 6)
    box = random_box(key_box, size, recipe.scale, recipe.aspect)
    flip = jax.random.bernoulli(key_flip, recipe.flip_prob)
    return (box, flip, key_extra), (key_jitter, key_blur, key_solarise)


def random_mask_crop(
    key: Array, mask: UInt8[Array, "H W"], size: Int[Array, "2"], recipe: CropRecipe, dtype
) -> Bool[Array, "S S"]:
    """The mask of the crop that `random_crop` makes with the same key: the same box, flip and rotation.

    True where at least half of what a pixel of the crop covers is 255.
    """
    ((top, left, height, width), flip, key_extra), _ = _draw(key, size, recipe)
    rows = area_matrix(top, height, mask.shape[0], recipe.size, dtype)
    columns = area_matrix(left, width, mask.shape[1], recipe.size, dtype)
    share = shrink_mask(rows, mask, jnp.where(flip, columns[::-1], columns))
    moves = {name: strength for name, strength in recipe.extra.items() if name in GEOMETRIC}
    return halved(apply_extra(key_extra, share, moves))


def random_crops(
    key: Array,
    images: UInt8[Array, "b H W"],
    sizes: Int[Array, "b 2"],
    recipes: tuple[CropRecipe, ...],
    dtype="float32",
) -> tuple[Float[Array, "b _ _"], ...]:
    """One crop of every image by every recipe. The key of row r and recipe j is folded from both."""
    return _of_every_row(random_crop, key, images, sizes, recipes, dtype)


def random_mask_crops(
    key: Array,
    masks: UInt8[Array, "b H W"],
    sizes: Int[Array, "b 2"],
    recipes: tuple[CropRecipe, ...],
    dtype="float32",
) -> tuple[Bool[Array, "b _ _"], ...]:
    """The masks of the crops that `random_crops` makes with the same key and recipes."""
    return _of_every_row(random_mask_crop, key, masks, sizes, recipes, dtype)


def _of_every_row(crop, key, canvases, sizes, recipes, dtype):
    def row(r, canvas, size):
        row_key = jax.random.fold_in(key, r)
        return tuple(
            crop(jax.random.fold_in(row_key, j), canvas, size, recipe, dtype) for j, recipe in enumerate(recipes)
        )

    return jax.vmap(row)(jnp.arange(canvases.shape[0]), canvases, sizes)


def multi_crop_recipes(
    *,
    global_size: int,
    local_size: int,
    num_local: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    blur_probs: str,
    solarise_prob: float = 0.2,
    **options,
) -> tuple[CropRecipe, ...]:
    """DINOv2's two global crops and `num_local` local ones; `options` go to every `CropRecipe`.

    `blur_probs` names a row of `BLUR_PROBS`; `solarise_prob` is of the second global crop. Raises ValueError for values
    outside their ranges, and for local crops larger than the global ones.
    """
    if blur_probs not in BLUR_PROBS:
        raise ValueError(f"blur_probs={blur_probs!r}: legal are {', '.join(BLUR_PROBS)}")
    check_range("crops.global_scale", global_scale, most=1.0)
    check_range("crops.local_scale", local_scale, most=1.0)
    if local_size > global_size:
        raise ValueError(f"crops.local_size={local_size}: must be at most crops.global_size={global_size}")
    first, second, local = BLUR_PROBS[blur_probs]
    make = partial(CropRecipe, **options)
    return (
        make(global_size, tuple(global_scale), blur_prob=first),
        make(global_size, tuple(global_scale), blur_prob=second, solarise_prob=solarise_prob),
        *(make(local_size, tuple(local_scale), blur_prob=local),) * num_local,
    )
