"""What the launchers for clouds print: a manifest that says what is meant, flags that mean something."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from launch import gke, tpu_vm
from launch.machines import SHAPES, parse_machine

TRAIN = ["--", "python", "-m", "cxr_jax.train", "--config=configs/smoke.py", "--config.data.targets=('a b',)"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "slices", "hosts", "chips", "tpu_vm_type"),
    [
        ("v5e:16x16", 1, 64, 4, "v5litepod-256"),
        ("4xv5e:16x16", 4, 64, 4, "v5litepod-256"),
        ("v5e:2x4", 1, 1, 8, "v5litepod-8"),
        ("v6e:8x16", 1, 32, 4, "v6e-128"),
        ("v5p:4x4x8", 1, 32, 4, "v5p-256"),
        ("v5p:2x2x1", 1, 1, 4, "v5p-8"),
        ("h100:4x8", 1, 4, 8, ""),
        ("a100:1x2", 1, 1, 2, ""),
    ],
)
def test_machines(name, slices, hosts, chips, tpu_vm_type):
    machine = parse_machine(name)
    assert (machine.slices, machine.hosts, machine.chips) == (slices, hosts, chips)
    assert machine.tpu_vm_type == tpu_vm_type and machine.num_devices == slices * hosts * chips


@pytest.mark.parametrize("chip", SHAPES)
def test_shapes_are_those_that_can_be_planned(chip):
    chips = tomllib.loads((ROOT / "cxr_jax/planning/chips.toml").read_text())
    assert SHAPES[chip] == chips[chip]["shapes"]
    assert set(SHAPES) == {name for name, chip in chips.items() if chip["platform"] == "tpu"}


@pytest.mark.parametrize("entry", [gke, tpu_vm])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name=cxr", "--machine=v9:2x2", *TRAIN], "--machine: 'v9:2x2' is unknown; legal are such as v5e:16x16"),
        (["--name=cxr", "--machine=v5p:16x16", *TRAIN], "v5p has no slices of shape 16x16; legal are 2x2x1, 2x2x2"),
        (["--name=cxr", "--machine=v5e:4x2", *TRAIN], "legal are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        (["--name=cxr", "--machine=v5e:999x999", *TRAIN], "v5e has no slices of shape 999x999"),
        (["--name=cxr", "--machine=2xh100:4x8", *TRAIN], "'2xh100:4x8' is not hosts x GPUs of a host"),
        (["--name=cxr", "--machine=h100:1x3", *TRAIN], "legal are h100:HOSTSx1, h100:HOSTSx2, h100:HOSTSx4"),
        (["--name=Cxr Pod", "--machine=v5e:2x4", *TRAIN], "lower-case letters"),
        (["--name=cxr", "--machine=v5e:2x4"], "no command; write -- python -m cxr_jax.train"),
    ],
)
def test_bad_flags_are_one_line(entry, flags, words, capsys):
    own = ["--image=i"] if entry is gke else ["--zone=us-west4-a"]
    with pytest.raises(SystemExit) as caught:
        entry.main([*own, *flags])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and words in err and err.count("\n") == 1


def manifest(capsys, *flags):
    assert gke.main(["--name=cxr", "--image=repository/cxr:1", *flags, *TRAIN]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_two_tpu_slices_on_gke(capsys):
    found = manifest(capsys, "--machine=2xv5e:16x16", "--spot", "--volume=shared:/shared")
    (job,) = found["spec"]["replicatedJobs"]
    work = job["template"]["spec"]
    assert job["replicas"] == 2 and work["parallelism"] == work["completions"] == 64
    assert found["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    pod = work["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-3:] == [TRAIN[-1], "--num_devices=512", "--coordinator_address=auto"]
    assert container["volumeMounts"][1:] == [{"name": "volume-0", "mountPath": "/shared"}]
    assert pod["volumes"][1:] == [{"name": "volume-0", "persistentVolumeClaim": {"claimName": "shared"}}]


def pod_of(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_what_a_pod_is_given_on_gke(capsys):
    flags = ["--scratch=/scratch:200Gi", "--volume=a:/shared/", "--service_account=cxr", "--cpu=96", "--memory=128Gi"]
    pod = pod_of(manifest(capsys, "--machine=v5e:2x4", *flags, "--env=XLA_FLAGS=--a=1,2 --b='$(c)'", "--env=EMPTY="))
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == "cxr"
    assert container["resources"]["requests"] == {"cpu": "96", "memory": "128Gi"}
    assert container["env"] == [{"name": "XLA_FLAGS", "value": "--a=1,2 --b='$$(c)'"}, {"name": "EMPTY", "value": ""}]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {mounted[volume.pop("name")]: volume for volume in pod["volumes"]} == {
        "/dev/shm": {"emptyDir": {"medium": "Memory"}},
        "/scratch": {"emptyDir": {"sizeLimit": "200Gi"}},
        "/shared": {"persistentVolumeClaim": {"claimName": "a"}},
    }
    plain = pod_of(manifest(capsys, "--machine=v5e:2x4"))
    assert "serviceAccountName" not in plain and "requests" not in plain["containers"][0]["resources"]


def test_kubernetes_replaces_nothing_in_the_users_words(capsys):
    """It reads $(NAME) as a variable and $$ as $."""
    flags = ["--name=cxr", "--image=i", "--machine=h100:2x8", "--", "train", "--x=$(PROCESS_ID)", "--y=$$z"]
    assert gke.main(flags) == 0
    (container,) = pod_of(yaml.safe_load(capsys.readouterr().out))["containers"]
    assert container["command"][1:3] == ["--x=$$(PROCESS_ID)", "--y=$$$$z"]
    assert container["command"][-1] == "--process_id=$(PROCESS_ID)"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--volume=a:/x", "--volume=b:/x/"], "/x is taken twice"),
        (["--volume=a:/x", "--scratch=/x:1Gi"], "/x is taken twice"),
        (["--volume=a:/dev/shm"], "/dev/shm is taken twice"),
        (["--volume=a:/"], "must be an absolute path in the container, and not /"),
        (["--volume=a:/x/../y"], "must be an absolute path"),
        (["--volume=a..b:/x"], "must be CLAIM:/PATH"),
        (["--scratch=/x:200"], "must be /PATH:SIZE, such as /scratch:200Gi"),
        (["--image="], "'' must be the name of a container image"),
        (["--image=a b; rm"], "must be the name of a container image"),
        (["--max_restarts=-1"], "'-1' must be an integer of at least 0"),
        (["--service_account=A"], "must be the name of a Kubernetes service account"),
        (["--memory=64"], "must be an amount with its unit, such as 128Gi"),
        (["--cpu=0"], "must be a number of cores"),
        (["--env=A=1", "--env=A=2"], "--env: A is set twice"),
        (["--env=PROCESS_ID=2"], "PROCESS_ID is the launcher's own"),
    ],
)
def test_bad_flags_of_gke(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        gke.main(["--name=cxr", "--image=i", "--machine=h100:2x8", *flags, *TRAIN])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and words in err and err.count("\n") == 1


def test_a_users_fault_ends_the_jobset_and_nothing_else_does(capsys):
    spec = manifest(capsys, "--machine=v5e:16x16")["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2, 3]
    (policy,) = spec["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet" and policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 100


def test_gpu_hosts_are_told_where_the_first_one_is(capsys):
    pod = manifest(capsys, "--machine=h100:4x8")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-4:] == [
        "--num_devices=32",
        "--coordinator_address=cxr-train-0-0.cxr:8476",
        "--num_processes=4",
        "--process_id=$(PROCESS_ID)",
    ]
    assert container["env"][0]["name"] == "PROCESS_ID" and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    alone = manifest(capsys, "--machine=h100:1x8")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert alone["containers"][0]["command"][-1] == "--num_devices=8", "one host needs no peers"


def test_launchers_need_neither_jax_nor_ours():
    """They run where there may be neither."""
    body = "import sys, launch.gke, launch.tpu_vm; print(sorted({'jax', 'cxr_jax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sbatch_script_is_sound_bash():
    subprocess.run(["bash", "-n", str(ROOT / "launch/slurm/train.sbatch")], check=True)
