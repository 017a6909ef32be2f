"""Axial rotary position embedding of DINOv3: positions turn queries and keys instead of being added to tokens.

In: a grid, and queries or keys `[rows, t, h, e]`. Out: the same, rotated.

A patch at row i, column j of a `g x g` grid has the coordinates (y, x) = 2 (i + 1/2, j + 1/2) / g - 1, so that -1..1
spans the image at any resolution. With periods 100^(4k/e), k = 0 .. e/4 - 1, and a(c) = 2 pi c / periods, a head's
angles are A = [a(y), a(x), a(y), a(x)], one per channel, and

    q <- q cos A + turn(q) sin A,   turn([u, v]) = [-v, u]   (halves of the head)

CLS and registers have no position: their angle is 0. Only differences of positions reach the attention scores.
"""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BASE = 100.0


class Rotation(NamedTuple):
    """Cosines and sines of every token's angles; the first axis is 1 where all rows have the same positions."""

    cos: Float[Array, "rows t e"]
    sin: Float[Array, "rows t e"]


@lru_cache(maxsize=64)
def patch_angles(grid: int, head_width: int) -> np.ndarray:
    """The angles A in radians, float64 `[grid * grid, head_width]`; `head_width` is a multiple of 4."""
    frequencies = BASE ** -(np.arange(head_width // 4) * 4 / head_width)
    centres = 2 * (np.arange(grid) + 0.5) / grid - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], axis=1)[:, :, None] * frequencies
    return np.tile(angles.reshape(grid * grid, head_width // 2), 2)


def make_rotation(
    grid: int, head_width: int, *, prefix: int, dtype: str, visible: Int[Array, "rows k"] | None = None
) -> Rotation:
    """The rotation of `prefix` tokens without position followed by all patches of a grid, or each row's `visible`."""
    angles = np.concatenate([np.zeros((prefix, head_width)), patch_angles(grid, head_width)])
    cos, sin = (jnp.asarray(table, dtype) for table in (np.cos(angles), np.sin(angles)))
    if visible is None:
        return Rotation(cos[None], sin[None])
    first = jnp.broadcast_to(jnp.arange(prefix), (visible.shape[0], prefix))
    tokens = jnp.concatenate([first, prefix + visible], axis=1)
    return Rotation(cos[tokens], sin[tokens])


def rotate(x: Float[Array, "rows t h e"], rotation: Rotation) -> Float[Array, "rows t h e"]:
    """Turn queries or keys, computed in the dtype of the rotation."""
    wide = x.astype(rotation.cos.dtype)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    cos, sin = (table[:, :, None] for table in rotation)
    return (wide * cos + turned * sin).astype(x.dtype)
