"""From a canvas to a model input: bicubic resizing as matrix products, the evaluation geometry, normalisation.

In: grey canvases `[b, H, W]` uint8, the image at the top left, and its true `size [b, 2]`; masks on the same canvases.
Out: `[b, S, S]`, in 0..1 before `normalise`; masks of 0 and 1; and back, `[b, H, W]`.

Training crops, evaluation, feature extraction and export all resize through here, so the same picture gives the same
numbers everywhere. A mask takes the same way by area: an output pixel is 1 where at least half of what it covers is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

MEAN, STD = 0.5, 0.25
FITS = ("pad", "crop", "stretch")
Position = Int[Array, ""] | int


def normalise(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..1 to the model's input range, -2..2. Constants are stored with every checkpoint."""
    return (x - MEAN) / STD


def denormalise(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `normalise`, for viewing."""
    return x * STD + MEAN


def _cubic(x: Array) -> Array:
    """Keys' cubic kernel with a = -0.5, as Pillow and antialiased torchvision use it."""
    x = jnp.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x <= 1, inner, jnp.where(x < 2, outer, 0))


def resize_matrix(
    start: Position,
    length: Position,
    canvas: int,
    side: int,
    dtype="float32",
    before: Position = 0,
    out: Position | None = None,
) -> Float[Array, "side canvas"]:
    """The matrix that resizes pixels `start .. start+length` of a canvas axis to `out` of `side` pixels.

    Bicubic, antialiased; the kernel is cut at the crop's border and renormalised, as if the crop had been cut first.
    The result begins at output pixel `before`; rows outside `before .. before+out` are zero (default: none are).
    """
    out = side if out is None else out
    scale = jnp.asarray(length, dtype) / out
    pixel = jnp.arange(side) - before
    position = jnp.arange(canvas) - start
    centre = (pixel.astype(dtype) + 0.5) * scale
    weights = _cubic((position.astype(dtype) + 0.5 - centre[:, None]) / jnp.maximum(scale, 1))
    weights = jnp.where((position >= 0) & (position < length), weights, 0)
    visible = (pixel >= 0) & (pixel < out)
    return jnp.where(visible[:, None], weights / weights.sum(1, keepdims=True), 0)


def apply_resize(
    rows: Float[Array, "out_h H"],
    image: UInt8[Array, "H W"],
    columns: Float[Array, "out_w W"],
    cut_between: bool = False,
) -> Float[Array, "out_h out_w"]:
    """`clip(rows @ (image / 255 @ columns^T))`: bicubic overshoots are cut as an 8-bit image would cut them.

    `cut_between` also cuts after the horizontal pass, as Pillow does, whose picture between its passes has 8 bits.
    """
    x = jnp.matmul(image.astype(rows.dtype) / 255, columns.T, precision="highest")
    if cut_between:
        x = jnp.clip(x, 0, 1)
    return jnp.clip(jnp.matmul(rows, x, precision="highest"), 0, 1)


def area_matrix(
    start: Position,
    length: Position,
    canvas: int,
    side: int,
    dtype="float32",
    before: Position = 0,
    out: Position | None = None,
) -> Float[Array, "side canvas"]:
    """As `resize_matrix`, but every output pixel averages the area that it covers; a mask becomes a share."""
    out = side if out is None else out
    scale = jnp.asarray(length, dtype) / out
    pixel = jnp.arange(side) - before
    position = jnp.arange(canvas) - start
    top = pixel[:, None].astype(dtype) * scale
    left = position[None, :].astype(dtype)
    covered = jnp.clip(jnp.minimum(top + scale, left + 1) - jnp.maximum(top, left), 0) / scale
    inside = (position >= 0) & (position < length)
    visible = (pixel >= 0) & (pixel < out)
    return jnp.where(inside[None, :] & visible[:, None], covered, 0)


def back_matrix(
    start: Position,
    length: Position,
    canvas: int,
    side: int,
    dtype="float32",
    before: Position = 0,
    out: Position | None = None,
) -> Float[Array, "canvas side"]:
    """The way back of `resize_matrix`, bilinear between the centres of its output pixels; zero where it saw nothing."""
    out = side if out is None else out
    position, pixel = jnp.arange(canvas) - start, jnp.arange(side) - before
    centre = (position.astype(dtype) + 0.5) * (jnp.asarray(out, dtype) / length) - 0.5
    centre = jnp.clip(centre, 0, jnp.asarray(out - 1, dtype))
    weights = jnp.clip(1 - jnp.abs(centre[:, None] - pixel[None, :].astype(dtype)), 0)
    inside = (position >= 0) & (position < length)
    visible = (pixel >= 0) & (pixel < out)
    return jnp.where(inside[:, None] & visible[None, :], weights, 0)


class Placement(NamedTuple):
    """Pixels `start .. start+length` of a canvas axis become `before .. before+out` of the model input's."""

    start: Position
    length: Position
    before: Position
    out: Position


def placements(size: Int[Array, "2"], side: int, fit: str) -> tuple[Placement, Placement]:
    """Where the rows and the columns of an image of `size` go. Raises ValueError for an unknown `fit`."""
    if fit not in FITS:
        raise ValueError(f"geometry.fit={fit!r}: legal are {', '.join(FITS)}")
    longest, shortest = size.max(), size.min()

    def axis(length):
        if fit == "stretch":
            return Placement(0, length, 0, side)
        if fit == "crop":
            return Placement((length - shortest) // 2, shortest, 0, side)
        # The longer side fills the output, the shorter keeps its proportion in whole pixels, centred on black.
        out = jnp.maximum(jnp.round(length * side / longest).astype(jnp.int32), 1)
        return Placement(0, length, (side - out) // 2, out)

    return axis(size[0]), axis(size[1])


def _matrices(make: Callable, size, canvas: tuple[int, int], side: int, fit: str, dtype):
    """`make`'s matrices of the rows and the columns."""
    both = zip(placements(size, side, fit), canvas, strict=True)
    return tuple(
        make(place.start, place.length, pixels, side, dtype, before=place.before, out=place.out)
        for place, pixels in both
    )


def _fit_one(image, size, side: int, fit: str, dtype):
    rows, columns = _matrices(resize_matrix, size, image.shape, side, fit, dtype)
    return apply_resize(rows, image, columns)


def fit_images(
    images: UInt8[Array, "b H W"], sizes: Int[Array, "b 2"], image_size: int, fit: str, dtype="float32"
) -> Float[Array, "b S S"]:
    """Every image as a whole at `image_size` px, in 0..1.

    `pad` keeps everything and centres it on black, `crop` keeps the central square (cuts the long side), `stretch`
    keeps everything and loses the aspect ratio. Raises ValueError for another `fit`.
    """
    return jax.vmap(lambda image, size: _fit_one(image, size, image_size, fit, dtype))(images, sizes)


def shrink_mask(
    rows: Float[Array, "out_h H"], mask: UInt8[Array, "H W"], columns: Float[Array, "out_w W"]
) -> Float[Array, "out_h out_w"]:
    """The share of every output pixel that a mask of 0 and 255 covers; `rows` and `columns` are `area_matrix`'s."""
    share = jnp.matmul(mask.astype(rows.dtype) / 255, columns.T, precision="highest")
    return jnp.matmul(rows, share, precision="highest")


def halved(share: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """At least one half, to rounding."""
    return share >= 0.5 - 1e-5


def fit_masks(
    masks: UInt8[Array, "b H W"], sizes: Int[Array, "b 2"], image_size: int, fit: str, dtype="float32"
) -> Bool[Array, "b S S"]:
    """Masks in the geometry of `fit_images`: True where at least half of what a pixel covers is; False on padding."""

    def one(mask, size):
        rows, columns = _matrices(area_matrix, size, mask.shape, image_size, fit, dtype)
        return halved(shrink_mask(rows, mask, columns))

    return jax.vmap(one)(masks, sizes)


def unfit(
    pictures: Float[Array, "b S S"], sizes: Int[Array, "b 2"], canvas: tuple[int, int], fit: str
) -> Float[Array, "b H W"]:
    """Pictures in the geometry of `fit_images`, such as scores, back on the canvas of the stored images.

    Bilinear between pixel centres. Zero beyond the image, and where `crop` has cut the image away.
    """

    def one(picture, size):
        rows, columns = _matrices(back_matrix, size, canvas, picture.shape[0], fit, picture.dtype)
        return jnp.matmul(jnp.matmul(rows, picture, precision="highest"), columns.T, precision="highest")

    return jax.vmap(one)(pictures, sizes)


def visible(sizes: Int[Array, "b 2"], image_size: int, fit: str) -> Bool[Array, "b S S"]:
    """Which pixels of a model input show the image; the others are padding."""

    def one(size):
        pixel = jnp.arange(image_size)
        rows, columns = ((pixel >= p.before) & (pixel < p.before + p.out) for p in placements(size, image_size, fit))
        return rows[:, None] & columns[None, :]

    return jax.vmap(one)(sizes)
