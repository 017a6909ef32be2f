"""Position embeddings that are added to tokens: fixed ones, and learned ones at another grid than their own.

Kinds (`POSITIONS`): `learned`, `sincos` (fixed, here), `rope` (nothing is added; queries and keys turn, see `rope`).

Learned. In: `[1 + n, d]`, CLS first, then a row-major square grid. Out: `[1 + m, d]` for another grid.

Three rules are in use in the wild and differ by 2-12 %, so the rule is part of a model and of its checkpoint:
`offset` (DINOv2, CheXFound): scale factor (out + 0.1) / in, bicubic a = -0.75, no antialiasing;
`size` (Hugging Face Dinov2): scale out / in, otherwise the same;
`antialias` (Hugging Face Dinov2 with registers): bicubic a = -0.5, support widened when reducing, cut at the border.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

POSITIONS = ("learned", "sincos", "rope")
POS_RESIZE = ("offset", "size", "antialias")
TEMPERATURE = 10_000.0


@lru_cache(maxsize=64)
def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Fixed two-dimensional sine-cosine positions as MAE published them, float64 `[1 + grid * grid, width]`.

    With w_k = 10000^(-4k/d), k = 0 .. d/4 - 1, the patch at row i, column j has
    [sin(j w), cos(j w), sin(i w), cos(i w)]; CLS, which comes first, has zeros. Raises ValueError unless 4 divides d.
    """
    if width % 4:
        raise ValueError(f"width={width}: sine-cosine positions need a multiple of 4")
    frequencies = TEMPERATURE ** -(np.arange(width // 4) * 4 / width)
    angles = np.arange(grid)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.concatenate([np.tile(axis, (grid, 1)), np.repeat(axis, grid, axis=0)], axis=1)
    return np.concatenate([np.zeros((1, width)), table])


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter a, support 2."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


@lru_cache(maxsize=64)
def resize_matrix(grid_in: int, grid_out: int, rule: str) -> np.ndarray:
    """The float64 matrix `[grid_out, grid_in]` that resizes one axis by `rule`."""
    if grid_in == grid_out:
        return np.eye(grid_in)
    step = grid_in / (grid_out + 0.1 if rule == "offset" else grid_out)
    centre = (np.arange(grid_out) + 0.5) * step
    if rule == "antialias":
        widen = max(step, 1.0)
        weights = _cubic((np.arange(grid_in) + 0.5 - centre[:, None]) / widen, a=-0.5)
        return weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((grid_out, grid_in))
    first = np.floor(centre - 0.5).astype(int)
    for tap in range(-1, 3):
        weight = _cubic(centre - 0.5 - (first + tap), a=-0.75)
        np.add.at(matrix, (np.arange(grid_out), np.clip(first + tap, 0, grid_in - 1)), weight)
    return matrix


def resize_positions(
    pos_embed: Float[Array, "n_in d"], grid_in: int, grid_out: int, rule: str
) -> Float[Array, "n_out d"]:
    """Resize a square grid of position embeddings; CLS keeps its own. `rule` is one of `POS_RESIZE`."""
    if rule not in POS_RESIZE:
        raise ValueError(f"pos_resize={rule!r}: legal are {', '.join(POS_RESIZE)}")
    if grid_in == grid_out:
        return pos_embed
    matrix = jnp.asarray(resize_matrix(grid_in, grid_out, rule), pos_embed.dtype)
    grid = pos_embed[1:].reshape(grid_in, grid_in, -1)
    grid = jnp.einsum("yi,xj,ijd->yxd", matrix, matrix, grid, precision="highest")
    return jnp.concatenate([pos_embed[:1], grid.reshape(grid_out * grid_out, -1)])
