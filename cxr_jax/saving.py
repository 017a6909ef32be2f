"""Writing a run's checkpoints, and going on from them.

In: a `TrainState` and what must be said about it. Out: `checkpoints/<step>/` (items: `checkpoint`), and on request
`teachers/<step>/` with the network that evaluations read alone.

A save copies the arrays from the devices and returns; bytes are written behind the loop's back and committed by rename,
so that a half-written step is never picked up. Every array's digest stands in `meta` and is checked when it is
restored. A save that fails costs nothing but itself: it is told, cleaned up, and tried again with a later state.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_args
from orbax.checkpoint import checkpoint_managers as policies

from cxr_jax import digest
from cxr_jax.checkpoint import (
    FOLDER,
    FORMAT,
    META_FILE,
    TEACHERS,
    check_digests,
    check_format,
    check_same_tree,
    handlers,
    reading,
    shapes_by_path,
)
from cxr_jax.config import STORAGE_ERRNOS, RunError
from cxr_jax.sharding import replicated
from cxr_jax.state import TrainState

ATTEMPTS = 4  # of the last save of a run; between them 1, 2, 4 times `backoff_secs`
FAILURES = 5  # failed saves in a row that end a run
# Layers are stacked, so that one array may be half of a model, and a reader holds a chunk beside what it fills.
CHUNK_BYTES = 2**26
# What storage raises: the operating system, TensorStore, Orbax.
ERRORS = (OSError, ValueError, RuntimeError)
BEST_MODES = ("max", "min")


class StorageError(RunError):
    """Checkpoints can no longer be written. The message says why, and which checkpoint is the newest."""


class Checkpoints:
    """The checkpoints of one run directory.

    What is kept: the newest `keep`, those nearest to multiples of `keep_every_steps`, the steps of `keep_steps`, and
    the `keep_best` with the best `best_metric` (a scalar of an evaluation; `best_mode` is `max` or `min`). Every
    `teacher_every_steps` the network that evaluations read is saved alone and kept; 0 never does.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: int = 3,
        keep_every_steps: int = 0,
        keep_steps: Sequence[int] = (),
        best_metric: str = "",
        best_mode: str = "max",
        keep_best: int = 1,
        teacher_every_steps: int = 0,
        compress: bool = False,
        backoff_secs: float = 1.0,
        mesh: Mesh | None = None,
    ):
        if best_mode not in BEST_MODES:
            raise ValueError(f"checkpoint.best_mode={best_mode!r}: legal are {', '.join(BEST_MODES)}")
        for name, number in (("keep_every_steps", keep_every_steps), ("teacher_every_steps", teacher_every_steps)):
            if number < 0:
                raise ValueError(f"checkpoint.{name}={number} must be at least 0; 0 switches it off")
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every_steps:
            kept.append(policies.EveryNStepsClosest(keep_every_steps))
        if keep_steps:
            kept.append(policies.CustomSteps(tuple(keep_steps)))
        if best_metric:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=best_mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._run, self._everywhere = Path(workdir).absolute(), None if mesh is None else replicated(mesh)
        self._best_metric, self._teacher_every, self._backoff = best_metric, teacher_every_steps, backoff_secs
        self._compress, self._failures, self._why, self._pending = compress, 0, "", False
        self._manager = self._make(FOLDER, policies.AnyPreservationPolicy(kept))
        self._teachers = self._make(TEACHERS, policies.LatestN()) if teacher_every_steps else None
        threading.excepthook = _quiet_about_saves

    def _make(self, folder: str, kept: Any) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, enable_async_checkpointing=True)
        try:
            (self._run / folder).mkdir(parents=True, exist_ok=True)
            self._clean(folder)
            return ocp.CheckpointManager(
                self._run / folder, options=options, item_handlers=handlers(compress=self._compress) | {"meta": _Meta()}
            )
        except OSError as error:
            raise StorageError(f"{self._run / folder}: cannot be written ({error.strerror or error})") from None

    def _clean(self, folder: str) -> None:
        """Remove what a killed or failed save left."""
        if jax.process_index() == 0:
            for path in (self._run / folder).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of the checkpoints, rising; waits for a save under way."""
        self._settle()
        return sorted(self._manager.all_steps())

    def prepare(self, state: TrainState) -> None:
        """Compile what the first save would otherwise compile while it holds the loop up."""
        for tree in items_of(state).values():
            digest.begin(tree, self._everywhere)

    def save(self, state: TrainState, meta: dict[str, Any], scores: Mapping[str, float] | None = None) -> None:
        """Start saving; returns once the arrays are copied. `scores` are those of this state, for `best_metric`.

        A failure is told on stderr and by `failed`. Raises StorageError after `FAILURES` in a row.
        """
        step = int(state.step)
        self._settle()
        if step != self._manager.latest_step():
            best = (scores or {}).get(self._best_metric)
            metrics = None if best is None or not np.isfinite(best) else {self._best_metric: float(best)}
            self._start(self._manager, state, items_of(state), meta, metrics)
        if self._teachers and step % self._teacher_every == 0 and step != self._teachers.latest_step():
            name = "targets" if "backbone" in state.targets else "params"
            network = {name: {"backbone": getattr(state, name)["backbone"]}}
            self._start(self._teachers, state, network, meta, None)

    def _start(self, manager, state, items, meta, metrics) -> None:
        step = int(state.step)
        digests: Future[dict[str, Any]] = Future()
        meta = meta | {"format": FORMAT, "step": step, "items": sorted(items), "digests": digests}
        arrays = {item: ocp.args.PyTreeSave(tree, save_args=_in_chunks(tree)) for item, tree in items.items()}
        arguments = ocp.args.Composite(**arrays, meta=_SaveMeta(meta))
        try:
            # Orbax's own policy would leave out a save while another is under way.
            manager.save(step, args=arguments, metrics=metrics, force=True)
            self._pending = True
        except ERRORS as error:
            self._note_failure(error, manager)
        # After Orbax has its threads: on a CPU they would wait for the cores that this computes on.
        digests.set_result({item: digest.begin(tree, self._everywhere) for item, tree in items.items()})

    def _settle(self) -> None:
        """Wait for saves under way, and take note of how they ended."""
        for manager in filter(None, (self._manager, self._teachers)):
            try:
                manager.wait_until_finished()
            except ERRORS as error:
                self._note_failure(error, manager)
        if self._pending:
            self._failures, self._pending = 0, False

    def failed(self) -> bool:
        """Whether the newest save failed, as far as is known without waiting for it."""
        under_way = any(m.is_saving_in_progress() for m in filter(None, (self._manager, self._teachers)))
        if self._pending and not under_way:
            self._settle()
        return bool(self._failures)

    def _note_failure(self, error: Exception, manager: ocp.CheckpointManager) -> None:
        self._failures, self._pending = self._failures + 1, False
        self._why = _in_one_line(error)
        newest = self._manager.latest_step()
        kept = "there is none yet" if newest is None else f"the newest is of step {newest}"
        # Not the other's folder: a save may be under way there.
        self._clean(FOLDER if manager is self._manager else TEACHERS)
        if self._failures >= FAILURES:
            raise StorageError(
                f"{self._run / FOLDER}: {self._failures} saves in a row failed ({self._why}); {kept}; mend the storage "
                "and start the same command again"
            )
        print(f"warning: {self._run / FOLDER}: a save failed ({self._why}); {kept}; it is tried again", file=sys.stderr)

    def save_and_wait(self, state: TrainState, meta: dict[str, Any], scores: Mapping[str, float] | None = None) -> None:
        """Save and return when the bytes are there; tries again after growing pauses. Raises StorageError."""
        for attempt in range(ATTEMPTS):
            self.save(state, meta, scores)
            self._settle()
            if not self._failures:
                return
            if attempt < ATTEMPTS - 1:
                time.sleep(self._backoff * 2**attempt)
        raise StorageError(
            f"{self._run / FOLDER}: step {int(state.step)} could not be saved in {ATTEMPTS} attempts ({self._why}); "
            f"complete are {', '.join(map(str, self._manager.all_steps())) or 'none'}; mend the storage and start again"
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, in the shardings of `abstract`, and its meta.

        Raises ConfigError naming the arrays that differ in another architecture, DataError when it is damaged.
        """
        step = self.latest_step()
        wanted = items_of(abstract)
        with reading(self._run, step, ", ".join(wanted)):
            saved = self._manager.item_metadata(step)
            for item in sorted(wanted):
                check_same_tree(shapes_by_path(saved[item].tree), wanted[item], f"{item} of step {step}")
            arrays = {
                item: ocp.args.PyTreeRestore(
                    item=tree,
                    restore_args=jax.tree.map(
                        lambda leaf: ocp.ArrayRestoreArgs(
                            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
                        ),
                        tree,
                    ),
                )
                for item, tree in wanted.items()
            }
            restored = self._manager.restore(step, args=ocp.args.Composite(**arrays, meta=_RestoreMeta()))
            meta = restored.meta
            check_format(meta, f"{self._run}, step {step}")
            for item in wanted:
                check_digests(restored[item], meta, item, self._everywhere)
        self._forget_teachers(step + 1)
        state = TrainState(
            step=jax.device_put(np.asarray(step, np.int32), abstract.step.sharding),
            params=restored.params,
            targets=restored.targets if "targets" in wanted else {},
            opt_state=restored.opt_state["optimizer"],
            health=restored.opt_state["health"],
        )
        return state, meta

    def delete_from(self, step: int) -> None:
        """Remove the checkpoints of `step` and later."""
        for newer in [found for found in self.steps() if found >= step]:
            self._manager.delete(newer)
        self._forget_teachers(step)

    def _forget_teachers(self, step: int) -> None:
        """Remove the teachers of `step` and later: of a branch that the run has left."""
        for newer in [found for found in (self._teachers.all_steps() if self._teachers else ()) if found >= step]:
            self._teachers.delete(newer)

    def close(self) -> None:
        """Wait and release."""
        for manager in filter(None, (self._manager, self._teachers)):
            manager.close()


class _Meta(ocp.JsonCheckpointHandler):
    """Writes `meta` behind the loop's back, and only there waits for the digests that the devices still compute."""

    async def async_save(self, directory, item=None, args=None):
        async def write():
            if jax.process_index() == 0:
                begun = args.item["digests"].result()
                found = {name: digest.finish(arrays) for name, arrays in begun.items()}
                (directory / META_FILE).write_text(json.dumps(args.item | {"digests": found}))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="meta")]


@checkpoint_args.register_with_handler(_Meta, for_save=True)
@dataclass
class _SaveMeta(checkpoint_args.CheckpointArgs):
    item: dict[str, Any]


@checkpoint_args.register_with_handler(_Meta, for_restore=True)
@dataclass
class _RestoreMeta(checkpoint_args.CheckpointArgs):
    pass


def _in_chunks(tree: Any) -> Any:
    """How each array is cut. One of NumPy stays whole, and so is written from where it lies; a chunk is a copy."""
    return jax.tree.map(
        lambda leaf: ocp.SaveArgs(chunk_byte_size=None if isinstance(leaf, np.ndarray) else CHUNK_BYTES), tree
    )


def items_of(state: TrainState) -> dict[str, Any]:
    """The items of a state; one without arrays (the targets of an objective that keeps none) is left out."""
    items = {
        "params": state.params,
        "targets": state.targets,
        "opt_state": {"optimizer": state.opt_state, "health": state.health},
    }
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _in_one_line(error: Exception) -> str:
    """What the storage said, without the path of every layer."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    known = next((why for why in map(os.strerror, STORAGE_ERRNOS) if why in text), "")
    return known or text[:200] or type(error).__name__


def _quiet_about_saves(args: threading.ExceptHookArgs) -> None:
    """Orbax raises what a save failed with again where it is waited for; its threads need not print it as well."""
    frames, trace = [], args.exc_traceback
    while trace:
        frames.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    if not any("orbax" in name for name in frames):
        threading.__excepthook__(args)
