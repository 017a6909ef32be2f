"""Gram anchoring: patches keep the similarities to each other that they had in an earlier teacher.

In: patch tokens `[b, n, d]` of the student and of the Gram teacher (an earlier copy of the EMA teacher), after the
final norm, in the reduce dtype. Out: a scalar.

    L = mean over images and patch pairs of (X_s X_s^T - X_t X_t^T)^2,   rows of X L2-normalised

which is the squared Frobenius norm of the difference of the Gram matrices, divided by n^2 and averaged over images
(DINOv3, Simeoni et al. 2025, arXiv 2508.10104; the paper writes the norm, its released code takes the mean). Only
similarities are anchored: the student may rotate all its patches together. In the paper's last stage the Gram teacher
sees images of twice the student's side; here it sees the student's own crops.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NEGATIVES = ("keep", "remove", "remove_teacher")


def _similarities(patches: Float[Array, "b n d"]) -> Float[Array, "b n n"]:
    # max(|x|, 1e-12) as in the reference, taken on the square so that the gradient at 0 is finite.
    norm = jnp.sqrt(jnp.maximum(jnp.square(patches).sum(-1, keepdims=True), 1e-24))
    unit = patches / norm
    return jnp.einsum("bnd,bmd->bnm", unit, unit, precision="highest")


def gram_loss(
    student: Float[Array, "b n d"], teacher: Float[Array, "b n d_t"], *, negatives: str = "keep"
) -> Float[Array, ""]:
    """Mean squared difference of the Gram matrices; no gradient goes to `teacher`, whose width may be another.

    A Gram matrix is made of all tokens of one leading index: images as they are (the paper's choice), or, after a
    reshape to `[groups, images * n, d]`, whole groups (the released code's batch level). `negatives` says what happens
    to negative similarities: `keep` (the released Gram stage), `remove` (0 on both sides), or `remove_teacher` (0 in
    the teacher, and in the student where the teacher's is negative too). Raises ValueError for another name.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"gram negatives={negatives!r}: legal are {', '.join(NEGATIVES)}")
    ours, theirs = _similarities(student), jax.lax.stop_gradient(_similarities(teacher))
    # By comparison, not maximum: a similarity of exactly 0 keeps its gradient, as in the reference.
    if negatives == "remove":
        ours = jnp.where(ours < 0, 0, ours)
    elif negatives == "remove_teacher":
        ours = jnp.where((ours < 0) & (theirs < 0), 0, ours)
    if negatives != "keep":
        theirs = jnp.where(theirs < 0, 0, theirs)
    return jnp.square(ours - theirs).mean()
