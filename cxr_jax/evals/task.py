"""What is scored: rows, targets, and who the patients are; the same for every column of a report.

In: a dataset, the names of three splits, a choice of rows and targets. Out: a `Task`, whose splits share no patient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split, open_split
from cxr_jax.evals.classification import require_disjoint_patients
from cxr_jax.evals.features import Geometry, ImageFunction, identities, make_runner

ROLES = ("train", "select", "test")


@dataclass(frozen=True)
class Task:
    """The rows by role (`train`, `select`, `test`), their labels `[n, c]` and patients.

    `runner(function, geometry)` makes the function that runs over a split, see `features.make_runner`.
    """

    splits: dict[str, Split]
    targets: tuple[str, ...]
    labels: dict[str, np.ndarray]
    patients: dict[str, np.ndarray]
    runner: Callable[[ImageFunction, Geometry], Callable[[Split, Any], dict[str, np.ndarray]]]


def open_task(
    path: str,
    *,
    splits: Mapping[str, str],
    where: Mapping[str, str],
    targets: Sequence[str],
    cache_dir: str = "",
    batch_size: int,
    sharding: NamedSharding,
) -> Task:
    """Open the splits of a task, `splits` naming one for each of `ROLES`. Raises DataError if they share a patient."""
    options = {"where": where, "targets": targets, "cache_dir": cache_dir}
    opened = {role: open_split(path, splits[role], **options) for role in ROLES}
    patients = {role: identities(split, "patient_id") for role, split in opened.items()}
    try:
        require_disjoint_patients(**patients)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None

    def runner(function, geometry):
        return make_runner(function, geometry=geometry, batch_size=batch_size, sharding=sharding)

    labels = {role: split.labels(targets) for role, split in opened.items()}
    return Task(opened, tuple(targets), labels, patients, runner)
