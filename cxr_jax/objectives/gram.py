"""Gram anchoring: patches keep the similarities to each other that they had in an earlier teacher.

In: patch tokens `[b, n, d]` of the student and of the Gram teacher (an earlier copy of the EMA teacher), after the
final norm, in the reduce dtype. Out: a scalar.

    L = mean over images and patch pairs of (X_s X_s^T - X_t X_t^T)^2,   rows of X L2-normalised

which is the squared Frobenius norm of the difference of the Gram matrices, divided by n^2 and averaged over images
(DINOv3, Simeoni et al. 2025, arXiv 2508.10104; the paper writes the norm, its released code takes the mean). Only
similarities are anchored: the student may rotate all its patches together.

The paper's Gram teacher sees images of twice the student's side; `resize_patches` brings its patch grid back to the
student's by bicubic interpolation without antialiasing, before patches are normalised.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.models.positions import POS_RESIZE, resize_matrix

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


def resize_patches(patches: Float[Array, "b n_in d"], grid_out: int, rule: str = "size") -> Float[Array, "b n_out d"]:
    """Patch tokens of a square grid, row by row, interpolated to `grid_out x grid_out`; one matrix product per axis.

    `rule` is one of `models.positions.POS_RESIZE`; the released Gram stage is `size` (bicubic, no antialiasing).
    Raises ValueError for another rule, and when the tokens are no square grid (CLS and registers do not belong here).
    """
    if rule not in POS_RESIZE:
        raise ValueError(f"gram resize rule={rule!r}: legal are {', '.join(POS_RESIZE)}")
    images, tokens, width = patches.shape
    grid_in = round(tokens**0.5)
    if grid_in**2 != tokens:
        raise ValueError(f"{tokens} patch tokens are no square grid; give patches without CLS and registers")
    if grid_in == grid_out:
        return patches
    matrix = jnp.asarray(resize_matrix(grid_in, grid_out, rule), patches.dtype)
    grid = patches.reshape(images, grid_in, grid_in, width)
    grid = jnp.einsum("yi,bijd->byjd", matrix, grid, precision="highest")
    grid = jnp.einsum("xj,byjd->byxd", matrix, grid, precision="highest")
    return grid.reshape(images, grid_out * grid_out, width)
