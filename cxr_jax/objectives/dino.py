"""DINO: crops of one image agree on prototypes.

In: student logits of global `[b, 2, k]` and local crops `[b, l, k]`, teacher probabilities of global crops
`[b, 2, k]`. Out: two scalars.

    L = (sum over teacher t, local s of H(t, s)  +  sum over t != s of H(t, s)) / (2 l + 2),  H(t, s) = -sum t log p_s

With 8 local crops, local terms carry 16/18 and global cross terms 2/18 (Caron et al. 2021; Oquab et al. 2023).
"""

import jax
from jaxtyping import Array, Float


def dino_loss(
    global_logits: Float[Array, "b 2 k"],
    local_logits: Float[Array, "b l k"],
    teacher: Float[Array, "b 2 k"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Local and global terms, both already divided by the number of all terms, averaged over images."""
    images, num_local = local_logits.shape[:2]
    terms = 2 * num_local + 2
    log_local = jax.nn.log_softmax(local_logits / temperature, axis=-1)
    log_global = jax.nn.log_softmax(global_logits / temperature, axis=-1)
    # Every local crop meets both teachers, so their distributions can be added before the product.
    local = -(teacher.sum(1, keepdims=True) * log_local).sum()
    crossed = -(teacher[:, ::-1] * log_global).sum()
    return local / (images * terms), crossed / (images * terms)
