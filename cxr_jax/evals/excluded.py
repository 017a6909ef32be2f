"""What is not in the numbers, and why.

In: a `Task` and the choice of rows it was opened with. Out: by role how many images the split holds, how many were not
chosen, have no known label or were used, and how many of these lack each label; and what the dataset's builder skipped.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cxr_jax.data.records import UNKNOWN_LABEL
from cxr_jax.data.source import Split, fields_of, target_values
from cxr_jax.evals.task import Task


def excluded(task: Task, where: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What was left out of the rows of `task`, of which `where` gives the choice by role.

    Returns:
      `roles`: role -> `split`, `where`, `images` (of the split), `other_rows` (not chosen), `no_label` (chosen, but
      every target is unknown), `kept`, `unknown` by target; `skipped`: reason -> images, the most frequent first, and
      `skipped_count`.
    """
    roles = {}
    for role, split in task.splits.items():
        images, kept, no_label = len(split.records), len(split), _without_label(split, where[role], task.targets)
        roles[role] = {
            "split": split.name,
            "where": dict(where[role]),
            "images": images,
            "other_rows": images - no_label - kept,
            "no_label": no_label,
            "kept": kept,
            "unknown": {name: int((task.labels[role][:, c] < 0).sum()) for c, name in enumerate(task.targets)},
        }
    skipped = task.splits["test"].manifest.skipped
    reasons = Counter(entry["reason"] for entry in skipped)
    return {"roles": roles, "skipped": dict(reasons.most_common()), "skipped_count": len(skipped)}


def _without_label(split: Split, where: Mapping[str, str], targets) -> int:
    """How many of the split's records fit `where` and know none of the targets."""
    vocabulary = split.manifest.vocabulary
    names = tuple({*where, *fields_of(targets, vocabulary)})
    count = 0
    for i in range(len(split.records)):
        record = split.records.brief(i, names)
        if all(record[field] == value for field, value in where.items()):
            values = target_values(record, targets, vocabulary)
            count += all(value == UNKNOWN_LABEL for value in values)
    return count
