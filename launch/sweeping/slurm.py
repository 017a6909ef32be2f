"""A sweep as one Slurm job array: a rendered sbatch script, and the task that each element runs.

    python -m launch.sweeping.slurm --output=DIR --task=INDEX

In: sweep.json and the element's number. Out: that run, as a local sweep would run it, with the same files. An element
that Slurm stops saves, and is put back into the queue.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.sweeping.execute import DONE, EXIT_STOPPED, STOPPED, Executor
from launch.sweeping.flags import Parser
from launch.sweeping.runs import SweepError, read_manifest

SCRIPT = "sweep.sbatch"
NOTICE_SECS = 120  # between Slurm's signal and its kill; a save takes less


def script(name: str, output: str, *, count: int, parallel: int, options: Sequence[str], setup: str) -> str:
    """The sbatch script of an array of `count` elements, at most `parallel` at a time (0: no limit)."""
    limit = f"%{parallel}" if parallel else ""
    own = [
        f"--job-name={name}",
        f"--array=0-{count - 1}{limit}",
        f"--output={output.replace('%', '%%')}/logs/slurm-%A_%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{NOTICE_SECS}",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {_quoted(option)}" for option in [*own, *options]), "set -e"]
    lines += [f"cd {shlex.quote(str(Path.cwd()))}", *([setup] if setup else [])]
    # `exec`: the batch shell's signal has to reach Python.
    lines += [f'exec python -m launch.sweeping.slurm --output={shlex.quote(output)} --task="$SLURM_ARRAY_TASK_ID"']
    return "\n".join(lines) + "\n"


def _quoted(option: str) -> str:
    """An option as sbatch reads its lines: like a shell's, but a backslash counts between any quotes."""
    if shlex.quote(option) == option:
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def launcher() -> tuple[list[str], list[str]]:
    """What stands before and behind a training's command: `srun` and the flag that joins its processes, if several."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if int(tasks) == 1:
        return [], []
    # One process a device, as launch/slurm/train.sbatch has it; CXR_DEVICES says otherwise.
    devices = os.environ.get("CXR_DEVICES", tasks)
    return ["srun", "--kill-on-bad-exit=1", "--wait=120"], ["--coordinator_address=auto", f"--num_devices={devices}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one element; its exit code."""
    parser = Parser(prog="python -m launch.sweeping.slurm", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the sweep's folder")
    parser.add_argument("--task", type=int, required=True, help="number of the run in sweep.json")
    flags = parser.parse_args(argv)
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    try:
        runs = read_manifest(flags.output)
        if not 0 <= flags.task < len(runs):
            raise SweepError(f"--task={flags.task}: {flags.output} has runs 0 to {len(runs) - 1}")
    except SweepError as error:
        parser.error(str(error))
    before, behind = launcher()
    executor = Executor(flags.output, launcher=before, training_flags=behind, received=received, retry_failed=True)
    (outcome,) = executor.run([runs[flags.task]]).values()
    if outcome == STOPPED and "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        subprocess.run(["scontrol", "requeue", job], check=False)
    return {DONE: 0, STOPPED: EXIT_STOPPED}.get(outcome, 1)


if __name__ == "__main__":
    sys.exit(main())
