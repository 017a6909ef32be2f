"""The scalars of a metrics.jsonl, also of one that was cut or damaged.

In: a file with one JSON object per log step. Out: its good lines as curves, the step that it reached, and sentences
about lines that cannot be read and scalars that were no numbers.

`cxr_jax.evals.training_curves` refuses a damaged file, as a report must; a comparison shows what is left.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAX_STEP = 2**53  # a float64 counts to here
MAX_TOLD = 4  # names in a sentence
Points = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Curve:
    """A scalar over training steps, with its interval at each step where the run logged one."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass
class Scalars:
    """`finite`: steps and values by name; `step`: how many steps the lines reach; `problems`: sentences."""

    finite: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    step: int = 0
    problems: list[str] = field(default_factory=list)


def read_scalars(path: Path) -> Scalars:
    """The scalars of `path`; nothing of a file that is not there. Never raises for what stands in it."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Scalars()
    except OSError as error:
        return Scalars(problems=[f"{path.name} cannot be read: {error}"])
    # A run that is writing, or was killed, leaves its last line without an end.
    if lines[-1].startswith(b"{") or not lines[-1]:
        lines = lines if _row(lines[-1]) else lines[:-1]
    rows = [_row(line) for line in lines]
    good = [row for row in rows if row is not None]
    found = Scalars(step=max((row["step"] for row in good), default=-1) + 1)
    if len(good) < len(rows):
        first = next(number for number, row in enumerate(rows, start=1) if row is None)
        found.problems.append(
            f"{path.name} is damaged: {len(rows) - len(good)} of its {len(rows)} lines cannot be read, the first is "
            f"line {first}" + ("; the others are used" if good else "")
        )
    points: dict[str, list[tuple[int, float]]] = {}
    lost: dict[str, list[int]] = {}
    for row in good:
        for name, value in row.items():
            if name == "step" or not (value is None or isinstance(value, int | float)):
                continue
            if value is not None and _is_finite(value):
                points.setdefault(name, []).append((row["step"], value))
            else:
                lost.setdefault(name, []).append(row["step"])
    for name, pairs in points.items():
        steps_and_values = np.array(pairs, float)
        found.finite[name] = steps_and_values[:, 0], steps_and_values[:, 1]
    if lost:
        told = [
            f"{name} (in {len(steps)} of {len(steps) + len(points.get(name, ()))} lines, first at step {steps[0]})"
            for name, steps in lost.items()
        ]
        more = f" and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
        found.problems.append(f"not finite: {', '.join(told[:MAX_TOLD])}{more}")
    return found


def _row(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or None where it is none of a step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and 0 <= step < MAX_STEP else None


def _is_finite(value: float | None) -> bool:
    try:
        return value is not None and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def as_curves(scalars: Points) -> dict[str, Curve]:
    """Curves with their `_low` and `_high` as intervals."""
    curves = {}
    for name, (steps, values) in scalars.items():
        if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in scalars:
            continue
        low, high = (dict(zip(*scalars.get(f"{name}_{end}", ((), ())), strict=True)) for end in ("low", "high"))
        bands = [np.array([side.get(step, np.nan) for step in steps]) if side else None for side in (low, high)]
        curves[name] = Curve(steps, values, *bands)
    return curves
