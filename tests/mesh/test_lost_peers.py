"""A process that dies, or stays alive but stuck, must not leave the others waiting for ever."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_processes import ROOT, TINY

from launch.local import environment, free_port
from tests.tiny_run import QUICK_COMPILE

STALL_SECS = 60  # more than starting and compiling take on a busy machine
ABORTED = 128 + signal.SIGABRT
pytestmark = pytest.mark.slow


def command(workdir: Path, dataset: Path, **changes) -> list[str]:
    """A tiny run that goes on until it is ended."""
    values = TINY | {"total_steps": 100_000, "probe.every_steps": 0, "checkpoint.every_steps": 10**6} | changes
    return [
        *(sys.executable, "-m", "cxr_jax.train", "--config=configs/smoke.py", f"--workdir={workdir}"),
        f"--config.data.path={dataset}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def wait_for_steps(workdir: Path, alive) -> None:
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert alive() and time.monotonic() < deadline, "the run did not come to its steps"
        time.sleep(0.1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", " ".join(QUICK_COMPILE))


def test_a_dead_process_ends_the_other_which_says_why(phantom_dataset, tmp_path, quick):
    """Without a launcher that would end it."""
    place = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    peers = [
        subprocess.Popen(
            [*command(tmp_path / "run", phantom_dataset), *place, f"--process_id={number}"],
            cwd=ROOT,
            env=environment(1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        wait_for_steps(tmp_path / "run", lambda: all(peer.poll() is None for peer in peers))
        peers[1].kill()
        # JAX's heartbeats notice after 100 s what the transport of collectives has not.
        _, err = peers[0].communicate(timeout=150)
    finally:
        for peer in peers:
            peer.kill()
    assert peers[0].returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: process 0 of 2: another process is gone (") and "last checkpoint" in last
    assert "Traceback" not in err


def test_a_stuck_process_ends_the_job_by_the_others_watchdog(phantom_dataset, tmp_path, quick):
    flags = ["--processes=2", "--devices_per_process=1", "--grace_secs=1", "--"]
    trained = command(tmp_path / "run", phantom_dataset, **{"log.stall_secs": STALL_SECS})
    job = subprocess.Popen(
        [sys.executable, "-m", "launch.local", *flags, *trained],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_steps(tmp_path / "run", lambda: job.poll() is None)
        (stuck,) = [
            int(line.split()[0])
            for line in subprocess.run(
                ["ps", "-ww", "--ppid", str(job.pid), "-o", "pid=,args="], capture_output=True, text=True
            ).stdout.splitlines()
            if "--process_id=1" in line
        ]
        os.kill(stuck, signal.SIGSTOP)
        _, err = job.communicate(timeout=STALL_SECS + 60)
    finally:
        job.kill()
    # JAX's coordination service ends a process as well whose peer sends no heartbeats; on a busy machine it is first.
    if job.returncode == ABORTED:
        assert "stopped sending heartbeats" in err
        return
    assert job.returncode == 1
    assert "[0] error: stalled: phase 'step' of step " in err and f"log.stall_secs={STALL_SECS}" in err
    assert "process 0 ended with exit code 1; the others are told to end" in err
    assert "process 1 has not ended in 1 s and is killed" in err
    assert not Path(f"/proc/{stuck}").exists(), "what does not listen is killed"
