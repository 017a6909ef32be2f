"""DINO and iBOT as functions of embeddings and prototypes, for tests of their values, gradients and memory.

In: L2-normalised embeddings `[..., e]`, prototypes `{"v" [e, k], "g" [k]}`, the number of chunks that the losses work
in. Out: scalars, or the teacher's probabilities `[rows, k]`. Only this file knows how the losses are put together.
"""

import jax
import jax.numpy as jnp

from cxr_jax.models.layers import IN_PLACE
from cxr_jax.objectives.dino import dino_loss, dino_mass, dino_products
from cxr_jax.objectives.ibot import ibot_loss, ibot_products
from cxr_jax.objectives.prototypes import LogitChunks, cross_entropy, from_chunks, to_chunks
from cxr_jax.objectives.sinkhorn import sinkhorn


def chunked(embeddings, prototypes, num_chunks) -> LogitChunks:
    """Logits of embeddings, in the dtype of the embeddings."""
    parts = {name: to_chunks(value, num_chunks) for name, value in prototypes.items()}
    return LogitChunks(embeddings, parts, str(embeddings.dtype), IN_PLACE)


def sinkhorn_probabilities(embeddings, prototypes, temperature, num_chunks=1):
    """The teacher's `[rows, k]` probabilities of `[rows, e]` embeddings."""
    temperature = jnp.asarray(temperature, embeddings.dtype)
    assignment = sinkhorn(chunked(embeddings, prototypes, num_chunks), temperature)
    columns = from_chunks(assignment.columns)
    logits = chunked(embeddings, prototypes, 1)
    whole = logits.chunk({name: value[0] for name, value in logits.prototypes.items()})
    return jnp.exp(whole / temperature + columns + assignment.rows[:, None])


def _entropies(student, teacher, products, mass, temperatures):
    student_temperature, teacher_temperature = temperatures
    teacher_temperature = jnp.asarray(teacher_temperature, teacher.reduce_dtype)
    return cross_entropy(
        student,
        teacher,
        sinkhorn(teacher, teacher_temperature),
        products,
        mass,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    ).entropies


def dino(student, prototypes, teacher, teacher_prototypes, *, temperatures, num_chunks=1):
    """Local plus global term of `[b, 2 + l, e]` embeddings, global crops first, and `[b, 2, e]` of the teacher."""
    teacher, teacher_prototypes = jax.lax.stop_gradient((teacher.reshape(-1, teacher.shape[-1]), teacher_prototypes))
    mass = jnp.asarray(dino_mass(student.shape[1] - 2), student.dtype)
    rows = (chunked(student, prototypes, num_chunks), chunked(teacher, teacher_prototypes, num_chunks))
    return sum(dino_loss(_entropies(*rows, dino_products, mass, temperatures)))


def ibot(student, prototypes, teacher, teacher_prototypes, *, weights, num_crops, temperatures, num_chunks=1):
    """iBOT of `[m, e]` embeddings of hidden patches, `weights` [m] = 1 / (hidden patches of the patch's crop)."""
    teacher, teacher_prototypes = jax.lax.stop_gradient((teacher, teacher_prototypes))
    rows = (chunked(student, prototypes, num_chunks), chunked(teacher, teacher_prototypes, num_chunks))
    mass = jnp.ones((), student.dtype)
    return ibot_loss(_entropies(*rows, ibot_products, mass, temperatures), weights, num_crops)
