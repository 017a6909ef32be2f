"""Label efficiency: what a head is worth that was trained on a part of the labels, over several draws of them.

In: a `Task`, columns that can be trained on any rows (`Fit`), amounts, seeds. Out: for every column and amount the
AUROC of each draw, their mean and spread, and a bootstrap interval of that mean.

    mean(a)      = 1/S sum_s AUROC(s, a)                       s: draws of patients, and of initial weights
    spread(a)    = standard deviation over s                   which patients one happens to have labelled
    interval(a)  = percentiles of mean(a) over resampled test patients, the same draws for every s

Spread and interval are two uncertainties: of the training patients, and of the test patients.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals.bootstrap import resampled_weights
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.ranking import rank, weighted_metrics
from cxr_jax.evals.subsets import Amount, Drawn, draw
from cxr_jax.evals.task import Task

# From the drawn rows and the seed of all else that is drawn.
Fit = Callable[[Drawn, int], Scores]


@dataclass(frozen=True)
class Point:
    """One amount of labels for one column: each draw, and the scores that came of it."""

    amount: Amount
    drawn: list[Drawn]
    scores: list[Scores]


def all_draws(
    task: Task, wanted: Sequence[Amount], seeds: Sequence[int], selection: str
) -> list[tuple[Amount, list[Drawn]]]:
    """The rows of every amount and seed, before anything is computed. Raises as `subsets.draw`."""
    both = [(task.labels[role], task.patients[role]) for role in ("train", "select")]
    return [(amount, [draw(*both, amount, seed, selection, task.targets) for seed in seeds]) for amount in wanted]


def run_curve(fit: Fit, draws: Sequence[tuple[Amount, list[Drawn]]], seeds: Sequence[int]) -> list[Point]:
    """Train and score for every amount and seed. The whole of the split is one draw; its seeds are of the weights."""
    return [
        Point(amount, drawn, [fit(rows, seed) for rows, seed in zip(drawn, seeds, strict=True)])
        for amount, drawn in draws
    ]


def summarise(task: Task, points: Sequence[Point], seeds: Sequence[int], bootstrap: Mapping[str, Any]) -> list[dict]:
    """A row for each amount, as results.json has it."""
    labels, patients, rows = task.labels["test"], task.patients["test"], []
    for point in points:
        values, interval = mean_over_draws([scores.test for scores in point.scores], labels, patients, **bootstrap)
        train = [drawn.train for drawn in point.drawn]
        counts = [len(np.unique(task.patients["train"][rows])) for rows in train]
        rows.append(
            {
                "amount": point.amount.name,
                "fraction": point.amount.fraction,
                "shots": point.amount.shots,
                "train_patients": _same(counts),
                "train_images": _same([len(rows) for rows in train]),
                "train_positives": [(task.labels["train"][rows] == 1).sum(0).tolist() for rows in train],
                "select_images": _same([len(drawn.select) for drawn in point.drawn]),
                "seeds": dict(zip(map(str, seeds), values, strict=True)),
                "mean": None if None in values else float(np.mean(values)),
                "spread": None if None in values or len(values) < 2 else float(np.std(values, ddof=1)),
                "interval": interval,
                "chosen": [scores.chosen for scores in point.scores],
            }
        )
    return rows


def _same(counts: Sequence[int]) -> int | list[int]:
    """One number where all draws have the same."""
    return counts[0] if len(set(counts)) == 1 else list(counts)


def mean_over_draws(
    scores: Sequence[Float[np.ndarray, "n c"]],
    labels: Integer[np.ndarray, "n c"],
    patients: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[list[float | None], list[float] | None]:
    """Macro AUROC of each draw, and the interval of their mean over test patients, all draws on the same resamples.

    A class that some draw could not learn, or that the test rows lack, is left out of every draw's mean.
    """
    rankings = [[rank(draw[:, c], labels[:, c]) for draw in scores] for c in range(labels.shape[1])]
    rankings = [classes for classes in rankings if all(ranking is not None for ranking in classes)]
    if not rankings:
        return [None] * len(scores), None

    def values(weights):
        """`[draws, r]`: mean over the classes that the resample knows."""
        found = np.array([[weighted_metrics(ranking, weights)[0] for ranking in classes] for classes in rankings])
        known = ~np.isnan(found)
        return np.where(known, found, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)

    points = values(np.ones((len(labels), 1)))[:, 0]
    samples = [values(weights).mean(0) for weights in resampled_weights(patients, resamples, seed)]
    interval = None
    if samples:
        tail = (1 - confidence) / 2
        interval = [float(x) for x in np.nanquantile(np.concatenate(samples), [tail, 1 - tail])]
    return [float(x) for x in points], interval


def table_lines(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The curves as lines of text, an amount a line, for the terminal."""
    names = list(curves)
    first = curves[names[0]]
    width = max(30, *(len(name) for name in names)) + 2
    lines = [f"{'labels':>10s} {'patients':>9s}  " + "".join(f"{name:{width}s}" for name in names)]
    for i, row in enumerate(first):
        cells = "".join(f"{_cell(curves[name][i]):{width}s}" for name in names)
        counts = row["train_patients"]
        shown = f"{min(counts)}-{max(counts)}" if isinstance(counts, list) else str(counts)
        lines.append(f"{row['amount']:>10s} {shown:>9s}  {cells}".rstrip())
    return lines


def _cell(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "undefined"
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    interval = "" if row["interval"] is None else " [{:.2f}, {:.2f}]".format(*row["interval"])
    return f"{row['mean']:.3f}{spread}{interval}"


def label_efficiency_scores(
    task: Task,
    fit: Fit,
    draws: Sequence[tuple[Amount, list[Drawn]]],
    seeds: Sequence[int],
    bootstrap: Mapping[str, Any],
) -> Scores:
    """The curve of one column; its scores are those of the last amount's first draw."""
    points = run_curve(fit, draws, seeds)
    curve = summarise(task, points, seeds, bootstrap)
    last = points[-1].scores[0]
    return dataclasses.replace(last, chosen={"amount": points[-1].amount.name, **last.chosen}, curve=curve)
