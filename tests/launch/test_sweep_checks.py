"""Every run of a sweep is judged before the first begins; one line per thing that is wrong, exit code 2 or 3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.sweeping.checks import answer

ROOT = Path(__file__).parents[2]
SMOKE = "configs/smoke.py"


def judge(dataset, *, file=SMOKE, entry="train", data=True, arguments=(), **overrides):
    """The messages about one run of `file`, whose sweep file sets `overrides` (written with `__` for dots)."""
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    words = [f"--config.{k}={v if isinstance(v, str) else repr(v)}" for k, v in values.items()]
    words = [f"--config={file}", "--workdir=w", f"--config.data.path={dataset}", *arguments, *words]
    command = {"stage": "run", "entry": entry, "arguments": words, "overrides": values}
    found = answer({"runs": [{"name": "r", "commands": [command]}], "data": data})
    return [(message, code) for _, _, message, code in found["errors"]]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_run_that_may_start_says_nothing(phantom_dataset):
    assert judge(phantom_dataset, batch_size=16, optim__base_learning_rate=1e-3, model__drop_path=0) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optim__base_lerning_rate": 1e-3}, "did you mean config.optim.base_learning_rate"),
        ({"batch_size": "sixteen"}, "config.batch_size='sixteen' is no int"),
        ({"batch_size": 16.5}, "config.batch_size=16.5 is no int"),
        ({"batch_size": True}, "config.batch_size=True is no int"),
        ({"optim__base_learning_rate": "high"}, "config.optim.base_learning_rate='high' is no float"),
        ({"model__scan": 1}, "config.model.scan=1 is no bool"),
        ({"data__split": 3}, "config.data.split=3 is no str"),
        ({"crops__blur_probs": ("a", 1.0, 1.0)}, "config.crops.blur_probs"),
        ({"optim__weight_decay": 0.04}, "config.optim.weight_decay=0.04 is no tuple"),
        ({"model": {"depth": 2}}, "config.model is a section; write its keys, --config.model.depth=..."),
        ({"batch_size": 12}, "multiple of 8"),
        ({"total_steps": 0}, "config.total_steps=0 must be at least 1"),
        ({"optim__warmup_frac": 1.5}, "config.optim.warmup_frac=1.5"),
        ({"optim__base_learning_rate": float("inf")}, "config.optim.base_learning_rate=inf must be finite"),
        ({"optim__base_learning_rate": float("nan")}, "config.optim.base_learning_rate=nan must be finite"),
        ({"optim__weight_decay": (0.04, float("inf"))}, "its items are numbers; legal are values such as (0.04, 0.2)"),
        ({"model__ffn": "moe"}, "swiglu, mlp"),
        ({"checkpoint__best_mode": "most"}, "config.checkpoint.best_mode='most'"),
        ({"log__collapse_patience": 0}, "config.log.collapse_patience=0"),
        ({"log__trackers": ("tensorboards",)}, "legal are wandb, mlflow"),
    ],
)
def test_what_the_entry_would_refuse_is_refused(overrides, words, phantom_dataset):
    ((message, code),) = judge(phantom_dataset, **overrides)
    assert words in message and code == 2 and "\n" not in message


def test_a_file_without_get_config_is_not_taken_for_the_one_before(phantom_dataset):
    assert judge(phantom_dataset) == []
    ((message, _),) = judge(phantom_dataset, file="configs/base.py")
    assert message.startswith("--config=configs/base.py: it has no get_config()")


def test_data_is_looked_at_unless_only_the_jobs_see_it(phantom_dataset, tmp_path):
    ((message, code),) = judge(tmp_path / "nowhere")
    assert "nowhere" in message and code == 3
    assert judge(tmp_path / "nowhere", data=False) == []
    ((message, code),) = judge(phantom_dataset, data__split="dev")
    assert "'dev'" in message and code == 3


def test_evaluations_are_judged_by_their_own_door(phantom_dataset):
    options = {"file": "configs/eval/knn.py", "entry": "evaluate", "init_from": "runs/to_come"}
    assert judge(phantom_dataset, **options) == []
    ((message, _),) = judge(phantom_dataset, **options, probe__k=0)
    assert "config.probe.k=0" in message
    ((message, _),) = judge(phantom_dataset, **options, protocol="svm")
    assert "legal are head, linear_probe, knn" in message


def test_two_names_for_one_config_are_noticed(phantom_dataset):
    runs = []
    for name, seed in (("a", "0"), ("b", "1"), ("c", "0")):
        words = [f"--config={SMOKE}", f"--config.data.path={phantom_dataset}", f"--config.seed={seed}"]
        command = {"stage": "run", "entry": "train", "arguments": words, "overrides": {}}
        runs.append({"name": name, "commands": [command]})
    found = answer({"runs": runs, "data": True})
    assert found == {"errors": [], "same": [["a", "c"]]}


SWEEP = """from configs.sweeps import Sweep, chain, product, vary
def get_sweep(which):
    runs = {{
        "typo": product(vary("optim.base_learning_rat", 1e-3, 1e-2), vary("batch_size", 16)),
        "name": chain(vary("batch_size", 16), vary("batch_size", 16)),
        "good": vary("optim.base_learning_rate", 1e-3, 1e-2),
    }}[which]
    return Sweep(config="configs/smoke.py", runs=runs, fixed={{"data.path": {data!r}}})
"""


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("typo", "error: config.optim.base_learning_rat is not a key"),
        ("name", "error: runs 0 and 1 of the sweep are the same, batch_size=16"),
    ],
)
def test_the_command_refuses_in_one_line_and_starts_nothing(which, words, phantom_dataset, tmp_path):
    code, _, err = command(which, phantom_dataset, tmp_path)
    assert code == 2 and err.startswith(words) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert which == "name" or "(all 2 runs)" in err


def test_a_dry_run_prints_every_command_and_writes_nothing(phantom_dataset, tmp_path):
    code, out, err = command("good", phantom_dataset, tmp_path, "--dry_run", "--backend=slurm", "--slurm=--nodes=2")
    assert code == 0 and err == "" and not (tmp_path / "out").exists()
    for number, rate in enumerate(("0.001", "0.01")):
        assert f"# {number}: base_learning_rate={rate}" in out
        assert f"--config.optim.base_learning_rate={rate}" in out
    assert "#SBATCH --nodes=2" in out and "#SBATCH --array=0-1" in out


def command(which, dataset, tmp_path, *flags):
    file = tmp_path / "mine.py"
    file.write_text(SWEEP.format(data=str(dataset)))
    run = subprocess.run(
        [sys.executable, "-m", "launch.sweep", f"--sweep={file}:{which}", f"--output={tmp_path / 'out'}", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
    )
    return run.returncode, run.stdout, run.stderr


def test_the_request_is_json(phantom_dataset):
    """What the sweep hands over survives the pipe: tuples come back as lists and are no other type."""
    values = {"optim.weight_decay": (0.04, 0.2)}
    words = [f"--config={SMOKE}", f"--config.data.path={phantom_dataset}", "--config.optim.weight_decay=(0.04, 0.2)"]
    command = {"stage": "run", "entry": "train", "arguments": words, "overrides": values}
    assert (
        answer(json.loads(json.dumps({"runs": [{"name": "r", "commands": [command]}], "data": True})))["errors"] == []
    )
