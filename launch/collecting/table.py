"""Runs against their overrides and metrics, as rows.

In: `runs.Found`. Out: a list of dicts with one set of columns: `run`, `state`, `step`, `total_steps`, the overrides
that differ between runs, and for every chosen metric

    M, M_best, M_best_step    the last value of a curve, its best, and when
    M_low, M_high             the metric's own interval; of a curve without one, the range of its last tenth

An evaluation's score stands once: `M`, `M_low`, `M_high`.
"""

import csv
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.collecting.runs import Found, Score
from launch.collecting.scalars import Curve

DEFAULT = ("loss", "probe_auroc*", "*/auroc_macro")
HIGHER_IS_BETTER = ("auroc", "auprc", "rank", "accuracy", "images_per_sec", "goodput", "spread", "entropy")
TAIL = 0.1


@dataclass(frozen=True)
class Summary:
    """A metric of one run in five numbers; `own_interval`: low and high are the metric's, not the range of a tail."""

    last: float
    best: float
    best_step: int | None
    low: float | None
    high: float | None
    own_interval: bool


def names_of(runs: Sequence[Found]) -> list[str]:
    """Every metric that some run has, curves first."""
    return list(dict.fromkeys([*(n for run in runs for n in run.curves), *(n for run in runs for n in run.scores)]))


def choose(runs: Sequence[Found], wanted: Sequence[str]) -> list[str]:
    """The metrics that `wanted` (names or patterns) means; nothing wanted means `DEFAULT`. Raises ValueError."""
    legal = names_of(runs)
    chosen: dict[str, None] = {}
    for pattern in wanted or DEFAULT:
        found = fnmatch.filter(legal, pattern)
        if wanted and not found:
            raise ValueError(
                f"--metrics={pattern}: no run has it; legal are {', '.join(legal) or 'none: nothing is logged'}"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def summarise(run: Found, name: str) -> Summary | None:
    """The metric of a run, or None where it has none."""
    if name in run.scores:
        score: Score = run.scores[name]
        return Summary(score.value, score.value, None, score.low, score.high, True)
    curve: Curve | None = run.curves.get(name)
    if curve is None or not len(curve.values):
        return None
    best = int(np.argmax(curve.values) if higher_is_better(name) else np.argmin(curve.values))
    given = False
    tail = curve.values[-max(2, round(TAIL * len(curve.values))) :]
    low, high = float(tail.min()), float(tail.max())
    if curve.low is not None and curve.high is not None and np.isfinite([curve.low[-1], curve.high[-1]]).all():
        given, low, high = True, float(curve.low[-1]), float(curve.high[-1])
    return Summary(float(curve.values[-1]), float(curve.values[best]), int(curve.steps[best]), low, high, given)


def higher_is_better(name: str) -> bool:
    """Whether the best of a metric is its largest value."""
    return any(word in name for word in HIGHER_IS_BETTER)


def varied(runs: Sequence[Found]) -> list[str]:
    """The overridden keys whose values differ between the runs, those with most values first; then the config file."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    begun = [run for run in runs if run.config]
    values = {key: {repr(run.config.get(key)) for run in begun} for key in keys}
    found = sorted((key for key in keys if len(values[key]) > 1), key=lambda key: -len(values[key]))
    return found + (["config"] if len({run.file for run in begun if run.file}) > 1 else [])


def columns_of(runs: Sequence[Found]) -> list[str]:
    """What tells the runs apart in a table: the varied keys, with `run` before them where they do not suffice."""
    keys = varied(runs)
    told = {tuple(repr(value_of(run, key)) for key in keys) for run in runs if run.config}
    return keys if keys and len(told) == len(runs) else ["run", *keys]


def value_of(run: Found, key: str) -> Any:
    """What a run has for a key of `columns_of`; empty where it does not say."""
    return {"run": run.name, "config": run.file}.get(key, run.config.get(key, ""))


def same(runs: Sequence[Found]) -> dict[str, Any]:
    """The overrides that all runs share."""
    begun = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in begun for key in run.overrides)
    return {k: begun[0].config.get(k) for k in keys if k not in varied(runs)} if begun else {}


def rows(runs: Sequence[Found], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One dict per run, all with the same columns; None where a run has nothing."""
    keys, table = varied(runs), []
    scores = {name for run in runs for name in run.scores}
    for run in runs:
        row = {"run": run.name, "state": run.state, "step": run.step, "total_steps": run.config.get("total_steps")}
        row |= {key: run.file if key == "config" else run.config.get(key) for key in keys}
        for name in metrics:
            found = summarise(run, name)
            columns = ("last", "low", "high") if name in scores else ("last", "best", "best_step", "low", "high")
            for column in columns:
                row[name if column == "last" else f"{name}_{column}"] = getattr(found, column, None)
        table.append(row)
    return table


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """The rows as CSV; lists as Python writes them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_parquet(path: Path, table: Sequence[dict[str, Any]]) -> bool:
    """The rows as Parquet; whether pyarrow, which TensorFlow Datasets brings, is there to write it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return False
    plain = {}
    for name in table[0]:
        values = [row[name] for row in table]
        kinds = {type(value) for value in values if value is not None}
        # A column has one type; what a config holds may be anything.
        as_it_is = kinds <= {int, float} or kinds <= {bool} or kinds <= {str}
        plain[name] = values if as_it_is else [None if value is None else str(value) for value in values]
    pyarrow.parquet.write_table(pyarrow.table(plain), path)
    return True


def as_text(runs: Sequence[Found], metrics: Sequence[str]) -> str:
    """The table for a terminal: overrides by their last part, `last [low, high]`, and a curve's best with its step."""
    keys = columns_of(runs)
    lines = [[*(key.split(".")[-1] for key in keys), "state", *metrics]]
    for run in runs:
        first = [_text(value_of(run, key)) for key in keys]
        lines.append([*first, run.state, *(spoken(summarise(run, name)) for name in metrics)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def spoken(found: Summary | None) -> str:
    """A summary in words."""
    if found is None:
        return "-"
    text = f"{found.last:.4g}"
    if found.low is not None:
        text += f" [{found.low:.4g}, {found.high:.4g}]"
    return text if found.best_step is None else f"{text} best {found.best:.4g} at {found.best_step}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
