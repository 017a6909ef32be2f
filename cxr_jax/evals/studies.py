"""Several images of one study as one case.

In: a task with the scores of its rows. Out: a task with one row a study, and the means of the scores over its images.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cxr_jax.data.source import Split
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import Task


def study_of_rows(split: Split) -> np.ndarray:
    """Number of the study of each row, counted in order of appearance. An image without a study id is one of its own.

    Study ids count within a patient: two patients may both have a study 1.
    """
    fields = ("source", "patient_id", "study_id", "image_id")
    numbers: dict[tuple, int] = {}
    found = []
    for i in range(len(split)):
        source, patient, study, image = (split.text(i, field) for field in fields)
        found.append(numbers.setdefault((source, patient, study, "" if study else image), len(numbers)))
    return np.array(found)


def study_means(studies: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean score `[studies, c]` over the images of each study."""
    count = np.bincount(studies)
    return np.stack([np.bincount(studies, column) / count for column in scores.T], axis=1)


def study_labels(studies: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A study has a finding that one of its images has, lacks one that some lack and none has, else it is unknown."""
    merged = np.full((studies.max() + 1, labels.shape[1]), -1, labels.dtype)
    np.maximum.at(merged, studies, labels)
    return merged


def first_rows(studies: np.ndarray) -> np.ndarray:
    """The first row of each study, which stands for it."""
    return np.unique(studies, return_index=True)[1]


def by_study(task: Task, columns: Mapping[str, Scores]) -> tuple[Task, dict[str, Scores]]:
    """The task with one selection and test row a study, and each column's means over a study's images.

    The first image of a study stands for it where one is named or shown. Training rows stay images.
    """
    studies = {role: study_of_rows(task.splits[role]) for role in ("select", "test")}
    splits, labels, patients = dict(task.splits), dict(task.labels), dict(task.patients)
    for role, numbers in studies.items():
        first = first_rows(numbers)
        splits[role] = dataclasses.replace(splits[role], rows=np.asarray(splits[role].rows)[first])
        labels[role] = study_labels(numbers, labels[role])
        patients[role] = patients[role][first]

    def means(scores):
        select = None if scores.select is None else study_means(studies["select"], scores.select)
        features = scores.features and {
            role: study_means(studies[role], x) if role in studies else x for role, x in scores.features.items()
        }
        test = study_means(studies["test"], scores.test)
        return dataclasses.replace(scores, test=test, select=select, features=features)

    merged = dataclasses.replace(task, splits=splits, labels=labels, patients=patients)
    return merged, {name: means(scores) for name, scores in columns.items()}
