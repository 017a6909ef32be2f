"""The training loop: one page, for every objective.

In: a state, a jitted step, batches, and where to write. Out: the last state, checkpoints and metrics.

Each turn: save if due -> next batch -> step -> read scalars if it is a log step -> check that they are finite. Between
log steps no Python float ever waits for the device.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cxr_jax.checkpoint import Checkpoints
from cxr_jax.config import RunError
from cxr_jax.metrics import Clock, Metrics
from cxr_jax.state import TrainState

NONFINITE_LIMIT = 3


class NumericError(RunError):
    """Training stopped because loss or gradients were not finite several steps in a row."""


def run(
    state: TrainState,
    *,
    train_step: Callable,
    batches: Iterator[dict[str, jax.Array]],
    key: jax.Array,
    total_steps: int,
    batch_size: int,
    save_every_steps: int,
    log_every_steps: int,
    checkpoints: Checkpoints,
    meta: dict[str, Any],
    metrics: Metrics,
) -> TrainState:
    """Train from `state.step` to `total_steps`; saves every `save_every_steps` and at the end.

    Raises NumericError, with the last good checkpoint kept, when three updates in a row had to be skipped.
    """
    clock = Clock()
    first = int(state.step)
    for step in range(first, total_steps):
        if step > first and step % save_every_steps == 0:
            checkpoints.save(state, meta)
        started = time.perf_counter()
        batch = next(batches)
        clock.waited(time.perf_counter() - started, batch_size)
        state, scalars = train_step(state, batch, key)
        if step % log_every_steps == 0 or step == total_steps - 1:
            values = {name: float(value) for name, value in jax.device_get(scalars).items()}
            metrics.write(step, values | clock.read())
            check_finite(step, values)
        metrics.advance()
    checkpoints.save(state, meta)
    checkpoints.wait()
    return state


def check_finite(step: int, values: dict[str, float]) -> None:
    """Raise NumericError naming the terms when the limit of skipped updates in a row is reached."""
    if values["nonfinite_in_a_row"] < NONFINITE_LIMIT:
        return
    bad = ", ".join(name for name, value in values.items() if not np.isfinite(value)) or "gradients"
    raise NumericError(
        f"step {step}: {bad} not finite for {int(values['nonfinite_in_a_row'])} steps in a row; "
        "these updates were skipped and the last checkpoint is good; lower the learning rate or look at the data"
    )
