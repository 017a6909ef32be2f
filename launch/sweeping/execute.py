"""Runs of a sweep as processes of this machine, a few at a time, and what is kept of them.

In: runs (`runs.Run`), the sweep's folder. Out: `state/NAME.json` per run, `logs/NAME.STAGE.log` per command, an outcome
per run.

A command is done when it ended with exit code 0 and its result is there: it is not run again. One that ended with
another code has failed: it is kept, shown, and tried again only on request. All else was stopped, and goes on when the
sweep is started again: by a signal, with the machine, or because this process was killed.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launch.sweeping.runs import TRAIN, Command, Run, SweepError

DONE, FAILED, STOPPED, RUNNING, WAITING = "done", "failed", "stopped", "running", "waiting"
EXIT_STOPPED = 4  # of an entry that was told to stop and saved
POLL_SECS, GRACE_SECS = 0.1, 120.0
PR_SET_PDEATHSIG = 1


class Record:
    """state/NAME.json: per command its words, exit code (null while it runs) and time."""

    def __init__(self, folder: Path, run: Run):
        self._path = folder / "state" / f"{run.name}.json"
        self.stages: dict[str, dict[str, Any]] = {}
        # A record cut short by a crash says nothing; the runs themselves lose nothing by being asked again.
        with contextlib.suppress(FileNotFoundError, ValueError):
            stages = json.loads(self._path.read_text())
            if isinstance(stages, dict) and all(isinstance(s, dict) and "exit_code" in s for s in stages.values()):
                self.stages = stages

    def state(self, command: Command) -> str:
        """DONE, FAILED, STOPPED (also: killed, or still running when its watcher died) or WAITING."""
        entry = self.stages.get(command.stage)
        if entry is None:
            return WAITING
        code = entry["exit_code"]
        if code == 0:
            return DONE if command.result.exists() else WAITING
        return STOPPED if code is None or code < 0 or code == EXIT_STOPPED else FAILED

    def write(self, command: Command, exit_code: int | None, secs: float) -> None:
        """Note that the command runs (None), or how it ended; `secs` adds to what it took before."""
        before = self.stages.get(command.stage, {}).get("secs", 0.0)
        entry = {"arguments": list(command.arguments), "exit_code": exit_code, "secs": round(before + secs, 1)}
        self.stages[command.stage] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(self.stages, indent=2) + "\n")
        temporary.replace(self._path)


def check_unchanged(folder: Path, runs: Sequence[Run]) -> None:
    """Raise SweepError where `folder` holds a command of one of `runs` that was begun with other arguments."""
    for run in runs:
        record = Record(folder, run)
        for command in run.commands:
            before = record.stages.get(command.stage, {}).get("arguments")
            if before is not None and before != list(command.arguments):
                differ = [f"was {word}" for word in before if word not in command.arguments]
                differ += [f"is {word}" for word in command.arguments if word not in before]
                raise SweepError(
                    f"{folder}: {run.name} ({command.stage}) was begun by another command ({', '.join(differ)}); "
                    "take another --output, or remove its folder and its file in state/"
                )


@dataclass
class Job:
    """A run under way: which command, its process and when that began."""

    run: Run
    record: Record
    slot: int
    left: list[Command]
    process: subprocess.Popen | None = None
    since: float = 0.0
    waits: bool = False
    told: bool = False


@dataclass
class Executor:
    """Runs `runs`, at most `parallel` at a time; `say` gets a line per event.

    `received` is filled by a signal handler: the first signal is passed on and nothing new begins, a second one kills.
    `launcher` stands before training commands, `environment(slot)` is added to what a process inherits.
    """

    folder: Path
    parallel: int = 1
    retry_failed: bool = False
    launcher: Sequence[str] = ()
    training_flags: Sequence[str] = ()
    environment: Callable[[int], dict[str, str]] = lambda slot: {}
    say: Callable[[str], None] = print
    received: list[int] = field(default_factory=list)
    _deadline: float | None = None

    def run(self, runs: Sequence[Run]) -> dict[str, str]:
        """Run what is not done. Returns `{name: DONE | FAILED | STOPPED | WAITING}`."""
        outcomes: dict[str, str] = {}
        queue: list[tuple[Run, Record, list[Command]]] = []
        jobs: list[Job] = []
        for run in runs:
            record = Record(self.folder, run)
            left = [command for command in run.commands if record.state(command) != DONE]
            failed = not self.retry_failed and any(record.state(command) == FAILED for command in left)
            if not left or failed:
                outcomes[run.name] = FAILED if failed else DONE
                self.say(f"{run.name}: {'failed before, --retry_failed tries again' if failed else 'done before'}")
            else:
                outcomes[run.name] = WAITING
                queue.append((run, record, left))
        while jobs or (queue and not self.received):
            free = [slot for slot in range(self.parallel) if slot not in {job.slot for job in jobs}]
            while queue and free and not self.received:
                run, record, left = queue.pop(0)
                jobs.append(Job(run, record, free.pop(0), left))
            for job in list(jobs):
                outcome = self._advance(job)
                if outcome != RUNNING:
                    outcomes[job.run.name] = outcome
                    jobs.remove(job)
            time.sleep(POLL_SECS)
        return outcomes

    def _advance(self, job: Job) -> str:
        """Begin, watch or end the next command of a job. Returns RUNNING, or the job's outcome."""
        command = job.left[0]
        if job.process is None:
            if self.received:
                return STOPPED
            if is_locked(Path(command.workdir)):
                if not job.waits:
                    self.say(f"{job.run.name}: a process still works in {command.workdir}; waiting for its end")
                job.waits = True
                return RUNNING
            self._begin(job, command)
            return RUNNING
        self._pass_on(job, job.process)
        if job.process.poll() is None:
            return RUNNING
        code, secs = job.process.returncode, time.monotonic() - job.since
        job.record.write(command, code, secs)
        job.process = None
        state = job.record.state(command)
        about = f"{job.run.name}: {command.stage}"
        if state == DONE:
            self.say(f"{about} done in {secs:.0f} s")
            job.left.pop(0)
            return RUNNING if job.left else DONE
        if state == STOPPED:
            self.say(f"{about} stopped; the same command goes on")
            return STOPPED
        log = log_path(self.folder, job.run, command)
        why = last_words(log) if code else f"it left no {command.result.name}"
        self.say(f"{about} failed with exit code {code}: {why} (all of it: {log})")
        return FAILED

    def _begin(self, job: Job, command: Command) -> None:
        log = log_path(self.folder, job.run, command)
        log.parent.mkdir(parents=True, exist_ok=True)
        trains = command.entry == TRAIN
        words = [*(self.launcher if trains else ()), *command.line(sys.executable)]
        words += self.training_flags if trains else ()
        self.say(f"{job.run.name}: {command.stage} {'goes on' if job.record.state(command) == STOPPED else 'starts'}")
        job.record.write(command, None, 0.0)
        job.since = time.monotonic()
        with log.open("a") as file:
            job.process = start(words, file, self.environment(job.slot))

    def _pass_on(self, job: Job, process: subprocess.Popen) -> None:
        """The first signal tells a process to save and end; a second one, or no end in time, kills it."""
        if not self.received:
            return
        self._deadline = self._deadline or time.monotonic() + GRACE_SECS
        if not job.told:
            process.send_signal(signal.SIGTERM)
            job.told = True
        if len(self.received) > 1 or time.monotonic() > self._deadline:
            process.kill()


def start(words: Sequence[str], log: IO[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start a command in a session of its own, so that Ctrl-C reaches the sweep alone, writing to `log`."""
    log.write(f"$ {shlex.join(words)}\n")
    log.flush()
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    # A killed sweep leaves no training behind: the kernel sends it SIGTERM, on which it saves and ends.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def log_path(folder: Path, run: Run, command: Command) -> Path:
    """Where the output of a command goes; a continued one goes on in it."""
    return folder / "logs" / f"{run.name}.{command.stage}.log"


def last_words(log: Path) -> str:
    """The line that says what went wrong: an entry's own `error: `, or an exception's, or the last of all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (ours or raised or lines or ["no output"])[-1].removeprefix("error: ")


def is_locked(workdir: Path) -> bool:
    """Whether another process holds the run directory."""
    try:
        lock = os.open(workdir / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
