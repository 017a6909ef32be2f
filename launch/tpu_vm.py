"""A training on TPU VMs got through a queue: prints the shell script that gets them, runs on them, and gives them back.

    python -m launch.tpu_vm --name=cxr-pod --machine=v5e:16x16 --zone=us-west4-a --spot \\
        --setup='git clone https://github.com/ORG/cxr_jax && pip install -r cxr_jax/requirements-tpu.txt' \\
        --directory=cxr_jax -- python -m cxr_jax.train --config=... --workdir=/shared/runs/pod > pod.sh
    bash pod.sh

In: a machine, a zone and a command. Out: a bash script on stdout that needs `gcloud` alone. It asks for a queued
resource, waits until it is there, runs the command on every host, and does so again when the machines were taken away;
the training continues from its last checkpoint. Exit codes 0, 2 and 3 of the training end it.
"""

import shlex
import sys
from collections.abc import Sequence

from launch.machines import add_flags, training
from launch.sweeping.flags import Parser

SCRIPT = """\
#!/usr/bin/env bash
# Runs {name} on {slices} slice(s) of {vm_type} in {zone}; {devices} chips in all.
set -uo pipefail
NAME={name} ZONE={zone}
ON_EVERY_HOST={remote}
SETUP={setup}

queued() {{ gcloud alpha compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${{@:2}}"; }}
state() {{ queued describe --format='value(state.state)' 2>/dev/null; }}
give_back() {{ queued delete --force --quiet; }}
on_hosts() {{ queued ssh --node=all --worker=all --command="$1"; }}
on_first() {{ queued ssh --node=0 --worker=0 --command="$1"; }}

GIVE_BACK="gcloud alpha compute tpus queued-resources delete $NAME --zone=$ZONE --force"
trap 'echo "stopped; the machines stay. To give them back: $GIVE_BACK"; exit 130' INT TERM
failures=0
while true; do
  case "$(state)" in
    "")
      {create} || exit 1
      fresh=yes ;;
    ACTIVE)
      if [ "${{fresh:-yes}}" = yes ]; then on_hosts "$SETUP" || exit 1; fresh=no; fi
      on_hosts "$ON_EVERY_HOST"
      code=$(on_first 'cat exit_code' | tr -dc 0-9)
      case "${{code:-lost}}" in
        0) give_back; exit 0 ;;
        2 | 3) echo "error: exit code $code; the machines stay. To give them back: $GIVE_BACK" >&2; exit "$code" ;;
        4) echo "saved and stopped; continuing" >&2 ;;
        lost) echo "the machines are gone; asking again" >&2 ;;
        *) failures=$((failures + 1)); echo "exit code $code; attempt $failures" >&2
           [ "$failures" -lt {attempts} ] || exit "$code" ;;
      esac ;;
    SUSPENDING | SUSPENDED | FAILED)
      # Taken away: a queued resource never comes back to life.
      give_back; fresh=yes ;;
  esac
  sleep "${{POLL_SECS:-30}}"
done
"""


def script(flags, command: Sequence[str]) -> str:
    """The bash script."""
    machine = flags.machine
    create = ["gcloud", "alpha", "compute", "tpus", "queued-resources", "create", flags.name, f"--zone={flags.zone}"]
    create += [f"--accelerator-type={machine.tpu_vm_type}", f"--runtime-version={flags.runtime or machine.runtime}"]
    create += (
        [f"--node-id={flags.name}"]
        if machine.slices == 1
        else [f"--node-count={machine.slices}", f"--node-prefix={flags.name}"]
    )
    create += ["--spot"] if flags.spot else []
    several = ["--coordinator_address=auto"] if machine.slices * machine.hosts > 1 else []
    line = shlex.join([*command, *several])
    # The file of an earlier life must not be taken for this one's.
    remote = (
        f"rm -f exit_code; (cd {shlex.quote(flags.directory)} && {line}); code=$?; echo $code > exit_code; exit $code"
    )
    return SCRIPT.format(
        name=flags.name,
        zone=flags.zone,
        slices=machine.slices,
        vm_type=machine.tpu_vm_type,
        devices=machine.num_devices,
        remote=shlex.quote(remote),
        setup=shlex.quote(flags.setup),
        create=shlex.join(create),
        attempts=flags.attempts,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script."""
    parser = Parser(prog="python -m launch.tpu_vm", description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--zone", required=True, help="Google Cloud zone")
    parser.add_argument("--setup", default="true", help="shell command that prepares a fresh host")
    parser.add_argument("--directory", default=".", help="where the command runs on a host")
    parser.add_argument("--runtime", default="", help="TPU VM runtime version; that of the machine")
    parser.add_argument("--attempts", type=int, default=20, help="failures other than lost machines that end it")
    parser.add_argument("--spot", action="store_true", help="machines that may be taken away")
    flags = parser.parse_args(argv)
    if flags.machine.kind != "tpu":
        parser.error("--machine must be a TPU here; launch/slurm and launch.gke run on GPUs")
    print(script(flags, training(parser, flags)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
