"""Maps of tokens `[b, h, w, c]`: the pieces that segmentation decoders are made of.

In: patch tokens or maps in the compute dtype. Out: maps. Resizing and pooling are products with constant matrices, and
a convolution is a sum of matrix products of shifted maps: under `vmap` over a grid of heads all stay batched products.
XLA turns convolutions with a kernel for each head into grouped ones. 3 x 3 from 128 to 32 channels on 28 x 28, 32
images, four heads, forward and backward, once on two busy cores: 25 s, as a sum of products 2.4 s.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.models.layers import Dtypes, Linear, layer_norm, linear

Map = Float[Array, "b _h _w _c"]


def token_map(patches: Float[Array, "b n d"]) -> Float[Array, "b g g d"]:
    """Patch tokens, row by row, as a square map. Raises ValueError when they are no square."""
    grid = round(patches.shape[1] ** 0.5)
    if grid**2 != patches.shape[1]:
        raise ValueError(f"a segmentation head needs a square grid of patches, the features hold {patches.shape[1]}")
    return patches.reshape(patches.shape[0], grid, grid, patches.shape[-1])


def bilinear_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Bilinear interpolation of an axis between pixel centres, the border repeated: PyTorch's `align_corners=False`."""
    centre = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.clip(1 - np.abs(centre[:, None] - np.arange(size)), 0, None)


def pool_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Means over `out` windows covering an axis, from floor(i size/out) to ceil((i + 1) size/out); they may overlap."""
    i, pixel = np.arange(out)[:, None], np.arange(size)
    inside = (pixel >= i * size // out) & (pixel < -(-(i + 1) * size // out))
    return inside / inside.sum(1, keepdims=True)


def _both_axes(x: Map, rows: np.ndarray, columns: np.ndarray) -> Map:
    x = jnp.einsum("oh,bhwc->bowc", jnp.asarray(rows, x.dtype), x)
    return jnp.einsum("ow,bhwc->bhoc", jnp.asarray(columns, x.dtype), x)


def resize(x: Map, height: int, width: int) -> Map:
    """Bilinear, without antialiasing."""
    if x.shape[1:3] == (height, width):
        return x
    return _both_axes(x, bilinear_matrix(x.shape[1], height), bilinear_matrix(x.shape[2], width))


def pool(x: Map, side: int) -> Map:
    """Adaptive average pooling to `side` x `side` cells."""
    return _both_axes(x, pool_matrix(x.shape[1], side), pool_matrix(x.shape[2], side))


def halve(x: Map) -> Map:
    """The maximum of every 2 x 2 pixels; at an odd border of those that are there."""
    rows, columns = (-(-side // 2) for side in x.shape[1:3])
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    odd = ((0, 0), (0, 2 * rows - x.shape[1]), (0, 2 * columns - x.shape[2]), (0, 0))
    x = jnp.pad(x, odd, constant_values=lowest)
    return x.reshape(x.shape[0], rows, 2, columns, 2, x.shape[-1]).max((2, 4))


def _he_normal(layer: Linear, rngs: nnx.Rngs) -> Linear:
    """He et al. 2015: N(0, 2 / fan-in), for a ReLU after it."""
    kernel = layer.kernel[...]
    std = (2 * layer.bias[...].size / kernel.size) ** 0.5
    layer.kernel[...] = std * jax.random.normal(rngs.params(), kernel.shape, kernel.dtype)
    return layer


class Convolution(nnx.Module):
    """`relu(norm(conv(x)))` with a kernel `[side, side, c_in, c_out]` and zeros beyond the border, or `[c_in, c_out]`
    for side 1; LayerNorm over channels, where the published decoders have BatchNorm: a pixel's value then depends on
    no other image and on no running mean.
    """

    def __init__(self, inputs: int, outputs: int, *, side: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.side, self.dtypes = side, dtypes
        window = (side, side) if side > 1 else ()
        self.conv = _he_normal(Linear((*window, inputs), (outputs,), dtypes=dtypes, rngs=rngs), rngs)
        self.norm = layer_norm(outputs, dtypes=dtypes, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        y = self.conv(x) if self.side == 1 else convolve(x, self.conv.kernel[...], self.conv.bias[...], self.dtypes)
        return jax.nn.relu(self.norm(y).astype(x.dtype))


def convolve(
    x: Map, kernel: Float[Array, "k k c o"], bias: Float[Array, " o"], dtypes: Dtypes
) -> Float[Array, "b h w o"]:
    """A convolution (no flip of the kernel) of odd side k, zeros beyond the border, the size kept.

    The backward pass makes the shifted copies of x again instead of keeping k^2 of them.
    """
    side = kernel.shape[0]

    @jax.checkpoint
    def product(x, kernel, bias):
        height, width, edge, reduce = x.shape[1], x.shape[2], side // 2, dtypes.reduce_dtype
        padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        total = bias.astype(reduce)
        for i in range(side):
            for j in range(side):
                shifted = padded[:, i : i + height, j : j + width]
                total = total + linear(shifted, kernel[i, j], None, 1, reduce, reduce)
        return total.astype(x.dtype)

    return product(x, kernel, bias)


class Doubling(nnx.Module):
    """Every pixel becomes 2 x 2 pixels by a linear map of its own, kernel `[c, 2, 2, c]`: a transposed convolution of
    stride 2 whose windows do not overlap."""

    def __init__(self, channels: int, *, dtypes: Dtypes, rngs: nnx.Rngs):
        self.map = Linear((channels,), (2, 2, channels), dtypes=dtypes, rngs=rngs)
        kernel = self.map.kernel[...]
        self.map.kernel[...] = channels**-0.5 * jax.random.normal(rngs.params(), kernel.shape, kernel.dtype)

    def __call__(self, x: Map) -> Map:
        y = self.map(x)
        rows, height, width = x.shape[:3]
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(rows, 2 * height, 2 * width, x.shape[-1])
