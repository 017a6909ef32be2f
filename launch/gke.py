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
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from launch.machines import Machine, add_flags, at_least, training
from launch.sweeping.flags import Parser

DNS = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"  # a part of a Kubernetes object's name
QUANTITY = r"[1-9]\d*(\.\d+)?"
SHM = "/dev/shm"
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
        "command": [*map(_literal, command), *_peers(flags.name, machine)],
        "resources": _resources(flags),
        "ports": [{"containerPort": PORT}],
        "env": [{"name": name, "value": _literal(value)} for name, value in flags.env],
    }
    if machine.kind == "gpu":
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        container["env"].append({"name": "PROCESS_ID", "valueFrom": {"fieldRef": index}})
    # Data workers hand arrays over in shared memory, of which a container has 64 MB if nothing is said.
    places = [("shm", SHM, {"emptyDir": {"medium": "Memory"}})]
    places += [
        (f"scratch-{i}", path, {"emptyDir": {"sizeLimit": size}}) for i, (path, size) in enumerate(flags.scratch)
    ]
    claims = [(path, {"persistentVolumeClaim": {"claimName": claim}}) for claim, path in flags.volume]
    places += [(f"volume-{i}", path, source) for i, (path, source) in enumerate(claims)]
    container["volumeMounts"] = [{"name": name, "mountPath": path} for name, path, _ in places]
    account = {"serviceAccountName": flags.service_account} if flags.service_account else {}
    return {
        **account,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECS,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [{"name": name, **source} for name, _, source in places],
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


def _resources(flags: argparse.Namespace) -> dict[str, Any]:
    machine: Machine = flags.machine
    limits = {"google.com/tpu" if machine.kind == "tpu" else "nvidia.com/gpu": machine.chips}
    requests = {name: value for name, value in (("cpu", flags.cpu), ("memory", flags.memory)) if value}
    return {"limits": limits} | ({"requests": requests} if requests else {})


def _literal(text: str) -> str:
    """`text` as Kubernetes must be given it, which replaces $(NAME) and reads $$ as $."""
    return text.replace("$", "$$")


def _matching(pattern: str, legal: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} must be {legal}")
        return text

    return parse


def _path(text: str) -> str:
    path = text.rstrip("/")
    if not re.fullmatch(r"(/[^/:\s]+)+", path) or {".", ".."} & set(path.split("/")):
        raise argparse.ArgumentTypeError(f"{text!r} must be an absolute path in the container, and not /")
    return path


def _volume(text: str) -> tuple[str, str]:
    claim, colon, path = text.partition(":")
    if not colon or not re.fullmatch(rf"{DNS}(\.{DNS})*", claim):
        raise argparse.ArgumentTypeError(f"{text!r} must be CLAIM:/PATH, a PersistentVolumeClaim and where it is seen")
    return claim, _path(path)


def _scratch(text: str) -> tuple[str, str]:
    path, colon, size = text.rpartition(":")
    if not colon or not re.fullmatch(rf"{QUANTITY}[MGT]i?", size):
        raise argparse.ArgumentTypeError(f"{text!r} must be /PATH:SIZE, such as /scratch:200Gi")
    return _path(path), size


def _flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the command after them."""
    parser = Parser(prog="python -m launch.gke", description=__doc__.splitlines()[0])
    add_flags(parser)
    image = _matching(r"[A-Za-z0-9][\w./:@-]*", "the name of a container image")
    account = _matching(rf"{DNS}(\.{DNS})*", "the name of a Kubernetes service account")
    cpu = _matching(rf"{QUANTITY}|[1-9]\d*m", "a number of cores, such as 96")
    memory = _matching(rf"{QUANTITY}[MGT]i?", "an amount with its unit, such as 128Gi")
    parser.add_argument("--image", type=image, required=True, help="container image; see launch/Dockerfile")
    parser.add_argument("--volume", type=_volume, action="append", default=[], help="CLAIM:/PATH, may be repeated")
    parser.add_argument("--scratch", type=_scratch, action="append", default=[], help="/PATH:SIZE of the node's disk")
    parser.add_argument("--service_account", type=account, help="Kubernetes service account of the pods")
    parser.add_argument("--cpu", type=cpu, help="cores a pod asks for")
    parser.add_argument("--memory", type=memory, help="memory a pod asks for")
    parser.add_argument("--max_restarts", type=at_least(0), default=100, help="of the whole job")
    parser.add_argument("--spot", action="store_true", help="on spot machines")
    flags = parser.parse_args(argv)
    paths = [SHM, *(path for _, path in flags.volume), *(path for path, _ in flags.scratch)]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        parser.error(f"--volume, --scratch: {', '.join(twice)} is taken twice; every path can hold one thing")
    if flags.machine.kind == "gpu" and any(name == "PROCESS_ID" for name, _ in flags.env):
        parser.error("--env: PROCESS_ID is the launcher's own; choose another name")
    return flags, training(parser, flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the manifest."""
    print(yaml.safe_dump(manifest(*_flags(argv)), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
