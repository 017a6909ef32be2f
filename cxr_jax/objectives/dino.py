"""DINO: crops of one image agree on prototypes.

In: per image the cross-entropies of its student crops, two global ones first. Out: two scalars.

    L = (sum over teacher t, local s of H(t, s)  +  sum over t != s of H(t, s)) / (2 l + 2),  H(t, s) = -sum t log p_s

With 8 local crops, local terms carry 16/18 and global cross terms 2/18 (Caron et al. 2021; Oquab et al. 2023).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def dino_products(teacher: Float[Array, "two_b k"], student: Float[Array, "b s k"]) -> Float[Array, "b s"]:
    """For each student crop the sum over prototypes of its logits times those teachers that it learns from.

    A global crop learns from the other one. A local crop learns from both, whose probabilities are added first.
    """
    teacher = teacher.reshape(-1, 2, teacher.shape[-1])
    crossed = (teacher[:, ::-1] * student[:, :2]).sum(-1)
    local = (teacher.sum(1, keepdims=True) * student[:, 2:]).sum(-1)
    return jnp.concatenate([crossed, local], axis=1)


def dino_mass(num_local: int) -> list[int]:
    """How many teachers each student crop learns from."""
    return [1, 1] + [2] * num_local


def dino_loss(entropies: Float[Array, "b s"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Local and global terms, both already divided by the number of all terms, averaged over images."""
    images, crops = entropies.shape
    terms = 2 * (crops - 2) + 2
    return entropies[:, 2:].sum() / (images * terms), entropies[:, :2].sum() / (images * terms)
