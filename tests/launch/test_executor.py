"""Runs as processes: order, failures, signals, and going on after all of them. The commands are short scripts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.sweeping.execute import Executor, Record, check_unchanged
from launch.sweeping.runs import Command, Run, SweepError

ROOT = Path(__file__).parents[2]
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'metrics.jsonl').write_text('{}')"
# Appends a line per start; saves and ends with 4 when told to, as a training does.
PATIENT = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file: file.write("x")
def stop(*_):
    (folder / "saved").write_text("")
    sys.exit(4)
signal.signal(signal.SIGTERM, stop)
(folder / "ready").write_text("")
if not (folder / "saved").exists(): time.sleep(60)
(folder / "metrics.jsonl").write_text("{}")
"""


@dataclass(frozen=True)
class Script(Command):
    """A command that runs Python source instead of an entry."""

    source: str = WRITE

    def line(self, python="python"):
        Path(self.workdir).mkdir(parents=True, exist_ok=True)
        return [python, "-c", self.source, self.workdir]


def run_of(folder, name, *sources):
    stages = [
        Script(f"s{i}", "train", (source,), f"{folder}/{name}/{i}", {}, source) for i, source in enumerate(sources)
    ]
    return Run(name, {}, tuple(stages))


def execute(folder, runs, **options):
    said = []
    outcomes = Executor(folder, say=said.append, **options).run(runs)
    return outcomes, said


def test_finished_runs_are_skipped_and_their_stages_are_run_in_order(tmp_path):
    runs = [run_of(tmp_path, name, WRITE, WRITE) for name in ("a", "b")]
    outcomes, said = execute(tmp_path, runs, parallel=2)
    assert outcomes == {"a": "done", "b": "done"}
    assert next(line for line in said if line.startswith("a")) == "a: s0 starts"
    outcomes, said = execute(tmp_path, runs)
    assert outcomes == {"a": "done", "b": "done"} and said == ["a: done before", "b: done before"]
    # Results that were removed are made again; a stage that is new is all that is run.
    (tmp_path / "a" / "1" / "metrics.jsonl").unlink()
    longer = [runs[0], run_of(tmp_path, "b", WRITE, WRITE, WRITE)]
    _, said = execute(tmp_path, longer)
    assert [line for line in said if "starts" in line] == ["a: s1 starts", "b: s2 starts"]


def test_a_failure_ends_its_run_alone_is_shown_and_kept(tmp_path):
    broken = "import sys; print('working'); sys.stderr.write('error: config.x is odd\\n'); sys.exit(2)"
    runs = [run_of(tmp_path, "a", broken, WRITE), run_of(tmp_path, "b", WRITE)]
    outcomes, said = execute(tmp_path, runs)
    assert outcomes == {"a": "failed", "b": "done"}
    (told,) = [line for line in said if "failed" in line]
    assert "exit code 2: config.x is odd" in told and "logs/a.s0.log" in told
    assert not (tmp_path / "a" / "1").exists()
    outcomes, said = execute(tmp_path, runs)
    assert outcomes["a"] == "failed" and "--retry_failed" in said[0]
    outcomes, said = execute(tmp_path, runs, retry_failed=True)
    assert any("a: s0 starts" in line for line in said)
    assert (tmp_path / "logs" / "a.s0.log").read_text().splitlines().count("working") == 2


def test_a_command_without_its_result_is_not_done(tmp_path):
    outcomes, said = execute(tmp_path, [run_of(tmp_path, "a", "pass")])
    assert outcomes == {"a": "failed"} and "left no metrics.jsonl" in said[-1]


def test_a_signal_lets_runs_save_and_the_sweep_goes_on_with_them(tmp_path):
    runs = [run_of(tmp_path, "a", PATIENT), run_of(tmp_path, "b", WRITE)]
    received = []

    def stop_when_ready():
        while not (tmp_path / "a" / "0" / "ready").exists():
            time.sleep(0.01)
        received.append(signal.SIGINT)

    threading.Thread(target=stop_when_ready).start()
    outcomes, said = execute(tmp_path, runs, received=received)
    assert outcomes == {"a": "stopped", "b": "waiting"}
    outcomes, said = execute(tmp_path, runs)
    assert outcomes == {"a": "done", "b": "done"} and said[0] == "a: s0 goes on"
    assert (tmp_path / "a" / "0" / "starts").read_text() == "xx"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_a_killed_sweep_leaves_no_process_behind_and_goes_on(tmp_path):
    driver = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT)!r}]
from pathlib import Path
import test_executor as t
t.execute(Path({str(tmp_path)!r}), [t.run_of(Path({str(tmp_path)!r}), "a", t.PATIENT)])
"""
    sweep = subprocess.Popen([sys.executable, "-c", driver])
    folder = tmp_path / "a" / "0"
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    while not (folder / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (folder / "saved").exists(), "the run was not told that its sweep is gone"
    assert json.loads((tmp_path / "state" / "a.json").read_text())["s0"]["exit_code"] is None
    outcomes, said = execute(tmp_path, [run_of(tmp_path, "a", PATIENT)])
    assert outcomes == {"a": "done"} and said[0] == "a: s0 goes on"


def test_a_run_that_another_process_holds_is_waited_for(tmp_path):
    run = run_of(tmp_path, "a", WRITE)
    folder = tmp_path / "a" / "0"
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
         "print('held', flush=True)\ntime.sleep(0.5)", str(folder / ".lock")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    outcomes, said = execute(tmp_path, [run])
    holder.wait()
    assert outcomes == {"a": "done"} and "a process still works in" in said[0]


def test_a_run_begun_by_another_command_is_refused(tmp_path):
    execute(tmp_path, [run_of(tmp_path, "a", WRITE)])
    check_unchanged(tmp_path, [run_of(tmp_path, "a", WRITE)])
    with pytest.raises(SweepError, match=r"a \(s0\) was begun by another command .*is pass"):
        check_unchanged(tmp_path, [run_of(tmp_path, "a", "pass")])


def test_a_state_cut_short_counts_as_nothing(tmp_path):
    run = run_of(tmp_path, "a", WRITE)
    execute(tmp_path, [run])
    (tmp_path / "state" / "a.json").write_text('{"s0": {"exit')
    assert Record(tmp_path, run).state(run.commands[0]) == "waiting"
