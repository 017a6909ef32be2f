"""What the launchers for clouds print: a manifest that says what is meant, a script that survives what clouds do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import gke, tpu_vm
from launch.machines import parse_machine

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


@pytest.mark.parametrize("entry", [gke, tpu_vm])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name=cxr", "--machine=v9:2x2", *TRAIN], "--machine: 'v9:2x2' is unknown; legal are such as v5e:16x16"),
        (["--name=cxr", "--machine=v5p:16x16", *TRAIN], "is unknown"),
        (["--name=cxr", "--machine=2xh100:4x8", *TRAIN], "is unknown"),
        (["--name=Cxr Pod", "--machine=v5e:2x4", *TRAIN], "lower-case letters"),
        (["--name=cxr", "--machine=v5e:2x4"], "no command; write -- python -m cxr_jax.train"),
    ],
)
def test_bad_flags_are_one_line(entry, flags, words, capsys):
    own = ["--image=i"] if entry is gke else ["--zone=z"]
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
    assert container["volumeMounts"] == [{"name": "volume-0", "mountPath": "/shared"}]
    assert pod["volumes"] == [{"name": "volume-0", "persistentVolumeClaim": {"claimName": "shared"}}]


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


# A gcloud that keeps the state of one queued resource in a file, and does `ssh` here. The plan has, for each run of
# the training, its exit code, or `lost` for machines that are taken away under it.
GCLOUD = """\
#!/usr/bin/env bash
cd {folder}
echo "$@" >> calls
case " $* " in
  *" create "*) echo ACTIVE > state ;;
  *" delete "*) rm -f state ;;
  *" describe "*) cat state 2>/dev/null ;;
  *" ssh "*)
    [ "$(cat state)" = ACTIVE ] || exit 255
    for last; do :; done
    command=${{last#--command=}}
    case "$command" in
      *cxr_jax.train*)
        next=$(head -1 plan); sed -i 1d plan
        if [ "$next" = lost ]; then echo SUSPENDED > state; exit 255; fi
        echo "$next" > exit_code; exit "$next" ;;
      *) bash -c "$command" ;;
    esac ;;
esac
"""


def on_cloud(folder, capsys, plan, *flags):
    """Exit code, output and gcloud calls of the printed script where the training ends as `plan` says."""
    (folder / "bin").mkdir()
    (folder / "bin/gcloud").write_text(GCLOUD.format(folder=folder))
    (folder / "bin/gcloud").chmod(0o755)
    (folder / "plan").write_text("".join(f"{code}\n" for code in plan))
    assert tpu_vm.main(["--name=cxr", "--machine=v5e:16x16", "--zone=z", "--setup=echo ready", *flags, *TRAIN]) == 0
    script = capsys.readouterr().out
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "POLL_SECS": "0"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    calls = (folder / "calls").read_text().splitlines()
    return done.returncode, done.stdout + done.stderr, [call for call in calls if " describe " not in call]


def test_a_tpu_vm_script_goes_on_after_machines_were_taken_away(tmp_path, capsys):
    code, said, calls = on_cloud(tmp_path, capsys, [4, "lost", 1, 0], "--spot")
    assert code == 0, said
    verbs = [next(word for word in ("create", "delete", "ssh") if f" {word} " in call) for call in calls]
    assert verbs.count("create") == 2 and verbs[-1] == "delete", "given back at the end"
    assert said.count("ready") == 2, "every fresh set of machines is set up once"
    trained = [call for call in calls if "cxr_jax.train" in call]
    assert len(trained) == 4 and all("--worker=all" in call for call in trained)
    assert "--num_devices=256 --coordinator_address=auto" in trained[0] and "'a b'" in trained[0].replace(
        "'\"'\"'", "'"
    )
    assert "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite" in calls[0] and "--spot" in calls[0]


@pytest.mark.parametrize("users", [2, 3])
def test_a_users_fault_ends_the_script_and_keeps_the_machines(tmp_path, capsys, users):
    code, said, calls = on_cloud(tmp_path, capsys, [users])
    assert code == users and "the machines stay" in said and not any(" delete " in call for call in calls)


def test_failures_are_counted(tmp_path, capsys):
    code, said, _ = on_cloud(tmp_path, capsys, [1, 134, 1], "--attempts=3")
    assert code == 1 and "exit code 134; attempt 2" in said


def test_tpu_vms_run_no_gpus(capsys):
    with pytest.raises(SystemExit):
        tpu_vm.main(["--name=cxr", "--machine=h100:4x8", "--zone=z", *TRAIN])
    assert "--machine must be a TPU here; launch/slurm and launch.gke run on GPUs" in capsys.readouterr().err


def test_launchers_need_neither_jax_nor_ours():
    """They run where there may be neither."""
    body = "import sys, launch.gke, launch.tpu_vm; print(sorted({'jax', 'cxr_jax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sbatch_script_is_sound_bash():
    subprocess.run(["bash", "-n", str(ROOT / "launch/slurm/train.sbatch")], check=True)
