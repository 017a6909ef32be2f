"""The clock of phases, and the watchdog in a process of its own, which it ends."""

import subprocess
import sys
import time

import pytest

from cxr_jax.phases import Phases


def test_phases_add_up_and_inner_ones_pause_outer_ones(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    phases = Phases()

    def spend(secs):
        now[0] += secs

    with phases("step", 0):
        spend(3)
        with phases("save", 0):
            spend(2)
        spend(1)
    with phases("step", 1):
        spend(4)
    spend(10)
    assert phases.report() == {"secs_step": 8.0, "secs_save": 2.0, "goodput": pytest.approx(8 / 20)}


STUCK = """
import time
from cxr_jax.phases import Phases
phases = Phases(stall_secs=0.4)
for step in range(3):
    with phases("data", step):
        time.sleep(0.2)
time.sleep(1)
with phases("save", 3):
    time.sleep(60)
print("unreachable")
"""


def test_the_watchdog_ends_a_process_that_is_stuck_and_says_where():
    """Three slow phases and time outside of any are fine; the one that does not end is named."""
    run = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 1 and run.stdout == ""
    first = run.stderr.splitlines()[0]
    assert first.startswith("error: stalled: phase 'save' of step 3 has taken") and "log.stall_secs=0.4" in first
    assert "most recent call first" in run.stderr
