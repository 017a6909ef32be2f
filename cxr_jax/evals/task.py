"""What is scored: rows, targets, and who the patients are; the same for every column of a report.

In: one or two datasets, the names of three splits, a choice of rows and targets. Out: a `Task`, whose splits share no
patient. Training and selection rows may come from elsewhere than the test rows (`train_path`, `train_where`): another
hospital, another dataset.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split, open_split
from cxr_jax.evals.classification import require_disjoint_patients
from cxr_jax.evals.features import identities, make_runner
from cxr_jax.evals.rows import keep_images

ROLES = ("train", "select", "test")
SPLIT_KEYS = {"train": "train_split", "select": "select_split", "test": "split"}  # of `config.data`


@dataclass(frozen=True)
class Task:
    """The rows by role (`train`, `select`, `test`), their labels `[n, c]` and patients.

    `runner(function, geometry, mirrored=False)` makes the function that runs over a split, see `features.make_runner`.
    With `flip`, test scores are means over an image and its mirror picture (`over_mirror`). `beside` holds, by role, a
    second image of each row's study (`studies.pair_views`); {} where rows are single images.
    """

    splits: dict[str, Split]
    targets: tuple[str, ...]
    labels: dict[str, np.ndarray]
    patients: dict[str, np.ndarray]
    runner: Callable[..., Callable[[Split, Any], dict[str, np.ndarray]]]
    flip: bool = False
    beside: dict[str, Split] = field(default_factory=dict)

    def over_mirror(self, scores: Callable[[bool], np.ndarray]) -> np.ndarray:
        """`scores(mirrored)` of the test rows; with `flip` the mean of both.

        A mirrored chest has its heart on the wrong side: a network that never saw one may do worse, and a finding of
        one side is averaged with one that nobody has. Off unless asked for.
        """
        plain = scores(False)
        return (plain + scores(True)) / 2 if self.flip else plain


def open_role(role: str, path: str, name: str, **options: Any) -> Split:
    """`open_split` of the rows of a role; what it finds wrong with split or targets is told behind their key."""
    try:
        return open_split(path, name, **options)
    except DataError as error:
        text = str(error)
        key = ".targets" if text.startswith("target ") else f".{SPLIT_KEYS[role]}" if "has no split" in text else ""
        raise DataError(f"config.data{key}: {text}") from None


def open_task(
    path: str,
    *,
    splits: Mapping[str, str],
    where: Mapping[str, str],
    targets: Sequence[str],
    cache_dir: str = "",
    train_path: str = "",
    train_where: Mapping[str, str] | None = None,
    only_images: str = "",
    train_only_images: str = "",
    flip: bool = False,
    trains: bool = True,
    batch_size: int,
    sharding: NamedSharding,
) -> Task:
    """Open the splits of a task, `splits` naming one for each of `ROLES`.

    Args:
      train_path: dataset of the training and selection rows; "" is `path`.
      train_where: the choice of these rows; None is `where`.
      only_images: file of image ids (`rows.read_ids`): of the test rows only these are kept. `train_only_images`: the
        same for training and selection rows.
      flip: scores are means over an image and its mirror picture.
      trains: something is going to be trained on the training rows, so every target has to be known there.

    Raises DataError if the splits share a patient, if a list leaves nothing, or if a target is unknown in all training
    rows.
    """
    opened = {}
    for role in ROLES:
        test = role == "test"
        chosen = where if test or train_where is None else train_where
        place = path if test else train_path or path
        split = open_role(role, place, splits[role], where=chosen, targets=targets, cache_dir=cache_dir)
        file = only_images if test else train_only_images
        opened[role] = keep_images(split, file, "only_images" if test else "train_only_images") if file else split
    patients = {role: identities(split, "patient_id") for role, split in opened.items()}
    try:
        require_disjoint_patients(**patients)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None

    @functools.cache
    def runner(function, geometry, mirrored=False):
        return make_runner(function, geometry=geometry, batch_size=batch_size, sharding=sharding, mirrored=mirrored)

    labels = {role: split.labels(targets) for role, split in opened.items()}
    unknown = [target for c, target in enumerate(targets) if (labels["train"][:, c] < 0).all()]
    if trains and unknown:
        raise DataError(
            f"{train_path or path}: every label of {', '.join(unknown)} is unknown in the {len(opened['train'])} rows "
            f"of split {splits['train']!r}, so nothing can be learnt of it; leave it out of data.targets"
        )
    return Task(opened, tuple(targets), labels, patients, runner, flip)
