"""The script that launch.tpu_vm prints, against a gcloud that fails as clouds and networks do, and one host."""

import os
import shlex
import signal
import subprocess
import time

import pytest

from launch import tpu_vm

# Keeps the state of one queued resource in a file, and does `ssh` here, with a home of its own. `errors_VERB` has what
# gcloud says instead of doing VERB, a line a time; a file `cut` cuts the connection, `deaf` lets none through.
GCLOUD = """\
#!/usr/bin/env bash
cd {folder}
echo "${{*//$'\\n'/ }}" >> calls
verb=$5
if [ -s "errors_$verb" ]; then head -n 1 "errors_$verb" >&2; sed -i 1d "errors_$verb"; exit 1; fi
case "$verb" in
  create)
    if [ -e state ]; then echo "ALREADY_EXISTS: it is there" >&2; exit 1; fi
    mkdir -p host; echo ACTIVE > state ;;
  delete) kill -KILL -- "-$(cat host/.launch/cxr/pid 2>/dev/null)" 2>/dev/null; rm -rf state host ;;
  describe) cat state 2>/dev/null || {{ echo "NOT_FOUND: Resource cxr was not found" >&2; exit 1; }} ;;
  ssh)
    [ "$(cat state)" = ACTIVE ] && [ ! -e deaf ] || exit 255
    for last; do :; done
    HOME={folder}/host setsid bash -c "cd; ${{last#--command=}}" & job=$!
    trap 'kill -- -$job; exit 143' TERM
    while kill -0 $job 2>/dev/null; do
      if [ -e cut ]; then rm cut; kill -- -$job; exit 255; fi
      sleep 0.05
    done
    wait $job ;;
esac
"""
# The training: its exit code is the next line of the plan; `taken` for machines that are taken away under it, `cut 0`
# for a lost connection under a training that then ends with 0, `stay` for one that ends when it is told to.
PYTHON = """\
#!/usr/bin/env bash
echo "$PWD: $XLA_FLAGS: $*" >> {folder}/trained
cd {folder}
next=$(head -n 1 plan); sed -i 1d plan
echo "training ends with $next"
case "$next" in
  taken) echo SUSPENDED > state; touch cut; sleep 60 ;;
  cut*) touch cut; sleep 0.5; exit "${{next#cut }}" ;;
  stay) trap 'exit 4' TERM; while true; do sleep 0.05; done ;;
  *) exit "$next" ;;
esac
"""
TRAIN = ["python", "-m", "cxr_jax.train", "--config.data.targets=('a b',)"]
GIVE_BACK = "gcloud alpha compute tpus queued-resources delete cxr --zone=us-west4-a --force"
BLIP = "ERROR: (gcloud) UNAVAILABLE: try again later"


class Cloud:
    """What is in a folder: a cloud of one queued resource."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        (folder / "bin").mkdir()
        for name, text in (("gcloud", GCLOUD), ("python", PYTHON)):
            (folder / "bin" / name).write_text(text.format(folder=shlex.quote(str(folder))))
            (folder / "bin" / name).chmod(0o755)

    def lines(self, name):
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def calls(self, verb):
        return [call for call in self.lines("calls") if call.split()[4] == verb]

    def errors(self, verb, *lines):
        (self.folder / f"errors_{verb}").write_text("".join(f"{line}\n" for line in lines))

    def started(self, plan, *flags, train=TRAIN):
        """The script, running."""
        (self.folder / "plan").write_text("".join(f"{code}\n" for code in plan))
        flags = ["--name=cxr", "--machine=v5e:16x16", "--zone=us-west4-a", *flags]
        assert tpu_vm.main([*flags, "--", *train]) == 0
        script = self.capsys.readouterr().out
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "POLL_SECS": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", "-c", script], env=environment, **pipes)

    def run(self, plan, *flags):
        """Exit code and output of the script."""
        script = self.started(plan, *flags)
        said, _ = script.communicate(timeout=60)
        return script.returncode, said

    def wait_for(self, number):
        """Until so many trainings began."""
        for _ in range(200):
            if len(self.lines("trained")) == number:
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.lines('trained')}")


@pytest.fixture
def cloud(tmp_path, capsys):
    """Ends what a failed test left on the host."""
    (tmp_path / "a cloud").mkdir()
    made = Cloud(tmp_path / "a cloud", capsys)
    yield made
    subprocess.run([made.folder / "bin/gcloud", "alpha", "compute", "tpus", "queued-resources", "delete"], check=False)


def test_it_goes_on_after_machines_were_taken_away(cloud):
    code, said = cloud.run([4, "taken", 1, 0], "--spot", "--setup=echo ready")
    assert code == 0, said
    assert len(cloud.calls("create")) == 2 and cloud.lines("calls")[-1] == cloud.calls("delete")[-1], "given back"
    assert said.count("ready") == 2, "every fresh set of machines is set up once"
    assert len(cloud.lines("trained")) == 4 and "machines stay" not in said
    last = "-m cxr_jax.train --config.data.targets=('a b',) --num_devices=256 --coordinator_address=auto"
    assert cloud.lines("trained")[0].endswith(last)
    created = cloud.calls("create")[0]
    assert "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite" in created and "--spot" in created
    assert all("--worker=all" in call for call in cloud.calls("ssh") if "setsid" in call)
    assert said.count("training ends with 4") == 1, "what the training prints is seen"


@pytest.mark.parametrize("users", [2, 3, 127])
def test_a_users_fault_ends_it_and_keeps_the_machines(cloud, users):
    code, said = cloud.run([users])
    assert code == users and GIVE_BACK in said and not cloud.calls("delete")


def test_failures_are_counted(cloud):
    code, said = cloud.run([1, 134, 1], "--attempts=3")
    assert code == 1 and "exit code 134; attempt 2 of 3" in said and GIVE_BACK in said


def test_machines_are_not_asked_for_because_a_question_failed(cloud):
    cloud.errors("describe", BLIP, BLIP)
    (cloud.folder / "host").mkdir()
    (cloud.folder / "state").write_text("ACTIVE\n")
    code, said = cloud.run([0])
    assert code == 0 and not cloud.calls("create") and "asking again (2 of 10)" in said


@pytest.mark.parametrize(("error", "asked"), [(BLIP, 10), ("PERMISSION_DENIED: no", 1)])
def test_questions_that_fail_end_it(cloud, error, asked):
    cloud.errors("describe", *[error] * 12)
    code, said = cloud.run([])
    assert code == 1 and len(cloud.calls("describe")) == asked and GIVE_BACK in said and error in said


@pytest.mark.parametrize(("error", "times"), [("RESOURCE_EXHAUSTED: no", 3), ("INVALID_ARGUMENT: no", 1)])
def test_machines_that_cannot_be_had(cloud, error, times):
    cloud.errors("create", *[error] * 5)
    code, said = cloud.run([], "--attempts=3")
    assert code == 1 and len(cloud.calls("create")) == times and error in said


def test_a_resource_that_exists_is_taken(cloud):
    cloud.errors("create", "ALREADY_EXISTS: it is there", "ALREADY_EXISTS: it is there")
    code, _ = cloud.run([0], "--attempts=1")
    assert code == 0 and len(cloud.calls("create")) == 3


def test_a_training_outlives_its_connection(cloud):
    code, said = cloud.run(["cut 0"])
    assert code == 0 and "connection are gone; looking again (1 of 20)" in said
    assert len(cloud.lines("trained")) == 1, "started once"


def test_lost_connections_are_bounded(cloud):
    (cloud.folder / "deaf").touch()
    code, said = cloud.run([], "--attempts=3")
    assert code == 1 and "no connection to the machines, 3 times in a row" in said and GIVE_BACK in said


def test_a_setup_that_failed_says_so_and_one_that_was_done_is_not_repeated(cloud):
    code, said = cloud.run([], "--setup=echo half; exit 7")
    assert code == 1 and "with exit code 7" in said and "--setup failed (above)" in said and GIVE_BACK in said
    assert not cloud.lines("trained")
    code, said = cloud.run([2], "--setup=mkdir made")
    assert code == 2, said
    code, said = cloud.run([0], "--setup=mkdir made")
    assert code == 0 and len(cloud.calls("create")) == 1, said


def test_a_stopped_script_leaves_the_training_and_finds_it_again(cloud):
    script = cloud.started(["stay"])
    cloud.wait_for(1)
    time.sleep(0.3)
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=20)
    assert script.returncode == 143 and GIVE_BACK in said
    again = cloud.started([0])
    for _ in range(100):
        if len(cloud.calls("ssh")) > 6:
            break
        time.sleep(0.05)
    assert len(cloud.lines("trained")) == 1, "the same command is watched, not started"
    again.send_signal(signal.SIGTERM)
    assert "it runs already; watching it" in again.communicate(timeout=20)[0]
    other = cloud.started([0], train=[*TRAIN, "--config.seed=1"])
    said, _ = other.communicate(timeout=60)
    assert other.returncode == 0 and "ending the attempt before" in said and len(cloud.lines("trained")) == 2


def test_the_environment_and_the_directory_reach_the_host(cloud):
    flags = ["--env=XLA_FLAGS=--a='b c' $(d),e", "--directory=~/my work", "--setup=mkdir 'my work'"]
    code, said = cloud.run([0], *flags)
    assert code == 0, said
    (line,) = cloud.lines("trained")
    assert line.startswith(f"{cloud.folder}/host/my work: --a='b c' $(d),e: -m cxr_jax.train")
    code, said = cloud.run([0], "--directory=missing")
    assert code == 2, "a folder that is not there is the user's fault"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--zone=z;touch X", "must be a zone of Google Cloud, such as us-west4-a"),
        ("--zone=", "must be a zone"),
        ("--directory=~other/w", "must be a folder on the host"),
        ("--directory=", "must be a folder on the host"),
        ("--attempts=0", "'0' must be an integer of at least 1"),
        ("--env=A B=1", "'A B=1' must be NAME=VALUE"),
        ("--env=A", "'A' must be NAME=VALUE"),
    ],
)
def test_bad_flags_of_tpu_vms(flag, words, capsys):
    with pytest.raises(SystemExit) as caught:
        tpu_vm.main(["--name=cxr", "--machine=v5e:2x4", "--zone=us-west4-a", flag, "--", *TRAIN])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and words in err and err.count("\n") == 1


def test_tpu_vms_run_no_gpus(capsys):
    with pytest.raises(SystemExit):
        tpu_vm.main(["--name=cxr", "--machine=h100:4x8", "--zone=us-west4-a", "--", *TRAIN])
    assert "--machine must be a TPU here; launch/slurm and launch.gke run on GPUs" in capsys.readouterr().err
