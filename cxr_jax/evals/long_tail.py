"""Head, medium and tail: findings grouped by how many positives there were to learn from.

In: train labels `[n, c]` (1, 0, -1 unknown). Out: the names of the findings of each group, for the means that
long-tailed benchmarks report (Holste et al. 2022; CXR-LT): head above 1,000 positive images, tail below 100, medium
between.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

GROUPS = ("head", "medium", "tail")


def groups_by_frequency(
    train_labels: Integer[np.ndarray, "n c"], class_names: Sequence[str], *, head_above: int, tail_below: int
) -> dict[str, list[str]]:
    """Names of the findings of each group that has any, the most frequent group first.

    Raises:
      ValueError: the two bounds overlap.
    """
    if not 0 <= tail_below <= head_above + 1:
        raise ValueError(f"long_tail.tail_below={tail_below} must be from 0 to long_tail.head_above={head_above}")
    counts = (train_labels == 1).sum(axis=0)
    place = np.where(counts > head_above, 0, np.where(counts < tail_below, 2, 1))
    groups = {name: [c for c, p in zip(class_names, place, strict=True) if p == g] for g, name in enumerate(GROUPS)}
    return {name: classes for name, classes in groups.items() if classes}
