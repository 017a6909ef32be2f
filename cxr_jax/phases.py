"""Where a run's time goes, and whether it still goes anywhere.

In: the loop says what it does (`with phases("save", step)`). Out: seconds per phase for metrics.jsonl, and the end of a
process that has been in one phase for longer than `stall_secs`.

A process that waits for a stuck peer, a dead disk or a device cannot be helped from within, but a scheduler can start
it again: the watchdog says which step and phase it is stuck in, prints where every thread stands, and ends the process.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

EXIT_STALLED = 1
CHECKS = 20  # looks per `stall_secs`


class Phases:
    """The clock of a run; also its watchdog when `stall_secs` is above 0. An inner phase pauses the outer one."""

    def __init__(self, stall_secs: float = 0.0):
        self.totals: dict[str, float] = {}
        self._now, self._since, self._step = "", time.monotonic(), 0
        self._started = self._since
        self._stall_secs, self._closed = stall_secs, threading.Event()
        if stall_secs:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @contextlib.contextmanager
    def __call__(self, name: str, step: int) -> Iterator[None]:
        """Whatever happens within belongs to the phase `name` of `step`."""
        outer, before = self._now, self._step
        self._switch(name, step)
        try:
            yield
        finally:
            self._switch(outer, before)

    def _switch(self, name: str, step: int) -> None:
        now = time.monotonic()
        if self._now:
            self.totals[self._now] = self.totals.get(self._now, 0.0) + now - self._since
        self._now, self._since, self._step = name, now, step

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_secs / CHECKS):
            secs = time.monotonic() - self._since
            if self._now and secs > self._stall_secs:
                print(
                    f"error: stalled: phase {self._now!r} of step {self._step} has taken {secs:.0f} s, more than "
                    f"log.stall_secs={self._stall_secs:g}; this process ends, so that it can be started again",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_STALLED)

    def report(self) -> dict[str, float]:
        """Seconds of every phase so far as `secs_<phase>`, and `goodput`, the share of the time spent in steps."""
        self._switch(self._now, self._step)
        total = time.monotonic() - self._started
        report = {f"secs_{name}": secs for name, secs in self.totals.items()}
        return report | {"goodput": self.totals.get("step", 0.0) / max(total, 1e-9)}

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
