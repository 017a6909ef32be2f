"""Several real processes on this machine, started by `launch.local`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_run import QUICK_COMPILE, TINY_RUN

ROOT = Path(__file__).parents[2]
TINY = TINY_RUN | {
    "total_steps": 4,
    "model.layer_scale": 1.0,
    "checkpoint.every_steps": 2,
    "probe.every_steps": 2,
    "probe.targets": "('Effusion',)",
}


def launch(*command: str, processes: int = 2, devices: int = 2, grace_secs: float = 30) -> subprocess.Popen:
    """`command` under launch.local, compiled quickly."""
    flags = [f"--processes={processes}", f"--devices_per_process={devices}", f"--grace_secs={grace_secs}"]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *flags, "--", sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join(QUICK_COMPILE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def script(tmp_path: Path, body: str) -> str:
    """A program that knows its process number as `me`."""
    file = tmp_path / "program.py"
    file.write_text("import os, signal, sys, time\nme = int(sys.argv[-1].partition('=')[2])\n" + body)
    return str(file)


def train(workdir: Path, dataset: Path, processes: int, devices: int) -> list[dict]:
    """metrics.jsonl of a tiny run."""
    values = [f"--config.{key}={value}" for key, value in TINY.items()]
    command = [
        "-m",
        "cxr_jax.train",
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        f"--config.data.path={dataset}",
    ]
    job = launch(*command, *values, processes=processes, devices=devices)
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    assert out.count("step 0 of 4") == 1, "only process 0 speaks"
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_like_one(phantom_dataset, tmp_path):
    """The same four devices in one process and in two; also one set of files, written by process 0."""
    one = train(tmp_path / "one", phantom_dataset, processes=1, devices=4)
    two = train(tmp_path / "two", phantom_dataset, processes=2, devices=2)
    assert [row["step"] for row in two] == [0, 1, 2, 3, 4]
    for row, other in zip(two, one, strict=True):
        if row["step"] % 2 == 0:
            assert row["probe_auroc_Effusion"] == pytest.approx(other["probe_auroc_Effusion"], abs=1e-9)
    for row, other in zip(two[:-1], one[:-1], strict=True):
        for name in ("loss", "dino_global_loss", "ibot_loss", "koleo_loss"):
            assert row[name] == pytest.approx(other[name], rel=1e-5), (row["step"], name)
    run = json.loads((tmp_path / "two" / "run.json").read_text())
    assert run["environment"]["devices"] == {"kind": "cpu", "count": 4, "processes": 2}
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["2", "4"]
    pictures = [(tmp_path / run / "examples" / "first_batch.png").read_bytes() for run in ("one", "two")]
    assert pictures[0] == pictures[1]


def test_lines_carry_the_process_number(tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    said = "print('out', os.environ['XLA_FLAGS'], os.environ['NPROC']); print('err', file=sys.stderr)"
    out, err = launch(script(tmp_path, said), devices=3).communicate(timeout=60)
    words = f"{' '.join(QUICK_COMPILE)} --xla_force_host_platform_device_count=3 16"
    assert sorted(out.splitlines()) == [f"[0] out {words}", f"[1] out {words}"]
    assert sorted(err.splitlines()) == ["[0] err", "[1] err"]


def test_the_first_failure_ends_all_and_is_the_exit_code(tmp_path):
    """Also when the others ignore SIGTERM, as a process stuck in a collective does."""
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(0.5 if me else 60)\nsys.exit(3)"
    started = time.monotonic()
    job = launch(script(tmp_path, body), grace_secs=0.5)
    job.communicate(timeout=30)
    assert job.returncode == 3
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_was_killed_is_named_last(tmp_path, processes):
    """Its peers die after it, with errors of their own; killed alone it has said nothing itself."""
    body = (
        f"victim = me == {processes - 1}\n"
        "time.sleep(1 if victim else 0)\n"
        "if victim: os.kill(os.getpid(), signal.SIGKILL)\n"
        "try: signal.signal(signal.SIGTERM, signal.default_int_handler); time.sleep(60)\n"
        "except KeyboardInterrupt: print('error: a peer is gone', file=sys.stderr); sys.exit(1)\n"
    )
    job = launch(script(tmp_path, body), processes=processes)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 137
    ended = f"process {processes - 1} was ended by signal 9 (SIGKILL; out of memory, or kill -9)"
    assert err.splitlines()[-1] == f"error: {ended}"
    if processes > 1:
        assert err.splitlines()[:2] == [f"{ended}; the others are told to end", "[0] error: a peer is gone"]


def test_what_went_wrong_first_is_said_again_only_if_something_followed(tmp_path):
    body = "print('error: no such file', file=sys.stderr)\nsys.exit(2)"
    job = launch(script(tmp_path, body), processes=1)
    assert job.communicate(timeout=30)[1].splitlines() == ["[0] error: no such file"]
    body = "print('error: no such file', file=sys.stderr)\nprint('Traceback', file=sys.stderr)\nsys.exit(2)"
    job = launch(script(tmp_path, body), processes=1)
    lines = job.communicate(timeout=30)[1].splitlines()
    assert lines == ["[0] error: no such file", "[0] Traceback", "[0] error: no such file"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_once(tmp_path, number):
    body = (
        "got = []\n"
        "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, lambda n, _: got.append(n))\n"
        "print('ready', flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3); print('got', *map(int, got)); sys.exit(4)\n"
    )
    job = launch(script(tmp_path, body))
    assert {job.stdout.readline(), job.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    job.send_signal(number)
    out, _ = job.communicate(timeout=30)
    assert sorted(out.splitlines()) == [f"[0] got {int(number)}", f"[1] got {int(number)}"]
    assert job.returncode == 4


def test_bad_flags(tmp_path):
    true = ["--", "true"]
    wrong = (["--processes=0", *true], ["--processes=x", *true], ["--grace_secs=0", *true], ["--processess=2", *true])
    for arguments in (*wrong, ["--processes=2"], ["--", str(tmp_path / "no_such_program")]):
        run = subprocess.run(
            [sys.executable, "-m", "launch.local", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2
        (line,) = run.stderr.splitlines()
        assert line.startswith("error: ")
