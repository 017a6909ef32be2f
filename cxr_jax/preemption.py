"""Told to go: has this run been asked to stop, and at which step do all processes stop together?

In: SIGTERM on any process, or the cloud's notice. Out: `requested(step)`, the same answer on every process.

A single process has a handler of its own. Under `jax.distributed` that handler would disable JAX's: there the
coordination service catches the signal of any process and lets all agree on one step.
"""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from cxr_jax.config import EXIT_PREEMPTED, RunError


class Preempted(RunError):
    """The run was told to stop and saved its state."""

    exit_code = EXIT_PREEMPTED


class Preemption:
    """Listens for SIGTERM from its making until `close`; a second signal changes nothing."""

    def __init__(self):
        self._told = False
        self._alone = not jax.distributed.is_initialized()
        self._before = signal.signal(signal.SIGTERM, self._tell) if self._alone else None

    def _tell(self, signum: int, frame: FrameType | None) -> None:
        self._told = True

    def requested(self, step: int) -> bool:
        """Whether the run stops before `step`; every process must ask at every step."""
        return self._told if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Give the signal back to whoever had it."""
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)
