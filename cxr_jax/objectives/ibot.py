"""iBOT: hidden patches of the student agree with the same patches seen by the teacher.

In: student logits and teacher probabilities of the hidden patches `[m, k]`, weights `[m]` = 1 / (hidden patches of the
patch's crop), the number of all global crops. Out: a scalar.

    L = 1/crops * sum over crops of the mean over its hidden patches of H(teacher, student)

Crops without hidden patches count in the divisor, as in the reference (Zhou et al. 2022; Oquab et al. 2023).
"""

import jax
from jaxtyping import Array, Float


def ibot_loss(
    logits: Float[Array, "m k"],
    teacher: Float[Array, "m k"],
    weights: Float[Array, "m"],
    num_crops: int,
    temperature: float,
) -> Float[Array, ""]:
    """Cross-entropy of hidden patches at student `temperature`."""
    entropies = -(teacher * jax.nn.log_softmax(logits / temperature, axis=-1)).sum(-1)
    return (entropies * weights).sum() / num_crops
