"""Logits given as a matrix, for tests of what is computed from them.

In: a matrix `[rows, k]`. Out: the `LogitChunks` whose logits they are (prototypes are the unit vectors, gains 1), and
the probabilities that an assignment makes of them.
"""

import jax.numpy as jnp

from cxr_jax.models.layers import IN_PLACE
from cxr_jax.objectives.prototypes import LogitChunks, from_chunks, to_chunks


def given_logits(matrix, num_chunks=1, layout=IN_PLACE) -> LogitChunks:
    """`[..., k]` logits in `num_chunks` chunks, in the dtype of `matrix`."""
    matrix = jnp.asarray(matrix)
    k = matrix.shape[-1]
    prototypes = {"v": to_chunks(jnp.eye(k, dtype=matrix.dtype), num_chunks)}
    prototypes["g"] = to_chunks(jnp.ones(k, matrix.dtype), num_chunks)
    return LogitChunks(matrix, prototypes, str(matrix.dtype), layout)


def probabilities(matrix, assignment, temperature):
    """The teacher's `[rows, k]` probabilities."""
    columns = from_chunks(assignment.columns)
    return jnp.exp(jnp.asarray(matrix) / temperature + columns + assignment.rows[:, None])
