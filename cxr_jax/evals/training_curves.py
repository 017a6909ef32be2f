"""Training curves from a run's metrics.jsonl, sorted into panels by the names of the metrics.

In: one JSON object per log step, with `step` and any scalars. Out: (heading, SVG) per panel that has something to draw.
"""

import json
import math
from pathlib import Path

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
    ("Validation", ("auroc", "auprc"), False),
    ("Images per second", ("images_per_sec",), False),
    ("Share of time waiting for data", ("data_wait_frac",), False),
)
SERIES_PER_PANEL = len(figures.SERIES)


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of every scalar; a torn last line and values that are not finite are left out.

    Raises:
      FileNotFoundError: names the file.
      ValueError: names the line that is not JSON (the last one may be torn: a run can be read while it writes).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; training curves need the metrics.jsonl of a run directory")
    lines = path.read_text(encoding="utf-8").splitlines()
    points: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{path} line {number} is not JSON; expected one object per log step") from None
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.array(column, float) for column in zip(*rows, strict=True)) for name, rows in points.items()}


def training_panels(path: str | Path) -> list[tuple[str, str]]:
    """(heading, SVG) of each panel of `PANELS` for which the run logged something."""
    remaining, panels = read_metrics(path), []
    for heading, wanted, log in PANELS:
        names = [name for name in remaining if any(part in name for part in wanted)]
        series = {name: remaining.pop(name) for name in names}
        if not series:
            continue
        log = log and all((values > 0).all() for _, values in series.values())
        chunks = [names[i : i + SERIES_PER_PANEL] for i in range(0, len(names), SERIES_PER_PANEL)]
        for part, chunk in enumerate(chunks):
            label = heading if part == 0 else f"{heading} ({part + 1})"
            panels.append((label, figures.lines(label, {name: series[name] for name in chunk}, log=log)))
    return panels
