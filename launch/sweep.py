"""Many runs of one config: checked before the first begins, run here, as a Slurm array or as xpk workloads.

    python -m launch.sweep --sweep=configs/sweeps/NAME.py --config.data.path=DATASET [--output=DIR] [--dry_run]

In: a sweep file (`configs.sweeps`), and `--config.key=value` for all its runs. Out: OUTPUT/sweep.json, OUTPUT/RUN (a
run directory), OUTPUT/RUN/STAGE (what follows it), logs and states. The same command goes on with a sweep that was
stopped.

Exit codes: 0 all runs are done, 2 or 3 (data) refused before anything began, 4 stopped by a signal, 1 a run failed.
"""

import argparse
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.sweeps import RUN_STAGE
from launch.sweeping import slurm, xpk
from launch.sweeping.execute import DONE, FAILED, STOPPED, WAITING, Executor, check_unchanged
from launch.sweeping.flags import Parser
from launch.sweeping.runs import Run, SweepError, load_sweep, resolve, write_manifest

EXIT_FAILED, EXIT_STOPPED = 1, 4
BACKENDS = ("local", "slurm", "xpk")
# Flags that only some backends look at.
ONLY_FOR = {
    **dict.fromkeys(("gpus_per_run", "retry_failed"), ("local",)),
    "parallel": ("local", "slurm"),
    **dict.fromkeys(("slurm", "setup"), ("slurm",)),
    "xpk": ("xpk",),
    "submit": ("slurm", "xpk"),
}


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; `overrides` are the `--config.key=value` among them, by key."""
    parser = Parser(prog="python -m launch.sweep", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sweep", required=True, metavar="FILE[:ARGUMENT]", help="a Python file with get_sweep()")
    add("--backend", default="local", choices=BACKENDS, help="where the runs go (default: local)")
    add("--output", metavar="DIR", help="the sweep's folder (default: runs/NAME of the file)")
    add("--dry_run", action="store_true", help="check, print every command, and stop; nothing is written")
    add("--parallel", type=int, default=0, help="runs at a time (default: locally 1, on Slurm no limit)")
    add("--gpus_per_run", type=int, default=0, help="local: GPUs that each run sees, of its own (default: all see all)")
    add("--retry_failed", action="store_true", help="local: try failed runs again")
    add("--devices", type=int, default=0, help="devices of one run, for the checks (default: those of this machine)")
    add("--nocheck_data", action="store_true", help="check without datasets, where only the jobs see them")
    add("--slurm", default="", metavar="OPTIONS", help='sbatch options, such as "--partition=gpu --gpus-per-node=8"')
    add("--setup", default="", metavar="COMMAND", help="Slurm: a shell command before the run, such as an activate")
    add("--xpk", default="", metavar="OPTIONS", help='xpk options, such as "--cluster=NAME --tpu-type=v5litepod-256"')
    add("--submit", action="store_true", help="hand the jobs to Slurm or xpk (default: only render them)")
    flags, rest = parser.parse_known_args(argv)
    flags.overrides = {}
    for word in rest:
        match = re.fullmatch(r"--?config\.([^=]+)=(.*)", word, re.DOTALL)
        if not match:
            parser.error(f"unknown argument {word!r}; overrides of all runs are written --config.key=value")
        flags.overrides[match[1]] = match[2]
    for name in ("parallel", "gpus_per_run", "devices"):
        if getattr(flags, name) < 0:
            parser.error(f"--{name}={getattr(flags, name)} must not be negative")
    for name, backends in ONLY_FOR.items():
        if getattr(flags, name) and flags.backend not in backends:
            also = " or ".join(f"--backend={backend}" for backend in backends)
            parser.error(f"--{name} means nothing with --backend={flags.backend}; it goes with {also}")
    for name in ("slurm", "xpk"):
        try:
            setattr(flags, f"{name}_options", shlex.split(getattr(flags, name)))
        except ValueError as error:
            parser.error(f"--{name}={getattr(flags, name)}: {error}; every quote needs its partner")
    if flags.backend == "xpk" and not flags.xpk_options:
        parser.error('--xpk is empty; write --xpk="--cluster=NAME --tpu-type=v5litepod-256 --docker-image=IMAGE"')
    flags.name = Path(flags.sweep.partition(":")[0]).stem
    flags.output = (flags.output or f"runs/{flags.name}").rstrip("/")
    return flags


def check(runs: Sequence[Run], *, devices: int, data: bool) -> None:
    """Have every command judged in a process of its own. Raises SweepError with a line per thing that is wrong."""
    request = {
        "runs": [{"name": run.name, "commands": [vars(command) for command in run.commands]} for run in runs],
        "devices": devices,
        "data": data,
    }
    answer = subprocess.run(
        [sys.executable, "-m", "launch.sweeping.checks"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        # Shapes need no memory, and other runs may be at work on the same GPUs.
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    if answer.returncode:
        raise RuntimeError(f"the checks themselves failed:\n{answer.stderr}")
    found = json.loads(answer.stdout.splitlines()[-1])
    wrong: dict[str, list[str]] = {}
    for name, stage, message, _ in found["errors"]:
        wrong.setdefault(message if stage == RUN_STAGE else f"{stage}: {message}", []).append(name)
    if wrong:
        lines = [f"{message} ({_which(names, len(runs))})" for message, names in wrong.items()]
        raise SweepError("\n".join(lines), max(code for *_, code in found["errors"]))
    for names in found["same"]:
        print(f"warning: {' and '.join(names)} are one config; they will give one result", file=sys.stderr)


def _which(names: Sequence[str], of: int) -> str:
    if len(names) == of:
        return f"all {of} runs" if of > 1 else names[0]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more runs" if len(names) > 3 else "")


def lock(folder: Path) -> None:
    """Hold the sweep's folder until this process ends. Raises SweepError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never closed: the kernel gives the lock back with the process.
        fcntl.flock(os.open(folder / ".sweep_lock", os.O_CREAT | os.O_RDWR, 0o644), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SweepError(f"--output={folder}: another launch.sweep is at work here; wait for it or stop it") from None
    except OSError as error:
        raise SweepError(f"--output={folder}: cannot be written ({error.strerror}); name another folder") from None


def visible_gpus(count: int):
    """What a run in a slot is told of GPUs: `count` of its own, or nothing."""

    def environment(slot: int) -> dict[str, str]:
        if not count:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(slot * count + i) for i in range(count))}

    return environment


def run_here(flags: argparse.Namespace, runs: Sequence[Run]) -> int:
    """Run the sweep on this machine; returns the exit code."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    executor = Executor(
        Path(flags.output),
        parallel=flags.parallel or 1,
        retry_failed=flags.retry_failed,
        environment=visible_gpus(flags.gpus_per_run),
        say=lambda line: print(line, flush=True),
        received=received,
    )
    outcomes = executor.run(runs)
    counts = {
        state: sum(outcome == state for outcome in outcomes.values()) for state in (DONE, FAILED, STOPPED, WAITING)
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{flags.output}: {told}, of {len(runs)} runs")
    for name, outcome in outcomes.items():
        if outcome == FAILED:
            print(f"  failed: {name} (logs in {flags.output}/logs)")
    if received:
        print("stopped; the same command goes on")
        return EXIT_STOPPED
    print(f"compare them: python -m launch.collect --runs={flags.output}")
    return EXIT_FAILED if counts[DONE] < len(runs) else 0


def hand_over(flags: argparse.Namespace, runs: Sequence[Run]) -> int:
    """Render the jobs of a cluster, and with --submit hand them over; returns the exit code."""
    if flags.backend == "slurm":
        path = Path(flags.output) / slurm.SCRIPT
        (path.parent / "logs").mkdir(exist_ok=True)
        path.write_text(sbatch(flags, runs))
        jobs = [["sbatch", str(path)]]
    else:
        jobs = xpk.commands(flags.name, runs, flags.xpk_options)
    for job in jobs:
        print(shlex.join(job), flush=True)
        if flags.submit:
            try:
                code = subprocess.run(job, check=False).returncode
            except FileNotFoundError:
                raise SweepError(f"--submit: there is no {job[0]} on this machine; run the command above") from None
            if code:
                print(f"error: {job[0]} ended with exit code {code}", file=sys.stderr)
                return EXIT_FAILED
    if not flags.submit:
        print("rendered only; --submit hands over, or run the above")
    return 0


def sbatch(flags: argparse.Namespace, runs: Sequence[Run]) -> str:
    """The Slurm array of the sweep."""
    given = {"count": len(runs), "parallel": flags.parallel, "options": flags.slurm_options, "setup": flags.setup}
    return slurm.script(flags.name, flags.output, **given)


def _quoted(words: Sequence[str]) -> str:
    """As `shlex.join`, with double quotes around what holds single ones, as people write it."""
    return " ".join(f'"{w}"' if "'" in w and not set(w) & set('"$`\\!') else shlex.quote(w) for w in words)


def show(flags: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Print every command, and what the cluster would get."""
    for number, run in enumerate(runs):
        print(f"# {number}: {run.name}")
        for command in run.commands:
            print(_quoted(command.line()))
    if flags.backend == "slurm":
        print(f"# {flags.output}/{slurm.SCRIPT}\n{sbatch(flags, runs)}", end="")
    elif flags.backend == "xpk":
        for job in xpk.commands(flags.name, runs, flags.xpk_options):
            print(shlex.join(job))


def main(argv: Sequence[str] | None = None) -> int:
    """Check all runs, then run, render or show them; returns the exit code."""
    flags = parse_flags(sys.argv[1:] if argv is None else argv)
    try:
        sweep = load_sweep(flags.sweep)
        runs = resolve(sweep, flags.output, flags.overrides)
        check_unchanged(Path(flags.output), runs)
        commands = sum(len(run.commands) for run in runs)
        print(f"{flags.sweep}: {len(runs)} runs, {commands} commands; checking them", flush=True)
        check(runs, devices=flags.devices or flags.gpus_per_run, data=not flags.nocheck_data)
        if flags.dry_run:
            show(flags, runs)
            return 0
        lock(Path(flags.output))
        write_manifest(Path(flags.output), flags.sweep, runs)
        return run_here(flags, runs) if flags.backend == "local" else hand_over(flags, runs)
    except SweepError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
