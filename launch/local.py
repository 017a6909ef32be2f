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

POLL_SECS = 0.05
EXIT_FLAGS = 2


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The launcher's flags, and after `--` the command."""
    parser = argparse.ArgumentParser(prog="python -m launch.local", description=__doc__.splitlines()[0])
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


def _prefix(number: int, source: IO[str], target: IO[str], errors: list[str]) -> None:
    for line in source:
        target.write(f"[{number}] {line}")
        target.flush()
        if line.startswith("error: "):
            errors.append(f"[{number}] {line}")


def start(
    command: Sequence[str], count: int, devices: int, errors: list[str]
) -> tuple[list[subprocess.Popen], list[threading.Thread]]:
    """Start the processes and the threads that pass their output on and collect `error:` lines in `errors`."""
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
            reader = threading.Thread(target=_prefix, args=(number, source, target, errors), daemon=True)
            reader.start()
            readers.append(reader)
    return processes, readers


def exit_code(returncode: int) -> int:
    """A process's exit code as shells count it: 128 + signal for one that a signal ended."""
    return 128 - returncode if returncode < 0 else returncode


def wait(processes: Sequence[subprocess.Popen], received: list[int], grace_secs: float) -> int:
    """Wait for all processes. Returns 0, or the exit code of the first that failed, which ends the others.

    `received` is filled by the signal handler.
    """
    code, deadline, passed_on = 0, None, 0
    while running := [process for process in processes if process.poll() is None]:
        for number in received[passed_on:]:
            for process in running:
                process.send_signal(number)
            deadline = deadline or time.monotonic() + grace_secs
            passed_on += 1
        if not code:
            number, code = next(((i, exit_code(p.returncode)) for i, p in enumerate(processes) if p.returncode), (0, 0))
            if code and deadline is None:
                print(f"process {number} ended with exit code {code}; the others are told to end", file=sys.stderr)
                for process in running:
                    process.terminate()
                deadline = time.monotonic() + grace_secs
        if deadline and time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(POLL_SECS)
    return code or max(exit_code(process.returncode) for process in processes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in several processes; returns their exit code."""
    flags = parse_flags(sys.argv[1:] if argv is None else argv)
    received: list[int] = []
    errors: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    try:
        processes, readers = start(flags.command, flags.processes, flags.devices_per_process, errors)
    except OSError as error:
        print(f"error: {flags.command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return EXIT_FLAGS
    code = wait(processes, received, flags.grace_secs)
    for reader in readers:
        reader.join()
    if code and errors:
        # The peers of a failed process die noisily after it; what went wrong first stands last.
        print(errors[0], end="", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
