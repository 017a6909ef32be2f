"""Trackers get what metrics.jsonl gets, go on with the same entry after a resume, and can never end a run.

Weights & Biases and MLflow are not installed here; stand-ins with the functions that are called take their place.
"""

import sys
from types import SimpleNamespace

import pytest

from cxr_jax import trackers
from cxr_jax.metrics import Metrics


class Listener:
    """A tracker that notes what it is told."""

    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def wandb(monkeypatch):
    calls = []

    def init(**options):
        calls.append(("init", options))
        return SimpleNamespace(
            define_metric=lambda *names, **options: calls.append(("define", names, options)),
            log=lambda row: calls.append(("log", row)),
            finish=lambda: calls.append(("finish",)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=SimpleNamespace()))
    return calls


class FakeMLflow:
    """The part of MLflow that is used, with one store for all clients."""

    def __init__(self):
        self.runs, self.experiments = {}, {}
        self.entities = SimpleNamespace(Param=lambda k, v: (k, v), Metric=lambda *point: point)
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name):
        number = self.experiments.get(name)
        return number and SimpleNamespace(experiment_id=number)

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments) + 1))

    def create_run(self, experiment, run_name):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment,
            "name": run_name,
            "params": [],
            "metrics": [],
            "status": "RUNNING",
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id, params=(), metrics=()):
        assert len(params) <= 100, "MLflow refuses more parameters at once"
        self.runs[run_id]["params"] += params
        self.runs[run_id]["metrics"] += metrics

    def update_run(self, run_id, status):
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id):
        self.runs[run_id]["status"] = "FINISHED"


def test_trackers_get_the_scalars_of_metrics_jsonl(tmp_path):
    listener = Listener()
    metrics = Metrics(tmp_path, start_step=0, total_steps=2, tensorboard=False, trackers=[listener])
    for step in range(2):
        metrics.write(step, {"loss": 1.0 - step, "images_per_sec": 2.0})
    metrics.close()
    assert listener.rows == [(0, {"loss": 1.0, "images_per_sec": 2.0}), (1, {"loss": 0.0, "images_per_sec": 2.0})]
    assert listener.closed


def test_wandb_goes_on_with_its_run_and_takes_a_step_twice(tmp_path, wandb):
    for _ in range(2):
        (writer,) = trackers.open_trackers(["wandb"], tmp_path, "project", {"seed": 0})
        writer.write(3, {"loss": 1.0})
        writer.close()
    inits = [call[1] for call in wandb if call[0] == "init"]
    assert inits[0] == inits[1] and inits[0]["resume"] == "allow" and inits[0]["project"] == "project"
    assert ("define", ("*",), {"step_metric": "step"}) in wandb
    assert wandb.count(("log", {"step": 3, "loss": 1.0})) == 2


def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    config = {f"k{i}": i for i in range(250)}
    for step in (0, 1):
        (writer,) = trackers.open_trackers(["mlflow"], tmp_path, "project", config)
        writer.write(step, {"probe_auroc_view:AP%": 0.5, "bad": float("nan")})
        writer.close()
    ((_, run),) = mlflow.runs.items()
    assert sorted(run["params"]) == sorted((key, str(value)) for key, value in config.items())
    assert [(name, value, step) for name, value, _, step in run["metrics"]] == [
        ("probe_auroc_view:AP_", 0.5, 0),
        ("probe_auroc_view:AP_", 0.5, 1),
    ]
    assert run["status"] == "FINISHED" and run["name"] == tmp_path.name


def test_a_tracker_that_fails_is_told_of_once_and_left(capsys):
    class Broken(Listener):
        def write(self, step, values):
            super().write(step, values)
            raise ConnectionError("no route\nto host")

    broken = Broken()
    writer = trackers.Guarded("mlflow", broken)
    for step in range(3):
        writer.write(step, {})
    writer.close()
    err = capsys.readouterr().err
    assert err == "warning: mlflow: ConnectionError: no route to host; it gets no more of this run\n"
    assert len(broken.rows) == 1 and not broken.closed


def test_a_tracker_that_cannot_begin_is_left_out(tmp_path, monkeypatch, capsys):
    def init(**options):
        raise RuntimeError("no API key configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert trackers.open_trackers(["wandb"], tmp_path, "p", {}) == []
    assert "no API key configured" in capsys.readouterr().err


def test_one_that_is_not_installed_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb is not installed; pip install wandb, or leave it out"):
        trackers.check_trackers(("wandb",))
    with pytest.raises(ValueError, match="legal are wandb, mlflow"):
        trackers.check_trackers(("comet",))
