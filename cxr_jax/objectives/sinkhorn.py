"""Teacher assignments: Sinkhorn-Knopp over the global batch, or softmax with a moving centre.

In: teacher logits `[rows, k]`, rows split over devices. Out: probabilities `[rows, k]`, each row summing to 1.

Sinkhorn-Knopp (Cuturi 2013; Caron et al. 2020) scales M = exp(logits / temperature) to Q = diag(v) M diag(u) with
uniform column sums (every prototype gets an equal share of the batch) and unit row sums:

    repeat: u_k = rows / (k * (M^T v)_k);   v_r = 1 / (M u)_r

Only the vectors u and v are iterated. M^T v sums over rows, hence over all devices: assignments see the global batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ITERATIONS = 3


def sinkhorn(logits: Float[Array, "rows k"], temperature: Array) -> Float[Array, "rows k"]:
    """Three Sinkhorn-Knopp iterations in the dtype of `logits`; the global maximum is subtracted first."""
    rows, k = logits.shape
    scores = jnp.exp((logits - logits.max()) / temperature)
    v = jnp.ones((rows,), logits.dtype)
    for _ in range(ITERATIONS):
        # "highest": u and v span many orders of magnitude, a bf16 pass on a matrix unit would show.
        u = rows / (k * jnp.matmul(v, scores, precision="highest"))
        v = 1 / jnp.matmul(scores, u, precision="highest")
    return v[:, None] * scores * u


def softmax_centre(
    logits: Float[Array, "rows k"], centre: Float[Array, "k"], temperature: Array
) -> Float[Array, "rows k"]:
    """`softmax((logits - centre) / temperature)`, the first DINO's way against collapse."""
    return jax.nn.softmax((logits - centre) / temperature, axis=-1)
