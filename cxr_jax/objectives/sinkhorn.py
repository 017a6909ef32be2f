"""Teacher assignments: Sinkhorn-Knopp over the global batch, softmax with a moving centre, or plain softmax.

In: teacher logits of `rows` rows, split over devices and cut into chunks of prototypes. Out: an `Assignment`, the two
vectors that turn logits into probabilities whose rows sum to 1.

Sinkhorn-Knopp (Cuturi 2013; Caron et al. 2020) scales M = exp(logits / temperature) to Q = diag(v) M diag(u) with
uniform column sums (every prototype gets an equal share of the batch) and unit row sums:

    repeat: u_k = rows / (k * (M^T v)_k);   v_r = 1 / (M u)_r

Here in logarithms, so nothing overflows at any temperature. M^T v sums over rows, hence over all devices: assignments
see the global batch, and exactly the rows that are given.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.objectives.prototypes import Assignment, LogitChunks, over_chunks

ITERATIONS = 3


def sinkhorn(logits: LogitChunks, temperature: Array) -> Assignment:
    """Three Sinkhorn-Knopp iterations, one pass over the chunks each."""
    rows = logits.embeddings.shape[0]
    share = jnp.log(rows) - jnp.log(logits.num_prototypes)
    log_v = jnp.zeros(rows, logits.reduce_dtype)
    for _ in range(ITERATIONS):

        def column(scaled, log_v=log_v):
            return share - jax.nn.logsumexp(scaled + log_v[:, None], axis=0)

        columns, log_v, best = _row_pass(logits, temperature, column)
    return Assignment(columns, log_v, best)


def softmax_centre(
    logits: LogitChunks, centre: Float[Array, "chunks kc"], temperature: Array
) -> tuple[Assignment, Float[Array, "chunks kc"]]:
    """`softmax((logits - centre) / temperature)`, the first DINO's way against collapse, and the batch's mean logits.

    A centre of zero is plain softmax, which collapses.
    """

    def mean(carry, part):
        return carry, logits.chunk(part).mean(0)

    shift = -centre.astype(logits.reduce_dtype) / temperature
    assignment = Assignment(*_row_pass(logits, temperature, lambda scaled, shift: shift, shift))
    _, means = over_chunks(mean, None, logits.prototypes)
    return assignment, means


def _row_pass(logits, temperature, column, *xs):
    """One pass: per chunk the column vector, over all chunks the rows' negative log-sum and largest log-probability.

    `column(scaled logits, *xs)` gives what is added per prototype.
    """

    def body(carry, chunk):
        part, *rest = chunk
        log_sum, largest = carry
        scaled = logits.chunk(part) / temperature
        added = column(scaled, *rest)
        scaled = scaled + added
        log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(scaled, axis=-1))
        return (log_sum, jnp.maximum(largest, scaled.max(-1))), added

    nothing = jnp.full(logits.embeddings.shape[0], -jnp.inf, logits.reduce_dtype)
    (log_sum, largest), columns = over_chunks(body, (nothing, nothing), (logits.prototypes, *xs))
    return columns, -log_sum, largest - log_sum
