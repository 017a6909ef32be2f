"""Mixup (Zhang et al., arXiv 1710.09412) of neighbouring images of a batch.

In: crops and labels. Out: mixtures of both, row r with its neighbour r' (0 with 1, 2 with 3, ...):

    x = l x_r + (1 - l) x_r',   y = l y_r + (1 - l) y_r',   l ~ Beta(alpha, alpha) for every row

A mixture of a known and an unknown label is unknown. Batches come in random order, so a neighbour is any image; taking
the neighbour leaves every image on its device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def _neighbours(x: Array) -> Array:
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mixup(
    key: Array, crops: Float[Array, "b S S"], labels: Shaped[Array, "b c"], alpha: float
) -> tuple[Float[Array, "b S S"], Float[Array, "b c"]]:
    """Mixed crops and labels (below 0 still means unknown). `b` is even."""
    share = jax.random.beta(key, alpha, alpha, (crops.shape[0],), jnp.float32).astype(crops.dtype)
    known = (labels >= 0) & (_neighbours(labels) >= 0)
    wanted = labels.astype(crops.dtype)
    images = share[:, None, None] * crops + (1 - share)[:, None, None] * _neighbours(crops)
    mixed = share[:, None] * wanted + (1 - share)[:, None] * _neighbours(wanted)
    return images, jnp.where(known, mixed, -1)
