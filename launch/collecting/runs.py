"""Which runs lie below a folder, and what each of them left: whole, half-written or damaged.

In: folders. Out: a `Found` per training, with its scalars, its evaluations, and what could not be read.

An evaluation (results.json) belongs to the run in whose folder it lies, or else to the run it names. A training within
the folder of another (a stage of a sweep) belongs to that: its scalars are called `STAGE/loss`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.config_reading import flatten
from cxr_jax.evals.training_curves import read_metrics
from launch.sweeping.execute import FAILED, WAITING, Record, is_locked
from launch.sweeping.runs import MANIFEST, SweepError, read_manifest

RUN, METRICS, RESULTS = "run.json", "metrics.jsonl", "results.json"
# Folders of a run that hold no runs, and may hold very many files.
OTHERS = {"checkpoints", "teachers", "tensorboard", "examples", "profile", "compiled", "logs", "state"}
FINISHED, RUNNING = "finished", "running"
SCORES = ("auroc_macro", "auprc_macro")


@dataclass(frozen=True)
class Curve:
    """A scalar over training steps, with its interval at each step where the run logged one."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """A number of an evaluation with its interval."""

    value: float
    low: float | None
    high: float | None


@dataclass
class Found:
    """A run and what it left; `problems` are sentences about what could not be read."""

    name: str
    path: Path
    state: str
    step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find(roots: Sequence[Path]) -> tuple[list[Found], list[str]]:
    """The runs below `roots`, in the order of the sweep or else of their names; and what was left out."""
    runs: dict[Path, Found] = {}
    reports: list[Path] = []
    notes: list[str] = []
    for root in roots:
        planned = _planned(root, notes)
        base = root if len(roots) == 1 else root.parent
        for folder in [*planned, *sorted(_folders(root))]:
            key = folder.resolve()
            if (folder / RESULTS).exists():
                reports.append(folder)
            if key in runs or not (folder in planned or (folder / RUN).exists() or (folder / METRICS).exists()):
                continue
            name = str(folder.relative_to(base)) if folder != base else folder.resolve().name
            runs[key] = read_run(folder, name, planned.get(folder))
    for path, run in list(runs.items()):
        parent = next((runs[p] for p in path.parents if p in runs), None)
        if parent:
            stage = str(path.relative_to(parent.path.resolve()))
            parent.curves |= {f"{stage}/{name}": curve for name, curve in run.curves.items()}
            parent.problems += [f"{stage}: {problem}" for problem in run.problems]
    for folder in dict.fromkeys(reports):
        _attach(folder, runs, notes)
    nested = {path for path in runs if any(p in runs for p in path.parents)}
    return [run for path, run in runs.items() if path not in nested], notes


def _planned(root: Path, notes: list[str]) -> dict[Path, str]:
    """The runs of a sweep in `root`, also those that have not begun: their folder and what the sweep says of them."""
    if not (root / MANIFEST).exists():
        return {}
    try:
        runs = read_manifest(root)
    except SweepError as error:
        notes.append(str(error))
        return {}
    planned = {}
    for run in runs:
        record = Record(root, run)
        states = {command.stage: record.state(command) for command in run.commands}
        failed = [stage for stage, state in states.items() if state == FAILED]
        said = f"{FAILED} ({failed[0]}, exit code {record.stages[failed[0]]['exit_code']})" if failed else ""
        # The folder may have been moved since: runs lie beside their sweep.json.
        planned[root / run.name] = said
    return planned


def _folders(root: Path) -> Iterator[Path]:
    for folder, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in OTHERS)
        yield Path(folder)


def read_run(folder: Path, name: str, said: str | None = None) -> Found:
    """What a run directory tells; never raises for what is missing or damaged."""
    run = Found(name, folder, WAITING)
    about = _read_json(folder / RUN, run.problems)
    if about:
        run.about = about
        run.config = flatten(about.get("config", {}))
        run.overrides = {key: run.config.get(key, value) for key, value in about.get("overrides", {}).items()}
        words = str(about.get("command", "")).split()
        run.file = next((w.partition("=")[2] for w in words if w.lstrip("-").startswith("config=")), "")
    if (folder / METRICS).exists():
        try:
            run.curves = _curves(read_metrics(folder / METRICS))
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            run.problems.append(f"{METRICS} is damaged: {error}")
    run.step = int(max((curve.steps[-1] for curve in run.curves.values()), default=-1)) + 1
    saved = [int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
    total = run.config.get("total_steps")
    if saved and max(saved) == total:
        run.state, run.step = FINISHED, total
    elif is_locked(folder):
        run.state = RUNNING
    elif run.curves or saved or about:
        run.state = f"stopped at {run.step}"
    if said and run.state != RUNNING:
        run.state = said
    return run


def _curves(scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Curve]:
    curves = {}
    for name, (steps, values) in scalars.items():
        if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in scalars:
            continue
        low, high = (dict(zip(*scalars.get(f"{name}_{end}", ((), ())), strict=True)) for end in ("low", "high"))
        bands = [np.array([side.get(step, np.nan) for step in steps]) if side else None for side in (low, high)]
        curves[name] = Curve(steps, values, *bands)
    return curves


def _attach(folder: Path, runs: dict[Path, Found], notes: list[str]) -> None:
    """Give the scores of an evaluation to its run."""
    problems: list[str] = []
    results = _read_json(folder / RESULTS, problems)
    here = folder.resolve()
    owner = next((path for path in (here, *here.parents) if path in runs), None)
    # A stage's own evaluation belongs to the run above the stage.
    while owner and (above := next((p for p in owner.parents if p in runs), None)):
        owner = above
    if owner is None and results:
        named = Path(str(results.get("evaluated", {}).get("run", ""))).resolve()
        owner = named if named in runs else None
    if owner is None:
        notes.append(f"{folder}: the run that it evaluated is not among these; left out")
        return
    run = runs[owner]
    run.problems += [f"{folder.name}: {problem}" for problem in problems]
    name = str(here.relative_to(owner)) if here.is_relative_to(owner) and here != owner else folder.name
    for score in SCORES if results else ():
        value, interval = results.get(score), results.get(f"{score}_interval") or (None, None)
        if isinstance(value, int | float):
            run.scores[f"{name}/{score}"] = Score(value, *interval)


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no object")
        return {}
    return content
