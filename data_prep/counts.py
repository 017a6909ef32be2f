"""Counts of what was written, for the manifest.

In: the columns, splits and patients of the kept rows. Out: `counts` and `canvas` of the manifest. The same function
counts what is made and, in `validate`, what is found.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt64

from cxr_jax.data.records import NEGATIVE, POSITIVE, SEXES, SPLITS, UNKNOWN_LABEL, VIEWS
from data_prep.columns import Columns

_LABEL_NAMES = {"positive": POSITIVE, "negative": NEGATIVE, "unknown": UNKNOWN_LABEL}


def count(
    columns: Columns,
    rows: np.ndarray,
    split: UInt8[np.ndarray, " n"],
    patient: UInt64[np.ndarray, " n"],
    vocabulary: tuple[str, ...],
) -> dict[str, Any]:
    """The manifest's `counts` of these rows; names that could occur but did not have the count 0."""
    split, patient, labels = split[rows], patient[rows], columns.labels[rows]
    splits = [name for code, name in enumerate(SPLITS) if (split == code).any()]
    here = {name: split == SPLITS.index(name) for name in splits}
    patients = {name: len(np.unique(patient[here[name]])) for name in splits}
    mask, boxes = columns.annotated[rows].sum(0).tolist()
    return {
        "images": len(rows),
        "patients": sum(patients.values()),
        "images_with_mask": mask,
        "images_with_boxes": boxes,
        "source": {name: number for name, number in sorted(_named(columns.source[rows], columns.sources)) if number},
        "split": {name: int(here[name].sum()) for name in splits},
        "patients_per_split": patients,
        "view": dict(_named(columns.view[rows], VIEWS)),
        "sex": dict(_named(columns.sex[rows], SEXES)),
        "label": _labels(labels, vocabulary),
        "label_per_split": {name: _labels(labels[here[name]], vocabulary) for name in splits},
    }


def canvas(columns: Columns, rows: np.ndarray) -> dict[str, int]:
    """The largest stored height and width, px."""
    height, width = columns.size[rows].max(0).tolist()
    return {"height": height, "width": width}


def _named(codes: np.ndarray, names: tuple[str, ...] | list[str]) -> list[tuple[str, int]]:
    return list(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def _labels(labels: np.ndarray, vocabulary: tuple[str, ...]) -> dict[str, dict[str, int]]:
    return {
        label: {name: int((labels[:, index] == value).sum()) for name, value in _LABEL_NAMES.items()}
        for index, label in enumerate(vocabulary)
    }
