"""Sweeps: many runs of one config, each with overrides of its own, told in plain Python.

    def get_sweep():
        return Sweep(
            config="configs/pretrain/small_mae.py",
            runs=product(
                vary("optim.base_learning_rate", 5e-4, 1.5e-3, 5e-3),
                vary("objective.mask_ratio", 0.5, 0.75),
            ),
        )

Overrides are a dict of ml_collections paths, `{"objective.mask_ratio": 0.5}`; runs are a list of such dicts, so
whatever makes such a list will do. `launch.sweep` runs them; nothing is imported here, so nothing can be slow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Overrides = Mapping[str, Any]
Runs = Sequence[Overrides]
ENTRIES = ("train", "evaluate")
# What a run directory has of its own; a stage's folder lies beside them.
RUN_FOLDERS = {"checkpoints", "teachers", "tensorboard", "examples", "profile", "compiled", "logs", "state", "wandb"}
RUN_STAGE = "run"  # what the run itself is called among its commands
STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+-]{0,63}")  # a folder's and a log's; no dot, as run.json has
CONFIG = "config"  # in place of a path, it varies the config file itself


@dataclass(frozen=True)
class Stage:
    """A command that follows a run, with a config of its own; its folder is `RUN/NAME`.

    `config.init_from` becomes the run itself, or the folder of the stage named by `init_from`. A following training
    reads the dataset of the run unless `overrides` name another.
    """

    config: str
    overrides: Overrides = field(default_factory=dict)
    entry: str = "evaluate"
    init_from: str = ""

    def __post_init__(self):
        _check_overrides("Stage.overrides", self.overrides)
        _check_entry("Stage.entry", self.entry)


@dataclass(frozen=True)
class Sweep:
    """Runs of `config` by `python -m cxr_jax.<entry>`; `fixed` overrides hold for all, `then` follows each run."""

    config: str
    runs: Runs
    fixed: Overrides = field(default_factory=dict)
    then: Mapping[str, Stage] = field(default_factory=dict)
    entry: str = "train"

    def __post_init__(self):
        _check_entry("Sweep.entry", self.entry)
        _check_overrides("Sweep.fixed", self.fixed)
        if isinstance(self.runs, Mapping) or not isinstance(self.runs, Sequence) or not self.runs:
            raise ValueError(f"Sweep.runs={self.runs!r}: expected a list of overrides with at least one run")
        for overrides in self.runs:
            _check_overrides("Sweep.runs", overrides)
            both = sorted(overrides.keys() & self.fixed.keys())
            if both:
                raise ValueError(f"Sweep.fixed and a run of Sweep.runs both set {', '.join(both)}")
        done: list[str] = []
        for name, stage in self.then.items():
            _check_stage(name)
            if not isinstance(stage, Stage):
                raise ValueError(f"Sweep.then[{name!r}] is {stage!r}, no Stage")
            if stage.init_from and stage.init_from not in done:
                raise ValueError(
                    f"Sweep.then[{name!r}].init_from={stage.init_from!r}: legal are the stages before it, "
                    f"{', '.join(done) or 'none'}; empty is the run"
                )
            done.append(name)


def vary(path: str, *values: Any) -> list[dict[str, Any]]:
    """One run per value of one key; `"config"` varies the config file."""
    return [{path: value} for value in values]


def product(*parts: Runs) -> list[dict[str, Any]]:
    """Every combination; the last part changes fastest. Raises ValueError if two parts set one key."""
    runs: list[dict[str, Any]] = [{}]
    for part in parts:
        runs = [_joined(run, overrides) for run in runs for overrides in part]
    return runs


def zipped(*parts: Runs) -> list[dict[str, Any]]:
    """The first of each part, the second of each, ...; raises ValueError unless all are equally long."""
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(f"zipped: parts of {', '.join(map(str, lengths))} runs; they must be equally many")
    runs: list[dict[str, Any]] = [{} for _ in range(max(lengths, default=0))]
    for part in parts:
        runs = [_joined(run, overrides) for run, overrides in zip(runs, part, strict=True)]
    return runs


def chain(*parts: Runs) -> list[dict[str, Any]]:
    """The runs of one part after those of the other."""
    return [dict(overrides) for part in parts for overrides in part]


def _joined(first: Overrides, second: Overrides) -> dict[str, Any]:
    both = sorted(first.keys() & second.keys())
    if both:
        raise ValueError(f"{', '.join(both)} is set twice; every part of a product or zipped has keys of its own")
    return {**first, **second}


def _check_overrides(where: str, overrides: Overrides) -> None:
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ValueError(f"{where}: {overrides!r} is no dict of config paths, such as {{'objective.mask_ratio': 0.5}}")


def _check_stage(name: str) -> None:
    taken = RUN_FOLDERS | {RUN_STAGE}
    if not isinstance(name, str) or not STAGE_NAME.fullmatch(name) or name in taken:
        raise ValueError(
            f"Sweep.then[{name!r}]: a stage's name is a folder in its run; legal are up to 64 letters, digits, _, + "
            f"and -, but not {', '.join(sorted(taken))}"
        )


def _check_entry(where: str, entry: str) -> None:
    if entry not in ENTRIES:
        raise ValueError(f"{where}={entry!r}: legal are {', '.join(ENTRIES)}")
