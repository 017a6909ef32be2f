"""From a canvas to a model input: bicubic resizing as matrix products, the evaluation geometry, normalisation.

In: grey canvases `[b, H, W]` uint8, the image at the top left, and its true `size [b, 2]`.
Out: `[b, S, S]`, in 0..1 before `normalise`.

Training crops, evaluation, feature extraction and export all resize through here, so the same picture gives the same
numbers everywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

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


def _fit_one(image, size, side: int, fit: str, dtype):
    longest, shortest = size.max(), size.min()

    def axis(length, canvas):
        if fit == "stretch":
            return resize_matrix(0, length, canvas, side, dtype)
        if fit == "crop":
            return resize_matrix((length - shortest) // 2, shortest, canvas, side, dtype)
        # The longer side fills the output, the shorter keeps its proportion in whole pixels, centred on black.
        out = jnp.maximum(jnp.round(length * side / longest).astype(jnp.int32), 1)
        return resize_matrix(0, length, canvas, side, dtype, before=(side - out) // 2, out=out)

    return apply_resize(axis(size[0], image.shape[0]), image, axis(size[1], image.shape[1]))


def fit_images(
    images: UInt8[Array, "b H W"], sizes: Int[Array, "b 2"], image_size: int, fit: str, dtype="float32"
) -> Float[Array, "b S S"]:
    """Every image as a whole at `image_size` px, in 0..1.

    `pad` keeps everything and centres it on black, `crop` keeps the central square (cuts the long side), `stretch`
    keeps everything and loses the aspect ratio. Raises ValueError for another `fit`.
    """
    if fit not in FITS:
        raise ValueError(f"geometry.fit={fit!r}: legal are {', '.join(FITS)}")
    return jax.vmap(lambda image, size: _fit_one(image, size, image_size, fit, dtype))(images, sizes)
