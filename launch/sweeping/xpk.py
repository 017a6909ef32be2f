"""A sweep as xpk workloads, one JobSet a run.

In: runs. Out: an `xpk workload create` command for each. A workload runs the training alone: what follows it is for one
machine, not for every host of a slice, and is run by the local backend where it sees the runs' folders.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence

from launch.sweeping.runs import Run

NAME_CHARACTERS = 39  # xpk adds to the name, and Kubernetes allows 63


def workload_name(sweep: str, run: Run) -> str:
    """A name for Kubernetes: lower-case letters, digits and dashes; the end tells runs apart."""
    digest = hashlib.sha256(run.name.encode()).hexdigest()[:8]
    start = re.sub(r"[^a-z0-9]+", "-", sweep.lower()).strip("-") or "sweep"
    return f"{start[: NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


def commands(sweep: str, runs: Sequence[Run], options: Sequence[str]) -> list[list[str]]:
    """One `xpk workload create` per run; `options` name cluster, device type, image."""
    made = []
    for run in runs:
        line = shlex.join([*run.commands[0].line(), "--coordinator_address=auto"])
        name = f"--workload={workload_name(sweep, run)}"
        made.append(["xpk", "workload", "create", name, *options, f"--command={line}"])
    return made
