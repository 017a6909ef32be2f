"""Several images of one study as one case.

In: a task with the scores of its rows. Out: a task with one row a study, and the means of the scores over its images;
or, before anything is scored, a task whose rows are pairs of a frontal and a lateral image.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cxr_jax.data.records import DataError
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


def pair_views(task: Task) -> Task:
    """The task with one row for each study that has a frontal and a lateral image, in every role; others are left out.

    The first frontal image stands for the study, its first lateral one lies in `Task.beside`. Raises DataError when a
    role has no such study.
    """
    splits, beside, labels, patients = {}, {}, {}, {}
    for role, split in task.splits.items():
        numbers, views = study_of_rows(split), [split.text(i, "view") for i in range(len(split))]
        first: dict[str, dict[int, int]] = {"frontal": {}, "lateral": {}}
        for row, (study, view) in enumerate(zip(numbers.tolist(), views, strict=True)):
            if view != "UNKNOWN":
                first["lateral" if view == "LATERAL" else "frontal"].setdefault(study, row)
        both = sorted(first["frontal"].keys() & first["lateral"].keys())
        if not both:
            raise DataError(
                f"config.study='concatenate': no study of the {len(split)} {role} rows of split {split.name!r} has a "
                "frontal and a lateral image; legal there are none, average"
            )
        frontal, lateral = (np.array([rows[study] for study in both]) for rows in first.values())
        splits[role], beside[role] = (
            dataclasses.replace(split, rows=np.asarray(split.rows)[rows]) for rows in (frontal, lateral)
        )
        labels[role] = study_labels(numbers, task.labels[role])[both]
        patients[role] = task.patients[role][frontal]
    return dataclasses.replace(task, splits=splits, beside=beside, labels=labels, patients=patients)
