"""predictions.csv: every test image with its labels and scores, for whoever wants to compute something else.

In: a `Task` and scores `[n, c]` by column. Out: one file of comma-separated values, one row an image.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cxr_jax.evals.task import Task


def write_predictions(path: Path, task: Task, scores: Mapping[str, np.ndarray]) -> None:
    """One row a test image: who it is, its labels (empty = unknown), the scores `[n, c]` of every column."""
    split = task.splits["test"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{column}: {target}" for column in scores for target in task.targets]
        writer.writerow(["image_id", "patient_id", *(f"label: {target}" for target in task.targets), *names])
        for i in range(len(split)):
            values = [f"{value:.6g}" for column in scores.values() for value in column[i]]
            labels = ["" if label < 0 else int(label) for label in task.labels["test"][i]]
            writer.writerow([split.text(i, "image_id"), task.patients["test"][i], *labels, *values])
