"""Checkpoints: the only file that knows Orbax.

In: a `TrainState` and what must be said about it. Out: `checkpoints/<step>/` with separate items, so that a laptop or
an evaluation reads only its part:

    params      the student        targets   EMA teacher or frozen backbone
    opt_state   {"optimizer", "health"}      meta      JSON: config, model, geometry, fingerprint, data_skip, ...

Saving is asynchronous and commits by rename: a half-written step is never picked up. Restoring goes against the
abstract state, whatever the topology that wrote it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from cxr_jax.config import ConfigError
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

    def meta(self) -> dict[str, Any]:
        """What the newest checkpoint says about itself."""
        return self._manager.restore(self.latest_step(), args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start saving; returns once the arrays are copied, bytes are written behind."""
        step = int(state.step)
        if step == self.latest_step():
            return
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(step, args=ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta | {"step": step})))

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, in the shardings of `abstract`, and its meta.

        Raises ConfigError naming the arrays that differ when it is of another architecture.
        """
        step = self.latest_step()
        wanted = _items(abstract)
        saved = self._manager.item_metadata(step)
        for item in set(wanted) - {"opt_state"}:
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
    folder = Path(run_dir).absolute() / FOLDER
    steps = sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise ConfigError(f"{run_dir}: holds no checkpoints; expected a run directory with {FOLDER}/<step>")
    if step is not None and step not in steps:
        raise ConfigError(f"{run_dir}: has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return folder / str(steps[-1] if step is None else step)


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
    """What a checkpoint says about itself."""
    step = int(find_step(run_dir, step).name)
    with _reader(run_dir) as reader:
        return reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta


def read_item(run_dir: str | Path, item: str, step: int | None = None) -> dict[str, Any]:
    """One item, `params` or `targets`, as nested dicts of NumPy arrays; no device and no topology needed.

    Raises ConfigError when the run keeps no such item.
    """
    path = find_step(run_dir, step)
    if not (path / item).is_dir():
        raise ConfigError(f"{run_dir}: its checkpoints hold no {item}")
    with _reader(run_dir) as reader:
        tree = reader.item_metadata(int(path.name))[item].tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = {item: ocp.args.PyTreeRestore(restore_args=arguments)}
        return reader.restore(int(path.name), args=ocp.args.Composite(**wanted))[item]
