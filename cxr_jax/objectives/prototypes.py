"""Cross-entropy over prototypes, without ever holding an array of all rows times all prototypes.

In: embeddings `[..., e]` and prototypes of student and teacher, the teacher's assignment. Out: entropies `[...]`.

    H_r = mass_r log sum_k exp(s_rk / tau)  -  sum_k t_rk s_rk / tau,      t_rk = exp(l_rk / tau_t + a_k + b_r)

s and l are the logits of student and teacher. Whatever the centring, the teacher's log-probabilities are its logits
with a number added per prototype (a) and one per row (b). So only these two vectors are kept, and logits are computed
where they are used, chunk by chunk of the prototypes, forward and again backward. With 131,072 prototypes the logits of
the hidden patches of 64 images (3,763 rows) would fill 2 GB, several times over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.models.layers import Layout
from cxr_jax.models.projection_head import prototype_logits

NEARLY_BEST = 1e-3  # nats: a row's best prototype is recognised in logits that were computed twice


@dataclass(frozen=True)
class LogitChunks:
    """Logits `[..., k]` as a recipe: embeddings `[..., e]` and prototypes cut into chunks.

    `prototypes` is `{"v" [chunks, e, kc], "g" [chunks, kc]}`. Chunk j holds the prototypes j, j + chunks, ...: a cut
    along neighbours would leave a device that holds neighbouring prototypes without work in most chunks.
    """

    embeddings: Float[Array, "*rows e"]
    prototypes: dict[str, Array]
    reduce_dtype: str
    layout: Layout

    @property
    def num_prototypes(self) -> int:
        return self.prototypes["g"].size

    def chunk(self, prototypes: dict[str, Array]) -> Float[Array, "*rows kc"]:
        """Logits of one chunk, whose weights are gathered for it alone; over devices as the rows are.

        Left to the compiler, their gradient is computed where the prototypes lie, and sent to where the rows do.
        """
        gathered = self.layout.weights({"prototypes": prototypes})["prototypes"]
        logits = prototype_logits(self.embeddings, gathered["v"], gathered["g"], self.reduce_dtype)
        return self.layout.heads(logits[..., None])[..., 0]


class Assignment(NamedTuple):
    """The teacher's log-probabilities but for its logits: `columns` (a), `rows` (b), and each row's largest one."""

    columns: Float[Array, "chunks kc"]
    rows: Float[Array, " rows"]
    best: Float[Array, " rows"]


class CrossEntropy(NamedTuple):
    """`entropies` per student row; the teacher's mean entropy in nats and the share of prototypes that it uses."""

    entropies: Float[Array, "*rows"]
    teacher_entropy: Float[Array, ""]
    prototype_use: Float[Array, ""]


def to_chunks(x: Float[Array, "*e k"], num_chunks: int) -> Float[Array, "chunks *e kc"]:
    """Cut the last axis; `from_chunks` undoes it for vectors."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, num_chunks), -1, 0)


def from_chunks(x: Float[Array, "chunks kc"]) -> Float[Array, " k"]:
    """A vector over all prototypes from its chunks."""
    return x.T.reshape(-1)


def over_chunks(body: Callable, carry: Any, xs: Any, *, recompute: bool = False) -> tuple[Any, Any]:
    """`lax.scan` over chunks; a single chunk is computed in line, where nothing has to be recomputed."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if recompute else body, carry, xs)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], out)


def log_probabilities(logits: Array, temperature: Array, columns: Array, rows: Array) -> Float[Array, "rows kc"]:
    """The teacher's log-probabilities of one chunk."""
    return logits / temperature + columns + rows[:, None]


def cross_entropy(
    student: LogitChunks,
    teacher: LogitChunks,
    assignment: Assignment,
    products: Callable[[Array, Array], Array],
    mass: Float[Array, "*rows"],
    *,
    student_temperature: float,
    teacher_temperature: Array,
) -> CrossEntropy:
    """Entropies of the student's rows; `products(t, s)` sums `t s` of one chunk over prototypes for every student row.

    Which teacher rows a student row learns from is the business of `products`; `mass` says how many they are. Nothing
    of the teacher has a gradient.
    """

    def body(carry, chunk):
        student_part, teacher_part, columns = chunk
        log_normaliser, product, entropy, used = carry
        s = student.chunk(student_part) / student_temperature
        log_t = log_probabilities(teacher.chunk(teacher_part), teacher_temperature, columns, assignment.rows)
        t = jnp.exp(log_t)
        log_normaliser = jnp.logaddexp(log_normaliser, jax.nn.logsumexp(s, axis=-1))
        # By comparison: scattering the rows' argmax would gather all rows on every device.
        is_best = (log_t >= assignment.best[:, None] - NEARLY_BEST).any(0)
        return (
            log_normaliser,
            product + products(t, s),
            entropy - (t * log_t).sum(-1),
            used + is_best.sum(dtype=jnp.int32),
        ), None

    shape, dtype = student.embeddings.shape[:-1], student.reduce_dtype
    rows = len(assignment.rows)
    start = (
        jnp.full(shape, -jnp.inf, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros(rows, dtype),
        jnp.zeros((), jnp.int32),
    )
    xs = (student.prototypes, teacher.prototypes, assignment.columns)
    (log_normaliser, product, entropy, used), _ = over_chunks(body, start, xs, recompute=True)
    # Rows that like several prototypes alike count them all, so more may be in use than there are rows.
    possible = min(rows, teacher.num_prototypes)
    return CrossEntropy(mass * log_normaliser - product, entropy.mean(), jnp.minimum(used / possible, 1))
