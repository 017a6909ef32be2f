"""Checkpoints: the only file that knows Orbax.

In: a `TrainState` and what must be said about it. Out: `checkpoints/<step>/` with separate items, so that a laptop or
an evaluation reads only its part:

    params      the student        targets   EMA teacher or frozen backbone
    opt_state   {"optimizer", "health"}      meta      JSON: config, model, geometry, fingerprint, data_skip, ...

Saving is asynchronous and commits by rename: a half-written step is never picked up. Restoring goes against the
abstract state, whatever the topology that wrote it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from cxr_jax.config import ConfigError
from cxr_jax.data.records import MANIFEST_NAME, DataError
from cxr_jax.sharding import path_name
from cxr_jax.state import TrainState

ARRAYS = ("params", "targets", "opt_state")
FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: str | Path, *, keep: int = 3):
        self._folder = Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=_handlers(ocp.StandardCheckpointHandler)
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of the checkpoints, rising; waits for a save under way."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start saving; returns once the arrays are copied, bytes are written behind."""
        step = int(state.step)
        if step == self.latest_step():
            return
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        meta = meta | {"step": step, "items": sorted(arrays)}
        self._manager.save(step, args=ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta)))

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, in the shardings of `abstract`, and its meta.

        Raises ConfigError naming the arrays that differ in another architecture, DataError when it is damaged.
        """
        step = self.latest_step()
        wanted = _items(abstract)
        with _reading(self._folder.parent, step, ", ".join(wanted)):
            saved = self._manager.item_metadata(step)
            for item in sorted(set(wanted) - {"opt_state"}):
                check_same_tree(shapes_by_path(saved[item]), wanted[item], f"{item} of step {step}")
            arrays = {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**arrays, meta=ocp.args.JsonRestore()))
        state = TrainState(
            step=jax.device_put(np.asarray(step, np.int32), abstract.step.sharding),
            params=restored.params,
            targets=restored.targets if "targets" in wanted else {},
            opt_state=restored.opt_state["optimizer"],
            health=restored.opt_state["health"],
        )
        return state, restored.meta

    def wait(self) -> None:
        """Return when every started save is on disk; raises what a save failed with."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release."""
        self._manager.close()


@contextmanager
def _reading(run_dir: str | Path, step: int, what: str) -> Iterator[None]:
    """Turn whatever a damaged checkpoint raises into a DataError that names the run, the step and what to do."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        others = [str(other) for other in steps_of(run_dir) if other != step]
        remedy = f"remove {FOLDER}/{step} to use step {others[-1]}" if others else "it is the only one"
        raise DataError(f"{run_dir}: checkpoint {step} is damaged ({what}: {why}); {remedy}") from None


def steps_of(run_dir: str | Path) -> list[int]:
    """Steps of a run's complete checkpoints, rising."""
    folder = Path(run_dir).absolute() / FOLDER
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()) if folder.is_dir() else []


def _items(state: TrainState) -> dict[str, Any]:
    """The items of a state; one without arrays (the targets of an objective that keeps none) is left out."""
    items = {
        "params": state.params,
        "targets": state.targets,
        "opt_state": {"optimizer": state.opt_state, "health": state.health},
    }
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """`{"backbone/cls_token": (192,)}` of a tree of arrays, shapes or saved metadata."""
    return {path_name(at): tuple(leaf.shape) for at, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def check_same_tree(found: dict[str, tuple[int, ...]], wanted_tree: Any, what: str) -> None:
    """Raise ConfigError naming up to three arrays that are missing, unexpected or of another shape in `found`."""
    wanted = shapes_by_path(wanted_tree)
    problems = [
        f"{name} is {found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in this config"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"the checkpoint is of another architecture ({what}): {'; '.join(problems[:3])}{more}")


def find_step(run_dir: str | Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint, the newest by default. Raises ConfigError when there is none."""
    folder, steps = Path(run_dir).absolute() / FOLDER, steps_of(run_dir)
    if not steps:
        raise ConfigError(f"{run_dir}: {_why_no_run(Path(run_dir).absolute())}")
    if step is not None and step not in steps:
        raise ConfigError(f"{run_dir}: has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return folder / str(steps[-1] if step is None else step)


def _why_no_run(path: Path) -> str:
    """What a folder without checkpoints is instead."""
    if not path.exists():
        return "no such folder; name a run directory"
    if (path / MANIFEST_NAME).is_file():
        return "is a dataset; name a run directory"
    if path.parent.name == FOLDER:
        return (
            f"is one checkpoint; name its run directory, {path.parent.parent}, and the step {path.name} by its own key"
        )
    if path.name == FOLDER:
        return f"is the checkpoints of a run; name its run directory, {path.parent}"
    return f"holds no checkpoints; expected a run directory with {FOLDER}/<step>"


def _handlers(arrays: Callable) -> dict[str, Any]:
    return {item: arrays() for item in ARRAYS} | {"meta": ocp.JsonCheckpointHandler()}


def _reader(run_dir: str | Path) -> ocp.CheckpointManager:
    folder, handlers = Path(run_dir).absolute() / FOLDER, _handlers(ocp.PyTreeCheckpointHandler)
    verbosity = logging.get_verbosity()
    # Orbax warns twice that what is opened read-only is read-only.
    logging.set_verbosity(logging.ERROR)
    try:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    finally:
        logging.set_verbosity(verbosity)


def read_meta(run_dir: str | Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself. Raises DataError when it is damaged or an item of it is gone."""
    path = find_step(run_dir, step)
    step = int(path.name)
    with _reading(run_dir, step, "meta"), _reader(run_dir) as reader:
        meta = reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        gone = [item for item in meta["items"] if not (path / item).is_dir()]
        if gone:
            raise FileNotFoundError(f"the item {gone[0]} is gone")
        return meta


def network_of(meta: dict[str, Any], network: str) -> str:
    """The `network` asked for, or `student` where a run trained without a teacher (masked autoencoding)."""
    return "student" if network == "teacher" and "targets" not in meta["items"] else network


def read_item(run_dir: str | Path, item: str, step: int | None = None) -> dict[str, Any]:
    """One item, `params` or `targets`, as nested dicts of NumPy arrays; no device and no topology needed.

    Raises ConfigError when the run keeps no such item, DataError when it is damaged.
    """
    path = find_step(run_dir, step)
    step = int(path.name)
    if not (path / item).is_dir():
        raise ConfigError(f"{run_dir}: its checkpoints hold no {item}")
    with _reading(run_dir, step, item), _reader(run_dir) as reader:
        tree = reader.item_metadata(step)[item].tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = {item: ocp.args.PyTreeRestore(restore_args=arguments)}
        return reader.restore(step, args=ocp.args.Composite(**wanted))[item]
