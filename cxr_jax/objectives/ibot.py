"""iBOT: hidden patches of the student agree with the same patches seen by the teacher.

In: cross-entropies `[m]` of the hidden patches, weights `[m]` = 1 / (hidden patches of the patch's crop), the number of
all global crops. Out: a scalar.

    L = 1/crops * sum over crops of the mean over its hidden patches of H(teacher, student)

Crops without hidden patches count in the divisor, as in the reference (Zhou et al. 2022; Oquab et al. 2023).
"""

from jaxtyping import Array, Float


def ibot_products(teacher: Float[Array, "m k"], student: Float[Array, "m k"]) -> Float[Array, " m"]:
    """Each hidden patch learns from itself as the teacher sees it."""
    return (teacher * student).sum(-1)


def ibot_loss(entropies: Float[Array, " m"], weights: Float[Array, " m"], num_crops: int) -> Float[Array, ""]:
    """Mean over the hidden patches of a crop, summed, divided by the number of all global crops."""
    return (entropies * weights).sum() / num_crops
