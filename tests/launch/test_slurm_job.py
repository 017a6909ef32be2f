"""launch/slurm/train.sbatch on a real Slurm of one node, started here on loopback: two tasks, stopped once, requeued.

Needs Debian's slurm-wlm and munge, and root, as which alone munged and slurmd run jobs without an installation.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import free_port
from tests.tiny_run import QUICK_COMPILE, TINY_RUN

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
STEPS = 60
TINY = TINY_RUN | {"total_steps": STEPS, "checkpoint.every_steps": 1000}
CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""
missing = [name for name in PROGRAMS if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="munged and slurmd run jobs for root only"),
]


def until(condition, seconds: float, what: str):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)
    return value


@pytest.fixture
def slurm(tmp_path):
    """The environment of a cluster of this machine, and the folder of its logs."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, controller=free_port(), node=free_port()))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    files = [f"--{name}-file={folder}/{file}" for name, file in (("key", "key"), ("pid", "m.pid"), ("seed", "m.seed"))]
    munged = ["munged", "--force", "--foreground", f"--socket={folder}/munge.sock", *files]
    daemons = [munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c", "-N", "localhost"]]
    started = []
    try:
        for daemon in daemons:
            with (folder / f"{daemon[0]}.log").open("w") as log:
                started.append(subprocess.Popen(daemon, env=environment, stdout=log, stderr=log))
            # The next one talks to it.
            time.sleep(1)
        idle = ["sinfo", "--noheader", "--format=%T"]
        until(
            lambda: "idle" in subprocess.run(idle, env=environment, capture_output=True, text=True).stdout,
            60,
            lambda: "\n".join(log.read_text()[-1000:] for log in folder.glob("*.log")),
        )
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)


def test_two_tasks_are_stopped_requeued_and_continue(slurm, phantom_dataset, tmp_path):
    run, log = tmp_path / "run", tmp_path / "job.log"
    environment = slurm | {
        "CXR_ENV": str(Path(sys.executable).parents[1]),
        "CXR_DEVICES": "2",
        "NPROC": "16",
        "XLA_FLAGS": " ".join(QUICK_COMPILE),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flags = [
        f"--workdir={run}",
        f"--config.data.path={phantom_dataset}",
        *(f"--config.{k}={v}" for k, v in TINY.items()),
    ]
    submit = ["sbatch", "--parsable", "--ntasks=2", f"--output={log}", "launch/slurm/train.sbatch"]
    submit += ["--config=configs/smoke.py", *flags]
    job = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def lines():
        return (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []

    def said():
        return log.read_text() if log.exists() else "no log yet"

    def control(*arguments):
        return subprocess.run(["scontrol", *arguments], env=slurm, capture_output=True, text=True).stdout

    until(lambda: len(lines()) > 3, 240, said)
    # As the scheduler does before it takes the node away.
    subprocess.run(["scancel", "--signal=TERM", job], env=slurm, check=True)
    until(lambda: "Restarts=1" in control("show", "job", job), 120, said)
    stopped = len(lines())
    assert 3 < stopped < STEPS, "it was stopped between"
    assert "back into the queue" in said() and said().count("told to stop; the state is saved") == 2
    # A requeued job waits two minutes; in the second in which it was stopped, its new credential counts as revoked.
    time.sleep(5)
    control("update", f"JobId={job}", "StartTime=now")
    until(lambda: any(f"JobState={end}" in control("show", "job", job) for end in ("COMPLETED", "FAILED")), 240, said)
    assert [json.loads(line)["step"] for line in lines()] == list(range(STEPS)), "every step once"
    assert f"step {stopped} of {STEPS}" in said()
    assert said().count("process 1 of 2 on ") == 2 and "1 of 2 devices" in said()
