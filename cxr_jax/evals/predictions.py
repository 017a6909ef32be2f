"""predictions.csv: every test image with its labels and scores, for whoever wants to compute something else.

In: a `Task`, who its test rows are, and scores `[n, c]` by column. Out: one file of comma-separated values, one row an
image; what is unknown is empty.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cxr_jax.evals.people import UNKNOWN, People
from cxr_jax.evals.task import Task


def write_predictions(path: Path, task: Task, people: People, scores: Mapping[str, np.ndarray]) -> None:
    """Who each test image is (image, patient, source, view, sex, age), its labels, the scores of every column."""
    columns = [f"{column}: {target}" for column in scores for target in task.targets]
    labels = [f"label: {target}" for target in task.targets]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "source", "view", "sex", "age_years", *labels, *columns])
        for i in range(len(people)):
            known = ("" if value == UNKNOWN else value for value in (people.source[i], people.view[i], people.sex[i]))
            age = "" if np.isnan(people.age_years[i]) else f"{people.age_years[i]:g}"
            values = [f"{value:.6g}" for column in scores.values() for value in column[i]]
            given = ["" if label < 0 else int(label) for label in task.labels["test"][i]]
            writer.writerow([people.image_id[i], people.patient_id[i], *known, age, *given, *values])
