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

from configs.sweeps import RUN_FOLDERS
from cxr_jax.config_reading import flatten
from launch.collecting.scalars import Curve, as_curves, read_scalars
from launch.sweeping.execute import FAILED, WAITING, Record, is_locked
from launch.sweeping.runs import MANIFEST, SweepError, read_manifest

RUN, METRICS, RESULTS = "run.json", "metrics.jsonl", "results.json"
FINISHED, RUNNING, DAMAGED = "finished", "running", "damaged"
# What run.json says in objects.
SECTIONS = ("config", "overrides", "environment")
SCORES = ("auroc_macro", "auprc_macro")


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
        inner[:] = sorted(name for name in inner if name not in RUN_FOLDERS)  # these may hold very many files
        yield Path(folder)


def read_run(folder: Path, name: str, said: str | None = None) -> Found:
    """What a run directory tells; never raises for what is missing or damaged."""
    run = Found(name, folder, WAITING)
    about = _read_json(folder / RUN, run.problems)
    if about:
        run.about = {key: _section(about, key, run.problems) for key in SECTIONS if key in about}
        run.about = about | run.about
        run.config = flatten(run.about.get("config", {}))
        run.overrides = {key: run.config.get(key, value) for key, value in run.about.get("overrides", {}).items()}
        command = about.get("command", "")
        if not isinstance(command, str):
            run.problems.append(f"{RUN}: 'command' holds no text but {_short(command)}")
        words = str(command).split()
        run.file = next((w.partition("=")[2] for w in words if w.lstrip("-").startswith("config=")), "")
    scalars = read_scalars(folder / METRICS)
    run.problems += scalars.problems
    run.curves = as_curves(scalars.finite)
    run.step = scalars.step
    saved = [int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdecimal()]
    total = run.config.get("total_steps")
    if saved and max(saved) == total:
        run.state, run.step = FINISHED, total
    elif is_locked(folder):
        run.state = RUNNING
    elif run.step or saved or run.config:
        run.state = f"stopped at {run.step}"
    elif run.problems:
        run.state = DAMAGED
    if said and run.state != RUNNING:
        run.state = said
    return run


def _section(about: dict[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    """A part of run.json that has to be an object; what is none is told and counts as empty."""
    found = about[key]
    if isinstance(found, dict):
        return found
    problems.append(f"{RUN}: {key!r} holds no object but {_short(found)}; it is left out")
    return {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


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
        evaluated = results.get("evaluated")
        named = Path(str(evaluated.get("run", "") if isinstance(evaluated, dict) else "")).resolve()
        owner = named if named in runs else None
    if owner is None:
        notes.append(f"{folder}: the run that it evaluated is not among these; left out")
        return
    run = runs[owner]
    run.problems += [f"{folder.name}: {problem}" for problem in problems]
    name = str(here.relative_to(owner)) if here.is_relative_to(owner) and here != owner else folder.name
    for score in SCORES if results else ():
        value, interval = results.get(score), results.get(f"{score}_interval")
        whole = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
        low, high = interval if isinstance(interval, list) and whole else (None, None)
        if value is not None and _is_number(value):
            run.scores[f"{name}/{score}"] = Score(value, low, high)
        if not (value is None or _is_number(value)) or not (interval is None or whole):
            run.problems.append(f"{folder.name}: {score} of {RESULTS} is no number with an interval of two")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no object")
        return {}
    return content
