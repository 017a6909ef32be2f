"""Several processes on this machine, as on several hosts: fake CPU devices, one coordinator.

    python -m launch.local --processes=2 --devices_per_process=4 -- python -m cxr_jax.train --config=... --workdir=...

In: a command whose entry takes `--coordinator_address`, `--num_processes` and `--process_id`. Out: its processes'
output, every line after the number of its process, and one exit code.

The first process that fails ends the others, and its exit code is returned. Ctrl-C and SIGTERM are passed on; what
has not ended `--grace_secs` later is killed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from launch.sweeping.flags import EXIT_FLAGS, Parser

POLL_SECS = 0.05


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The launcher's flags, and after `--` the command."""
    parser = Parser(prog="python -m launch.local", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="how many processes")
    parser.add_argument("--devices_per_process", type=int, default=4, help="fake CPU devices of each")
    parser.add_argument("--grace_secs", type=float, default=30.0, help="time to end after a signal, before a kill")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to run")
    flags = parser.parse_args(argv)
    flags.command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not flags.command:
        parser.error("no command; write -- python -m cxr_jax.train ... after the launcher's flags")
    for name in ("processes", "devices_per_process"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)} must be at least 1")
    if not flags.grace_secs > 0:
        parser.error(f"--grace_secs={flags.grace_secs:g} must be above 0, the time in which a process may save")
    return flags


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """This process's environment with `devices` fake CPU devices.

    XLA's CPU collectives deadlock when devices wait for each other and no thread is left, hence NPROC, which sizes
    XLA's thread pool.
    """
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "NPROC": os.environ.get("NPROC", "16"),
        "XLA_FLAGS": " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONUNBUFFERED": "1",
    }


class Said:
    """What the processes have said: each one's last `error:` line, and the last line of all."""

    def __init__(self):
        self.errors: dict[int, str] = {}
        self.last = ""
        self._lock = threading.Lock()

    def line(self, text: str, target: IO[str]) -> None:
        """Show a line."""
        with self._lock:
            target.write(f"{text}\n")
            target.flush()
            self.last = text

    def pass_on(self, number: int, source: IO[str], target: IO[str]) -> None:
        """Show what process `number` writes, its number before every line."""
        for line in source:
            text = f"[{number}] " + line.removesuffix("\n")
            if line.startswith("error: "):
                self.errors[number] = text
            self.line(text, target)


def start(
    command: Sequence[str], count: int, devices: int, said: Said
) -> tuple[list[subprocess.Popen], list[threading.Thread]]:
    """Start the processes, and the threads that pass their output on."""
    place = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    processes, readers = [], []
    for number in range(count):
        # Sessions of their own: a terminal's Ctrl-C reaches the launcher alone, which passes it on once.
        process = subprocess.Popen(
            [*command, *place, f"--process_id={number}"],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        processes.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            reader = threading.Thread(target=said.pass_on, args=(number, source, target), daemon=True)
            reader.start()
            readers.append(reader)
    return processes, readers


def exit_code(returncode: int) -> int:
    """A process's exit code as shells count it: 128 + signal for one that a signal ended."""
    return 128 - returncode if returncode < 0 else returncode


def ending(number: int, returncode: int) -> str:
    """How a process ended, for people."""
    if returncode >= 0:
        return f"process {number} ended with exit code {returncode}"
    hint = "; out of memory, or kill -9" if returncode == -signal.SIGKILL else ""
    return f"process {number} was ended by signal {-returncode} ({signal.Signals(-returncode).name}{hint})"


def wait(processes: Sequence[subprocess.Popen], received: list[int], grace_secs: float, said: Said) -> tuple[int, str]:
    """Wait for all processes; the first that fails ends the others.

    Returns the job's exit code, and what to say last of a job that was not told to end: the first failed process's own
    `error:` line, or how it ended. `received` is filled by the signal handler.
    """

    def failed() -> int | None:
        return next((i for i, process in enumerate(processes) if process.returncode), None)

    first, deadline, passed_on = None, None, 0
    while running := [i for i, process in enumerate(processes) if process.poll() is None]:
        for signal_number in received[passed_on:]:
            for i in running:
                processes[i].send_signal(signal_number)
            deadline = deadline or time.monotonic() + grace_secs
            passed_on += 1
        if first is None:
            first = failed()
            if first is not None and deadline is None:
                said.line(f"{ending(first, processes[first].returncode)}; the others are told to end", sys.stderr)
                for i in running:
                    processes[i].terminate()
                deadline = time.monotonic() + grace_secs
        if deadline and time.monotonic() > deadline:
            for i in running:
                said.line(f"process {i} has not ended in {grace_secs:g} s and is killed", sys.stderr)
                processes[i].kill()
                processes[i].wait()
        time.sleep(POLL_SECS)
    first = failed() if first is None else first
    if first is None:
        return 0, ""
    code = processes[first].returncode
    return exit_code(code), f"error: {ending(first, code)}" if code < 0 else said.errors.get(first, "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in several processes; returns their exit code."""
    flags = parse_flags(sys.argv[1:] if argv is None else argv)
    received: list[int] = []
    said = Said()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    try:
        processes, readers = start(flags.command, flags.processes, flags.devices_per_process, said)
    except OSError as error:
        print(f"error: {flags.command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return EXIT_FLAGS
    code, why = wait(processes, received, flags.grace_secs, said)
    for reader in readers:
        reader.join()
    # The peers of a failed process die noisily after it; what went wrong first stands last.
    if why not in ("", said.last):
        print(why, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
