"""A training on TPU VMs got through a queue: prints the shell script that gets them, runs on them, and gives them back.

    python -m launch.tpu_vm --name=cxr-pod --machine=v5e:16x16 --zone=us-west4-a --spot --directory='~/cxr_jax' \\
        --setup='(test -d cxr_jax || git clone https://github.com/ORG/cxr_jax) &&
                 pip install -r cxr_jax/requirements-tpu.txt' \\
        -- python -m cxr_jax.train --config=... --workdir=/shared/runs/pod > pod.sh
    bash pod.sh

In: a machine, a zone and a command. Out: a bash script on stdout that needs `gcloud` alone. It asks for a queued
resource, waits until it is there, runs the command on every host, and does so again when the machines were taken away;
the training continues from its last checkpoint. Exit codes 0, 2 and 3 of the training end it. The training does not
hang on the connection: when that is lost, or the script was stopped and is started again, the script finds the training
and goes on watching it. What the script knows of a host lies there in `~/.launch/NAME`.
"""

import argparse
import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.machines import add_flags, at_least, training
from launch.sweeping.flags import Parser

BODY = Path(__file__).with_name("tpu_vm.sh")

# What runs on a host. An attempt is known by a name: a host on which it was started already starts nothing.
HOST = """\
here="$HOME/.launch/{name}"; mkdir -p "$here"; cd "$here" || exit 1
alive() {{ [ -s pid ] && grep -qzF "$here/run" "/proc/$(cat pid)/cmdline" 2>/dev/null; }}
"""
SETUP = """\
[ ! -e {marker} ] || exit 0
(cd && bash -c {setup}); code=$?
[ "$code" = 0 ] || {{ echo "error: --setup failed on $(hostname) with exit code $code" >&2; exit 99; }}
touch {marker}
"""
START = """\
[ "$(cat attempt 2>/dev/null)" != "$1" ] || exit 0
if alive; then
  echo "ending the attempt before on $(hostname)" >&2
  kill -TERM -- "-$(cat pid)"
  for _ in $(seq {grace}); do alive || break; sleep 1; done
  if alive; then kill -KILL -- "-$(cat pid)"; fi
fi
rm -f exit_code pid; echo "$1" > attempt
printf %s {run} > run
setsid bash "$here/run" > log 2>&1 < /dev/null & echo $! > pid
"""
# Another host than the first may have lost its process without an exit code: killed, or the host was started anew.
WATCH = """\
[ "$(cat attempt 2>/dev/null)" = "$1" ] || exit 1
from=+1; [ "$(cat watched 2>/dev/null)" != "$1" ] || from=20
echo "$1" > watched
tail -n "$from" -s 0.5 --pid="$(cat pid)" -f log
alive || [ -e exit_code ] || echo 137 > exit_code
exit "$(cat exit_code 2>/dev/null || echo 255)"
"""
ASK = """\
if alive; then echo "running $(cat attempt)"
elif [ -e attempt ]; then echo "ended $(cat attempt) $(cat exit_code 2>/dev/null || echo 137)"
else echo "nothing"; fi
"""
# The wrapper outlives a SIGTERM to its group, to write down how the training took it.
RUN = """\
trap : TERM
export PYTHONUNBUFFERED=1
cd && cd {directory} || {{ echo 2 > {here}/exit_code; exit 2; }}
{line}
code=$?; echo "$code" > {here}/exit_code.part && mv {here}/exit_code.part {here}/exit_code
"""
GRACE_SECS = 300


def script(flags: argparse.Namespace, command: Sequence[str]) -> str:
    """The bash script: what differs between trainings, and then `tpu_vm.sh`."""
    machine = flags.machine
    several = ["--coordinator_address=auto"] if machine.slices * machine.hosts > 1 else []
    line = shlex.join(["env", *(f"{name}={value}" for name, value in flags.env), *command, *several])
    run = RUN.format(line=line, directory=_directory(flags.directory), here=f'"$HOME"/.launch/{flags.name}')
    values = {
        "NAME": flags.name,
        "ZONE": flags.zone,
        "ATTEMPTS": str(flags.attempts),
        "COMMAND_ID": hashlib.sha256(run.encode()).hexdigest()[:12],
        "SETUP": _on_host(flags.name, SETUP.format(marker=_marker(flags.setup), setup=shlex.quote(flags.setup))),
        "START": _on_host(flags.name, START.format(run=shlex.quote(run), grace=GRACE_SECS)),
        "WATCH": _on_host(flags.name, WATCH),
        "ASK": _on_host(flags.name, ASK),
    }
    head = [
        "#!/usr/bin/env bash",
        f"# Runs {flags.name} on {machine.slices} slice(s) of {machine.tpu_vm_type} in {flags.zone}; "
        f"{machine.num_devices} chips in all.",
        *(f"{name}={shlex.quote(value)}" for name, value in values.items()),
        f"CREATE=({shlex.join(_create(flags))})",
    ]
    return "\n".join(head) + "\n" + BODY.read_text()


def _create(flags: argparse.Namespace) -> list[str]:
    machine = flags.machine
    words = [f"--accelerator-type={machine.tpu_vm_type}", f"--runtime-version={flags.runtime or machine.runtime}"]
    several = [f"--node-count={machine.slices}", f"--node-prefix={flags.name}"]
    words += [f"--node-id={flags.name}"] if machine.slices == 1 else several
    return [*words, *(["--spot"] if flags.spot else [])]


def _on_host(name: str, program: str) -> str:
    """A line for a host's shell that runs a program of ours; what is put after it are the program's arguments."""
    return shlex.join(["bash", "-c", HOST.format(name=name) + program, "host"])


def _marker(setup: str) -> str:
    return f"setup_done.{hashlib.sha256(setup.encode()).hexdigest()[:12]}"


def _directory(path: str) -> str:
    """A path for a host's shell, where a leading ~ is the home there."""
    return (
        f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else '"$HOME"' if path == "~" else shlex.quote(path)
    )


def _directory_flag(text: str) -> str:
    if not text or (text.startswith("~") and text != "~" and not text.startswith("~/")):
        raise argparse.ArgumentTypeError(f"{text!r} must be a folder on the host: from its home, ~/FOLDER, or /FOLDER")
    return text


def _zone(text: str) -> str:
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*-[a-z]+\d+-[a-z0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a zone of Google Cloud, such as us-west4-a")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script."""
    parser = Parser(prog="python -m launch.tpu_vm", description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--zone", type=_zone, required=True, help="Google Cloud zone")
    parser.add_argument("--setup", default="true", help="shell command that prepares a host, once, from its home")
    parser.add_argument("--directory", type=_directory_flag, default="~", help="where the command runs on a host")
    parser.add_argument("--runtime", default="", help="TPU VM runtime version; that of the machine")
    parser.add_argument(
        "--attempts", type=at_least(1), default=20, help="failures, or connections lost in a row, that end it"
    )
    parser.add_argument("--spot", action="store_true", help="machines that may be taken away")
    flags = parser.parse_args(argv)
    if flags.machine.kind != "tpu":
        parser.error("--machine must be a TPU here; launch/slurm and launch.gke run on GPUs")
    print(script(flags, training(parser, flags)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
