"""Position embeddings at another grid than the one they were learned on.

In: `[1 + n, d]`, CLS first, then a row-major square grid. Out: `[1 + m, d]` for another grid.

Three rules are in use in the wild and differ by 2-12 %, so the rule is part of a model and of its checkpoint:
`offset` (DINOv2, CheXFound): scale factor (out + 0.1) / in, bicubic a = -0.75, no antialiasing;
`size` (Hugging Face Dinov2): scale out / in, otherwise the same;
`antialias` (Hugging Face Dinov2 with registers): bicubic a = -0.5, support widened when reducing, cut at the border.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

POS_RESIZE = ("offset", "size", "antialias")


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
