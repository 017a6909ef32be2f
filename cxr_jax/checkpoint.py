"""Checkpoints: the only file that knows Orbax.

In: a `TrainState` and what must be said about it. Out: `checkpoints/<step>/` with separate items, so that a laptop or an
evaluation reads only its part:

    params      the student        targets   EMA teacher or frozen backbone
    opt_state   {"optimizer", "health"}      meta      JSON: config, model, geometry, fingerprint, data_skip, ...

Saving is asynchronous and commits by rename: a half-written step is never picked up. Restoring goes against the
abstract state, whatever the topology that wrote it.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cxr_jax.config import ConfigError
from cxr_jax.sharding import path_name
from cxr_jax.state import TrainState

ITEMS = ("params", "targets", "opt_state", "meta")
FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: str | Path, *, keep: int = 3):
        self._folder = Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=ITEMS)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start saving; returns once the arrays are copied, bytes are written behind."""
        step = int(state.step)
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                targets=ocp.args.StandardSave(state.targets),
                opt_state=ocp.args.StandardSave({"optimizer": state.opt_state, "health": state.health}),
                meta=ocp.args.JsonSave(meta | {"step": step}),
            ),
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, in the shardings of `abstract`, and its meta.

        Raises ConfigError naming the arrays that differ when it is of another architecture.
        """
        step = self.latest_step()
        for item in ("params", "targets"):
            check_same_tree(
                _item_shapes(self._folder / str(step) / item), getattr(abstract, item), f"{item} of step {step}"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                targets=ocp.args.StandardRestore(abstract.targets),
                opt_state=ocp.args.StandardRestore({"optimizer": abstract.opt_state, "health": abstract.health}),
                meta=ocp.args.JsonRestore(),
            ),
        )
        state = TrainState(
            step=jax.device_put(np.asarray(step, np.int32), abstract.step.sharding),
            params=restored.params,
            targets=restored.targets,
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


def _item_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(path).item_metadata.tree
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(at): tuple(leaf.shape) for at, leaf in leaves}


def check_same_tree(found: dict[str, tuple[int, ...]], wanted_tree: Any, what: str) -> None:
    """Raise ConfigError naming up to three arrays that are missing, unexpected or of another shape in `found`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(wanted_tree)
    wanted = {path_name(at): tuple(leaf.shape) for at, leaf in leaves}
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


def read_meta(run_dir: str | Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    path = find_step(run_dir, step) / "meta"
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path)


def read_item(run_dir: str | Path, item: str, step: int | None = None) -> dict[str, Any]:
    """One item, `params` or `targets`, as nested dicts of NumPy arrays; no device and no topology needed."""
    path = find_step(run_dir, step) / item
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = reader.metadata(path).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=arguments))
