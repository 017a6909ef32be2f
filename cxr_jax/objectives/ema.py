"""The EMA teacher, `teacher <- m teacher + (1 - m) student`, kept in the student's dtype or in bfloat16.

In: teacher and student as trees of equal shape, the momentum, the step. Out: the next teacher, in the teacher's dtype.

bfloat16 has 8 bits of significand, and near the end of a run a step moves a weight by far less than the half unit that
rounding to nearest needs: such a teacher stands still. So it is rounded up or down by chance, with chances that make
the mean exact (Gupta et al. 2015, "Deep learning with limited numerical precision", section 3). The noise follows from
the step alone, so that a continued run draws what the undisturbed one drew, on any mesh.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.objectives.base import Params

TEACHERS = ("param", "bfloat16")


def start_teacher(params: Params, teacher_dtype: str) -> Params:
    """A copy of `params`, in buffers of its own; `teacher_dtype` is `param` (the dtype they have) or `bfloat16`."""
    dtype = None if teacher_dtype == "param" else teacher_dtype
    return jax.tree.map(lambda p: jnp.array(p, dtype), params)


def follow(teacher: Params, student: Params, momentum: Float[Array, ""], step: Array) -> Params:
    """The teacher after `step`."""
    key = jax.random.fold_in(jax.random.key(0), step)
    leaves, treedef = jax.tree.flatten(teacher)
    pairs = zip(leaves, treedef.flatten_up_to(student), strict=True)

    def leaf(i: int, t: Array, s: Array) -> Array:
        wide = jnp.promote_types(s.dtype, jnp.float32)
        mean = momentum * t.astype(wide) + (1 - momentum) * s.astype(wide)
        return round_by_chance(mean, jax.random.fold_in(key, i)) if t.dtype == jnp.bfloat16 else mean.astype(t.dtype)

    return jax.tree.unflatten(treedef, [leaf(i, t, s) for i, (t, s) in enumerate(pairs)])


def round_by_chance(x: Float[Array, "..."], key: Array) -> Float[Array, "..."]:
    """One of the two bfloat16 around `x`, each as likely as `x` is near to it; infinities stay what they are."""
    # A bfloat16 is the upper half of a float32: what the lower half adds to a uniform 16-bit number is the carry.
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(((bits + noise) >> 16).astype(jnp.uint16), jnp.bfloat16)
