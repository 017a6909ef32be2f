"""A training on Google Kubernetes Engine: prints the JobSet that `kubectl apply -f -` starts.

    python -m launch.gke --name=cxr-pod --machine=v5e:16x16 --image=REGION-docker.pkg.dev/PROJECT/cxr/train:1 \\
        --volume=cxr-shared:/shared -- python -m cxr_jax.train --config=configs/pretrain/chexfound_vitl16_pod.py \\
        --workdir=/shared/runs/pod --config.data.path=/shared/data/cxr | kubectl apply -f -

In: a machine, an image and a command. Out: YAML on stdout: a pod a host, a job a slice, restarted as a whole when a
pod dies or is preempted; exit codes 2 and 3 are the user's, and end it. TPU hosts find each other through what GKE
tells them; GPU hosts are given the address of the first pod.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from launch.machines import Machine, add_flags, training
from launch.sweeping.flags import Parser

JOB = "train"  # of the JobSet's jobs, and of the container
PORT = 8476
USERS_FAULT = (2, 3)  # exit codes that a restart does not mend
# A save of a large state and its upload, after SIGTERM. Spot machines have less, whatever is asked for.
GRACE_SECS = 300


def manifest(flags: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """The JobSet."""
    machine: Machine = flags.machine
    failure = {"operator": "In", "values": list(USERS_FAULT), "containerName": JOB}
    job = {
        "parallelism": machine.hosts,
        "completions": machine.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": failure}]},
        "template": {"spec": _pod(flags, command)},
    }
    # One slice is one node pool, and a job is to have it alone.
    placement = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": flags.name, **({"annotations": placement} if machine.kind == "tpu" else {})},
        "spec": {
            "failurePolicy": {
                "maxRestarts": flags.max_restarts,
                "rules": [{"name": "users-fault", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": JOB, "replicas": machine.slices, "template": {"spec": job}}],
        },
    }


def _pod(flags: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    machine: Machine = flags.machine
    selector = {"cloud.google.com/gke-accelerator": machine.accelerator}
    if machine.kind == "tpu":
        selector = {
            "cloud.google.com/gke-tpu-accelerator": machine.accelerator,
            "cloud.google.com/gke-tpu-topology": machine.topology,
        }
    if flags.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    container = {
        "name": JOB,
        "image": flags.image,
        "command": [*command, *_peers(flags.name, machine)],
        "resources": {"limits": {"google.com/tpu" if machine.kind == "tpu" else "nvidia.com/gpu": machine.chips}},
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(flags.volume)],
    }
    if machine.kind == "gpu":
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        container["env"] = [{"name": "PROCESS_ID", "valueFrom": {"fieldRef": index}}]
    claims = [
        {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}}
        for i, (claim, _) in enumerate(flags.volume)
    ]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECS,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": claims,
    }


def _peers(name: str, machine: Machine) -> list[str]:
    """How a pod finds the others; one process a host."""
    if machine.hosts * machine.slices == 1:
        return []
    if machine.kind == "tpu":
        return ["--coordinator_address=auto"]
    # JobSet's service gives every pod the name <jobset>-<job>-<job index>-<pod index>.<jobset>.
    first = f"{name}-{JOB}-0-0.{name}:{PORT}"
    return [f"--coordinator_address={first}", f"--num_processes={machine.hosts}", "--process_id=$(PROCESS_ID)"]


def _volume(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z0-9][a-z0-9.-]*):(/[^:]*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} must be CLAIM:/PATH, a PersistentVolumeClaim and where it is seen")
    return match[1], match[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the manifest."""
    parser = Parser(prog="python -m launch.gke", description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--image", required=True, help="container image; see launch/Dockerfile")
    parser.add_argument("--volume", type=_volume, action="append", default=[], help="CLAIM:/PATH, may be repeated")
    parser.add_argument("--max_restarts", type=int, default=100, help="of the whole job")
    parser.add_argument("--spot", action="store_true", help="on spot machines")
    flags = parser.parse_args(argv)
    print(yaml.safe_dump(manifest(flags, training(parser, flags)), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
