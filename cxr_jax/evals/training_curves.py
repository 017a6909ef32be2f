"""Training curves from a run's metrics.jsonl, sorted into panels by the names of the metrics.

In: one JSON object per log step, with `step` and any scalars; a step may have a few of them only. Out: (heading, SVG)
per panel that has something to draw, and sentences about collapse.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.evals import figures

# Heading, substrings that bring a metric here, logarithmic axis. A metric goes to the first panel that wants it.
PANELS = (
    ("Loss terms", ("loss",), False),
    ("Teacher entropy (nats)", ("entropy",), False),
    ("Feature rank", ("rank",), False),
    ("Feature spread", ("spread",), False),
    ("Prototype use", ("prototype",), False),
    ("Learning rate", ("learning_rate",), False),
    ("Gradient norm", ("grad_norm",), True),
    ("Online probe, AUROC of nearest neighbours", ("probe_auroc",), False),
    ("Validation", ("auroc", "auprc"), False),
    ("Images per second", ("images_per_sec",), False),
    ("Share of time waiting for data", ("data_wait_frac",), False),
)
SERIES_PER_PANEL = len(figures.SERIES)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last one is left out.

    Raises:
      FileNotFoundError: names the file.
      ValueError: names the line that is not JSON (the last one may be torn: a run can be read while it writes).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; training curves need the metrics.jsonl of a run directory")
    lines, rows = path.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path} line {number} is not JSON; expected one object per log step") from None
    return rows


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of every scalar; values that are not finite are left out. Raises as `read_rows`."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.array(column, float) for column in zip(*rows, strict=True)) for name, rows in points.items()}


def collapse_sentences(path: str | Path) -> list[str]:
    """For every kind of collapse that the run was warned of: when, and whether it still held at the end."""
    logged = [row for row in read_rows(path) if "loss" in row]
    held: dict[str, list[bool]] = {}
    for number, row in enumerate(logged):
        for kind in row.get("collapse", ()):
            held.setdefault(kind, [False] * len(logged))[number] = True
    sentences = []
    for kind, at in held.items():
        first, last = at.index(True), len(at) - 1 - at[::-1].index(True)
        end = "to the end of the run" if at[-1] else f"to step {logged[last]['step']}"
        gaps = "" if all(at[first : last + 1]) else ", with breaks"
        sentences.append(f"The run warned: {kind}, from step {logged[first]['step']} {end}{gaps}.")
    return sentences


def training_panels(path: str | Path) -> list[tuple[str, str]]:
    """(heading, SVG) of each panel of `PANELS` for which the run logged something."""
    remaining, panels = read_metrics(path), []
    bands = {}
    for name in [name for name in remaining if f"{name}_low" in remaining]:
        (steps, low), (_, high) = remaining.pop(f"{name}_low"), remaining.pop(f"{name}_high")
        bands[name] = steps, low, high
    for heading, wanted, log in PANELS:
        names = [name for name in remaining if any(part in name for part in wanted)]
        series = {name: remaining.pop(name) for name in names}
        if not series:
            continue
        log = log and all((values > 0).all() for _, values in series.values())
        chunks = [names[i : i + SERIES_PER_PANEL] for i in range(0, len(names), SERIES_PER_PANEL)]
        for part, chunk in enumerate(chunks):
            label = heading if part == 0 else f"{heading} ({part + 1})"
            panels.append((label, figures.lines(label, {name: series[name] for name in chunk}, bands=bands, log=log)))
    return panels
