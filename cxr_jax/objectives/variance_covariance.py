"""Variance and covariance at several depths: every feature varies over images, and no two of them say the same.

In: features `[depths, rows, d]` in the reduce dtype, rows split over devices. Out: two scalars, to be weighted apart.

    variance   = mean over depths and features of max(0, 1 - sqrt(Var(x_j) + 1e-4))
    covariance = mean over depths of 1/d * sum over j != k of Cov(x_j, x_k)^2

with variances and covariances over all rows, divided by rows - 1 (VICReg, Bardes et al. 2022, arXiv 2105.04906).

MLVICX (Singh et al. 2024, arXiv 2403.11504) applies VICReg to chest X-rays at several depths of a ResNet-18. Of its
text only the abstract and summaries could be read; its released code passes the maps of five stages through
attention, adds them up to one map, projects that, and puts the whole VICReg loss (invariance 25, variance 25,
covariance 1 by default) on this and on the projected global embedding. Here, beside DINO and iBOT, which already carry
the invariance, only the two regularising terms are taken, of each depth by itself and without projectors: the mean
patch token of chosen blocks, of both global crops.

Means and products over rows cross devices, so the statistics are those of the global batch on any number of devices.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

TARGET_STD = 1.0
EPSILON = 1e-4


def variance_covariance_loss(
    features: Float[Array, "depths rows d"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Variance and covariance term, each the mean over the leading axis.

    Every leading index has statistics of its own: give `[depths, 2b, d]` for both global crops in one, or
    `[depths * 2, b, d]` for each crop index apart, as VICReg has it. Raises ValueError for fewer than two rows.
    """
    depths, rows, width = features.shape
    if rows < 2:
        raise ValueError(f"variance and covariance need at least 2 rows, found {rows}: raise the batch size")
    centred = features - features.mean(1, keepdims=True)
    variance = jnp.square(centred).sum(1) / (rows - 1)
    spread = jnp.maximum(0, TARGET_STD - jnp.sqrt(variance + EPSILON))
    covariance = jnp.einsum("lrj,lrk->ljk", centred, centred, precision="highest") / (rows - 1)
    others = jnp.where(jnp.eye(width, dtype=bool), 0, covariance)
    return spread.mean(), jnp.square(others).sum() / (depths * width)
