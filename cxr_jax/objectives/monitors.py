"""Signs of collapse in features: how far apart they lie, and their second moment for the effective rank.

In: token arrays `[..., d]`, rows split over devices. Out: a scalar, or a `[d, d]` matrix; only sums cross devices.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def spread(tokens: Float[Array, "*rows d"]) -> Float[Array, ""]:
    """Root mean square distance of L2-normalised tokens from their mean.

    For unit vectors that is sqrt(1 - |mean|^2): 0 when all are alike, near 1 when they fill the sphere.
    """
    tokens = tokens.reshape(-1, tokens.shape[-1])
    unit = tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), jnp.finfo(tokens.dtype).tiny)
    return jnp.sqrt(jnp.maximum(1 - jnp.square(unit.mean(0)).sum(), 0))


def second_moment(tokens: Float[Array, "rows d"]) -> Float[Array, "d d"]:
    """`tokens^T tokens / rows`, whose eigenvalues give the effective rank (`metrics`)."""
    return jnp.matmul(tokens.T, tokens, precision="highest") / tokens.shape[0]
