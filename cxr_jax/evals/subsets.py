"""A part of the patients, as if no more labels had been paid for.

In: labels `[n, c]` and patients of one role's rows, an amount, a seed. Out: the rows of the drawn patients.

    fraction f    max(1, round(f P)) of the P patients with a positive label, and likewise of those without one
    k shots       patients in random order, until each class has k with a positive and k with a negative label

A patient is drawn with all images. Draws of one seed are nested: more labels never means others. Training rows come
from the training split and selection rows from the selection split, always: the selection split's labels are paid for
too, so it shrinks in the same proportion, and none of its rows is ever trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from cxr_jax.evals.task import Task

SELECTIONS = ("in_proportion", "all")


@dataclass(frozen=True)
class Amount:
    """A fraction of the patients, or so many patients of each label (`shots`); one of the two is None."""

    fraction: float | None = None
    shots: int | None = None

    @property
    def name(self) -> str:
        """As the tables call it: `10 %`, or `8 shots`."""
        return f"{100 * self.fraction:g} %" if self.shots is None else f"{self.shots} shots"


@dataclass(frozen=True)
class Drawn:
    """Rows drawn from the training split, and from the selection split."""

    train: Integer[np.ndarray, " m"]
    select: Integer[np.ndarray, " v"]


def everything(task: Task) -> Drawn:
    """All rows of both splits."""
    return Drawn(*(np.arange(len(task.labels[role])) for role in ("train", "select")))


def amounts(fractions: Sequence[float], shots: Sequence[int]) -> list[Amount]:
    """Shots, then fractions, each rising. Raises ValueError for none at all and for numbers that are no amounts."""
    wrong = [fraction for fraction in fractions if not 0 < fraction <= 1] + [k for k in shots if k < 1]
    if wrong or not (fractions or shots):
        raise ValueError(
            f"label_efficiency: fractions={tuple(fractions)}, shots={tuple(shots)}; legal are fractions above 0 and "
            "up to 1, and shots from 1, one or more of them in all"
        )
    return [Amount(shots=k) for k in sorted(shots)] + [Amount(fraction=f) for f in sorted(fractions)]


def draw(
    train: tuple[Integer[np.ndarray, "n c"], Shaped[np.ndarray, " n"]],
    select: tuple[Integer[np.ndarray, "s c"], Shaped[np.ndarray, " s"]],
    amount: Amount,
    seed: int,
    selection: str = "in_proportion",
    targets: Sequence[str] = (),
) -> Drawn:
    """Rows of a part of both splits, each given as (labels, patients).

    Of the selection split as large a share of the patients is drawn as of the training split, unless `selection` is
    `all`. `targets` name the classes in errors.

    Raises:
      ValueError: the splits have too few patients for the amount, or `selection` is unknown.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"label_efficiency.selection={selection!r}: legal are {', '.join(SELECTIONS)}")
    patients = len(np.unique(train[1]))
    if amount.shots is None:
        rows = _fraction(*train, amount.fraction, seed, "training")
    else:
        rows = _shots(*train, amount.shots, seed, targets)
    share = len(np.unique(train[1][rows])) / patients
    if selection == "all" or share == 1:
        return Drawn(rows, np.arange(len(select[1])))
    # At least one patient of each kind, or nothing could be chosen.
    share = max(share, least_fraction(len(np.unique(select[1]))))
    return Drawn(rows, _fraction(*select, min(share, 1.0), seed, "selection"))


def least_fraction(patients: int) -> float:
    """The smallest fraction, to three digits, that is two patients."""
    return float(np.ceil(2000 / max(patients, 1)) / 1000)


def _order(labels, patients, seed) -> tuple[Shaped[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
    """Patients in the random order of a seed, and which of them have a positive label."""
    names, of_row = np.unique(patients, return_inverse=True)
    positive = np.zeros(len(names), bool)
    np.logical_or.at(positive, of_row, (labels == 1).any(axis=1))
    order = np.random.default_rng(seed).permutation(len(names))
    return names[order], positive[order]


def _fraction(labels, patients, fraction: float, seed: int, split: str) -> Integer[np.ndarray, " m"]:
    names, positive = _order(labels, patients, seed)
    if fraction * len(names) < 2 - 1e-9:
        raise ValueError(
            f"label_efficiency.fractions: {fraction:g} of the {len(names)} patients of the {split} split is less than "
            f"two, one with a positive label and one without; the least here is {least_fraction(len(names)):g}"
        )
    kinds = [kind for kind in (names[positive], names[~positive]) if len(kind)]
    drawn = [kind[: max(1, round(fraction * len(kind)))] for kind in kinds]
    return np.flatnonzero(np.isin(patients, np.concatenate(drawn)))


def _shots(labels, patients, shots: int, seed: int, targets: Sequence[str]) -> Integer[np.ndarray, " m"]:
    names, _ = _order(labels, patients, seed)
    drawn: set = set()
    for c in range(labels.shape[1]):
        for value in (1, 0):
            having = set(patients[labels[:, c] == value].tolist())
            if len(having) < shots:
                raise ValueError(
                    f"label_efficiency.shots: {shots} patients are asked for, and {len(having)} of the training split "
                    f"have a {'positive' if value else 'negative'} label of {targets[c] if targets else f'class {c}'}"
                )
            ordered = [name for name in names.tolist() if name in having]
            drawn |= set(ordered[:shots])
    return np.flatnonzero(np.isin(patients, np.array(sorted(drawn), patients.dtype)))
