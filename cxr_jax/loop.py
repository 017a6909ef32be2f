"""The training loop: one page, for every objective.

In: a state, a jitted step, batches, and where to write. Out: the last state, checkpoints and metrics.

Each turn: told to stop? -> evaluations owed on the state -> save if due -> next batch -> step -> at log steps: read
scalars, look for collapse, check that they are finite. Between log steps no Python float ever waits for the device.

The line of step t in metrics.jsonl holds the losses of batch t and the evaluations of the state before it, which has
seen t batches. A checkpoint of that state carries under `owed` the evaluations that do not stand in metrics.jsonl yet,
with their values or null where they have yet to run; so a run killed anywhere is complete after it was resumed.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxr_jax.collapse import CollapseError, CollapseWatch
from cxr_jax.config import RunError
from cxr_jax.metrics import Clock, Metrics, effective_rank
from cxr_jax.phases import Phases
from cxr_jax.preemption import Preempted
from cxr_jax.saving import Checkpoints
from cxr_jax.state import NONFINITE_LIMIT, TrainState, term_names


class NumericError(RunError):
    """Training stopped because loss or gradients were not finite several steps in a row; `step` is the last of them."""

    def __init__(self, step: int, what: str, advice: str = ""):
        super().__init__(f"step {step}: {what}" + (f"; {advice}" if advice else ""))
        self.step, self.what, self.advice = step, what, advice


@runtime_checkable
class Evaluation(Protocol):
    """Scores a state; due when the step is a multiple of `every_steps`, and on the last state."""

    every_steps: int

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Scores by name."""


class Owed:
    """The evaluations of the state at hand: their values, or None where they have yet to run."""

    def __init__(self, evaluations: Mapping[str, Evaluation], saved: Mapping[str, Any]):
        self._evaluations = evaluations
        self.values = {name: value for name, value in saved.items() if name in evaluations or value is not None}

    def add(self, step: int, total_steps: int) -> None:
        """Note what is due at `step`."""
        for name, evaluation in self._evaluations.items():
            if step % evaluation.every_steps == 0 or step == total_steps:
                self.values.setdefault(name, None)

    def settle(self, state: TrainState) -> float:
        """Run what has not run; returns the seconds that took, without those of training still under way."""
        open_ones = [name for name, value in self.values.items() if value is None]
        if not open_ones:
            return 0.0
        jax.block_until_ready(state.step)
        started = time.perf_counter()
        self.values |= {name: self._evaluations[name](state) for name in open_ones}
        return time.perf_counter() - started

    def scores(self) -> dict[str, float]:
        """What has run, by name."""
        return {name: score for scores in self.values.values() if scores for name, score in scores.items()}

    def take(self) -> dict[str, float]:
        """All values by name; nothing is owed any more."""
        scores, self.values = self.scores(), {}
        return scores


@dataclass(frozen=True)
class SaveTimes:
    """When checkpoints are due: every so many steps, and when `every_secs` have passed since the last (0: never)."""

    every_steps: int
    every_secs: float = 0.0


def run(
    state: TrainState,
    *,
    train_step: Callable,
    batches: Iterator[dict[str, jax.Array]],
    key: jax.Array,
    total_steps: int,
    batch_size: int,
    save_times: SaveTimes,
    log_every_steps: int,
    checkpoints: Checkpoints,
    meta: dict[str, Any],
    metrics: Metrics,
    watch: CollapseWatch,
    evaluations: Mapping[str, Evaluation],
    phases: Phases,
    stop_requested: Callable[[int], bool],
    note_skipped: Callable[[list[int]], None],
) -> TrainState:
    """Train from `state.step` to `total_steps`, saving at `save_times` and at the end.

    `stop_requested(step)` is asked before every step; `note_skipped(steps)` is told whose updates were skipped.

    Raises:
      NumericError: three updates in a row had to be skipped. Nothing is saved while updates are being skipped.
      CollapseError: `watch` asks to stop; the state is saved.
      Preempted: the run was told to stop; the state is saved, evaluations due on it are owed.
      StorageError: the last state could not be saved, or too many saves in a row failed.
    """
    clock, owed = Clock(), Owed(evaluations, meta.get("owed", {}))
    first, terms, due, saved_at = int(state.step), [], False, time.monotonic()
    skipped = Skipped(state, note_skipped)

    def told(health):
        return meta | {
            "owed": owed.values,
            "collapse": watch.state(),
            "skipped_updates": int(health["skipped_updates"]),
        }

    def save(state):
        """Save unless the newest update was skipped; returns whether the save is still due.

        What makes an update not finite may be in the parameters already, so such a state waits for the next good one.
        """
        health = jax.device_get(state.health)
        check_finite(int(state.step) - 1, health, terms, checkpoints.steps)
        if health["nonfinite_in_a_row"]:
            return True
        checkpoints.save(state, told(health), owed.scores())
        return False

    def save_last(state):
        health = jax.device_get(state.health)
        check_finite(int(state.step) - 1, health, terms, checkpoints.steps)
        with phases("save", int(state.step)):
            checkpoints.save_and_wait(state, told(health), owed.scores())

    for step in range(first, total_steps):
        owed.add(step, total_steps)
        if stop_requested(step):
            save_last(state)
            raise Preempted(f"step {step}: told to stop; the state is saved, and the same command goes on from here")
        with phases("evaluation", step):
            clock.leave_out(owed.settle(state))
        if step > first and (due or step % save_times.every_steps == 0):
            with phases("save", step):
                due, saved_at = save(state), time.monotonic()
        with phases("data", step):
            started = time.perf_counter()
            batch = next(batches)
            clock.waited(time.perf_counter() - started, batch_size)
        with phases("compile" if step == first else "step", step):
            state, scalars, moments = train_step(state, batch, key)
        terms, values = term_names(scalars), owed.take()
        if step % log_every_steps == 0 or step == total_steps - 1:
            with phases("step", step):
                values = read(scalars, moments) | clock.read() | values
                health = jax.device_get(state.health)
            skipped.look(health)
            for event in watch.look(step, values):
                metrics.warn(event)
            metrics.write(step, values | phases.report(), watch.holds)
            check_finite(step, health, terms, checkpoints.steps)
            reason = watch.check(step)
            if reason:
                owed.add(step + 1, total_steps)
                save_last(state)
                raise CollapseError(reason)
            due = due or checkpoints.failed() or overdue(saved_at, save_times.every_secs)
        elif values:
            metrics.write(step, values)
        metrics.advance()
    owed.add(total_steps, total_steps)
    with phases("evaluation", total_steps):
        owed.settle(state)
    values = owed.scores()
    if values:
        metrics.write(total_steps, values)
    save_last(state)
    return state


def overdue(saved_at: float, every_secs: float) -> bool:
    """Whether `every_secs` have passed, by the clock of process 0, which all follow."""
    late = bool(every_secs) and time.monotonic() - saved_at >= every_secs
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(late))) if jax.process_count() > 1 else late


class Skipped:
    """Tells which steps' updates were skipped, each once."""

    def __init__(self, state: TrainState, note: Callable[[list[int]], None]):
        self._told, self._note = set(jax.device_get(state.health["skipped_steps"]).tolist()), note

    def look(self, health: dict[str, np.ndarray]) -> None:
        """Take in the counters of a log step."""
        new = sorted(set(health["skipped_steps"].tolist()) - self._told)
        if new:
            self._told.update(new)
            self._note(new)


def read(scalars: dict[str, jax.Array], moments: dict[str, jax.Array]) -> dict[str, float]:
    """Scalars of a step as numbers, and the effective rank of every second moment as `<name>_rank`."""
    scalars, moments = jax.device_get((scalars, moments))
    ranks = {f"{name}_rank": effective_rank(moment) for name, moment in moments.items()}
    return {name: float(value) for name, value in scalars.items()} | ranks


def check_finite(
    step: int, health: dict[str, np.ndarray], terms: Iterable[str], saved: Callable[[], Sequence[int]]
) -> None:
    """Raise NumericError naming the terms and the `saved` steps when the limit of skipped updates was reached.

    What everything else is made of is named alone: terms before their sum, the loss before its gradients.
    """
    if health["nonfinite_in_a_row"] < NONFINITE_LIMIT:
        return
    bad = [name for name, flag in zip(terms, health["nonfinite_terms"], strict=False) if flag]
    gradients = [name for name in bad if name.startswith("grad_norm_")]
    causes = [name for name in bad if name not in ("loss", "grad_norm", *gradients)]
    causes = causes or [name for name in bad if name == "loss"] or gradients
    advice = "nothing was saved before them; lower the learning rate or look at the data"
    steps = saved()
    if steps:
        advice = (
            f"checkpoints are of step {', '.join(map(str, steps))}; the newest may hold what went wrong: look at "
            "grad_norm before it in metrics.jsonl, then start in a new workdir from a sound one, with a lower learning "
            f"rate (--config.init_from=RUN --config.init_step={steps[0]})"
        )
    raise NumericError(
        step,
        f"{', '.join(causes)} not finite, {int(health['nonfinite_in_a_row'])} updates skipped "
        f"({NONFINITE_LIMIT} in a row end a run)",
        advice,
    )
