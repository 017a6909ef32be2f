"""Where scalars go besides metrics.jsonl: TensorBoard, and on request Weights & Biases or MLflow.

In: scalars by name at steps. Out: whatever the tracker keeps. None of them is needed, and none can end a run: one that
fails is told of once and left. The two on request are extras (`pip install wandb`, `pip install mlflow`); they take
addresses and offline modes from their own environment variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI).

A run that goes on writes into the same entry of the tracker: its number stands in the run directory's trackers.json.
"""

import importlib
import importlib.util
import json
import math
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tensorboardX import SummaryWriter

IDS = "trackers.json"
MLFLOW_BATCH = 100  # parameters that MLflow takes at once


@runtime_checkable
class Writer(Protocol):
    """What a tracker has to do."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step; a step may come again after a resume."""

    def close(self) -> None:
        """Flush and end."""


class TensorBoard:
    """Event files in `workdir/tensorboard`; those of `start_step` and later are superseded."""

    def __init__(self, workdir: Path, start_step: int):
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point per scalar."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        self._board.close()


class WandB:
    """A run of Weights & Biases; its own axis `step` allows steps to come again."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project,
            name=workdir.name,
            dir=str(workdir),
            id=_remembered(workdir, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            config=dict(config),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point per scalar."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


class MLflow:
    """A run of the MLflow experiment `project`; the flat config is its parameters."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        mlflow = importlib.import_module("mlflow")
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()

        def begin() -> str:
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            run_id = self._client.create_run(number, run_name=workdir.name).info.run_id
            params = [self._entities.Param(key, str(value)) for key, value in config.items()]
            for i in range(0, len(params), MLFLOW_BATCH):
                self._client.log_batch(run_id, params=params[i : i + MLFLOW_BATCH])
            return run_id

        self._run_id = _remembered(workdir, "mlflow", begin)
        self._client.update_run(self._run_id, status="RUNNING")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point per finite scalar, under names that MLflow allows."""
        now = int(1000 * time.time())
        points = [
            self._entities.Metric(re.sub(r"[^\w./ :-]", "_", name), value, now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._run_id, metrics=points)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)


TRACKERS: dict[str, Callable[..., Writer]] = {"wandb": WandB, "mlflow": MLflow}


class Guarded:
    """A writer that cannot fail: after its first error it is told of and left alone."""

    def __init__(self, name: str, writer: Writer):
        self._name = name
        self._writer: Writer | None = writer

    def _try(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception as error:  # whatever a tracker and its network raise
            self._writer = None
            _warn(self._name, error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """As the writer's."""
        self._try("write", step, values)

    def close(self) -> None:
        """As the writer's."""
        self._try("close")


def _warn(name: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:300]
    print(f"warning: {name}: {type(error).__name__}: {text}; it gets no more of this run", file=sys.stderr)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is none, or that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"log.trackers={tuple(names)}: {name!r} is none; legal are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.trackers={tuple(names)}: {name} is not installed; pip install {name}, or leave it out "
                "(metrics.jsonl is always written, TensorBoard with log.tensorboard=True)"
            )


def open_trackers(names: Sequence[str], workdir: Path, project: str, config: Mapping[str, Any]) -> list[Writer]:
    """The writers of `names`; `config` is flat. One that cannot begin is told of and left out."""
    writers: list[Writer] = []
    for name in names:
        try:
            writers.append(Guarded(name, TRACKERS[name](workdir, project, config)))
        except Exception as error:  # no account, no network, no disk
            _warn(name, error)
    return writers


def _remembered(workdir: Path, name: str, make: Callable[[], str]) -> str:
    """The id that trackers.json has for `name`, or else a new one, which is put there."""
    path = workdir / IDS
    ids = json.loads(path.read_text()) if path.exists() else {}
    if name not in ids:
        ids[name] = make()
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(ids) + "\n")
        temporary.replace(path)
    return ids[name]
