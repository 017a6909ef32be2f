"""The loop: its order, what a batch of NaN does, what collapse does, and that all of it is in the checkpoint.

A linear model on batches that the test writes stands for the objective; step, checkpoints and metrics are real.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxr_jax import checkpoint, loop, saving
from cxr_jax.collapse import CollapseError, CollapseWatch
from cxr_jax.metrics import Metrics, is_clock
from cxr_jax.models.layers import Layout
from cxr_jax.objectives.base import Aux
from cxr_jax.phases import Phases
from cxr_jax.sharding import make_mesh
from cxr_jax.state import abstract_state, init_state, make_step

WIDTH = 3


class Line:
    """`mean((x w)^2) + mean(y)`; `targets` keeps nothing. The embeddings are `x` itself."""

    def init(self, key):
        return {"net": {"w": jnp.ones((WIDTH,))}}

    def init_targets(self, params):
        return {}

    def update_targets(self, targets, params, carry, step):
        return {}

    def loss(self, params, targets, batch, key, step, layout=None):
        fit, extra = jnp.square(batch["x"] @ params["net"]["w"]).mean(), batch["y"].mean()
        spread = jnp.square(batch["x"]).mean()
        metrics = {"fit": fit, "extra": extra, "feature_spread": spread}
        return fit + extra, Aux(metrics, {}, {"x": batch["x"].T @ batch["x"]})

    def features(self, params, targets, images, *, network="teacher", blocks=1, layout=None):
        raise NotImplementedError

    def pictures(self, *arguments):
        raise NotImplementedError


@pytest.fixture(scope="module")
def training():
    mesh, tx = make_mesh(devices=jax.devices()[:1]), optax.with_extra_args_support(optax.sgd(0.01))
    state = lambda: init_state(Line(), tx, mesh, jax.random.key(0))
    schedules = {"learning_rate": lambda step: 0.01}
    return SimpleNamespace(
        state=state, step=make_step(Line(), tx, mesh, Layout(), schedules), abstract=abstract_state(Line(), tx, mesh)
    )


def batches(steps, *, nan_x=(), nan_y=(), start=0, scale=1.0):
    """Batches of steps `start .. steps`, some with NaN in `x` (all terms, gradients) or `y` (one term)."""
    for step in range(start, steps):
        rng = np.random.default_rng(step)
        x, y = scale * rng.normal(size=(4, WIDTH)).astype(np.float32), np.zeros(4, np.float32)
        x[0, 0] = np.nan if step in nan_x else x[0, 0]
        y[0] = np.nan if step in nan_y else 0
        yield {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def watch(mode="warn", patience=2, saved=None):
    return CollapseWatch(mode=mode, after_step=0, patience=patience, num_prototypes={}, images=4, saved=saved)


class Score:
    """An evaluation that notes the state it saw."""

    def __init__(self, every_steps, log=None):
        self.every_steps, self.seen, self._log = every_steps, [], log

    def __call__(self, state):
        self.seen.append(int(state.step))
        if self._log is not None:
            self._log.append(f"score {int(state.step)}")
        return {"score": float(state.params["net"]["w"][0])}


QUIET = {"stop_requested": lambda step: False, "note_skipped": lambda steps: None}


def run(training, workdir, steps=10, *, state=None, data=None, meta=None, **changes):
    start = 0 if state is None else int(state.step)
    options = {"log_every_steps": 2, "watch": watch(), "evaluations": {}} | QUIET | changes
    options["save_times"] = loop.SaveTimes(options.pop("save_every_steps", 4), options.pop("save_every_secs", 0.0))
    options.setdefault("phases", Phases())
    options.setdefault("checkpoints", saving.Checkpoints(workdir, keep=10))
    metrics = Metrics(workdir, start_step=start, total_steps=steps, tensorboard=False)
    try:
        return loop.run(
            training.state() if state is None else state,
            train_step=options.pop("train_step", training.step),
            batches=batches(steps, start=start) if data is None else data,
            key=jax.random.key(0),
            total_steps=steps,
            batch_size=4,
            meta={"config": {}} | (meta or {}),
            metrics=metrics,
            **options,
        )
    finally:
        metrics.close()
        options["checkpoints"].close()


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not is_clock(k)} for row in found]


class Recorder(saving.Checkpoints):
    """Notes saves instead of writing them."""

    def __init__(self, log):
        self.log, self.metas = log, {}

    def save(self, state, meta, scores=None):
        self.log.append(f"save {int(state.step)}")
        self.metas[int(state.step)] = json.loads(json.dumps(meta))

    def save_and_wait(self, state, meta, scores=None):
        self.save(state, meta)
        self.log.append("wait")

    def steps(self):
        return sorted(self.metas)

    def failed(self):
        return False

    def close(self):
        pass


def test_the_order_of_a_turn(training, tmp_path):
    """Owed evaluations, save, batch, step; what is due on the last state comes before the last save."""
    log = []

    def data():
        for step, batch in enumerate(batches(5)):
            log.append(f"batch {step}")
            yield batch

    def step(state, batch, key):
        log.append(f"step {int(state.step)}")
        return training.step(state, batch, key)

    changes = {"data": data(), "train_step": step, "checkpoints": Recorder(log), "save_every_steps": 2}
    run(training, tmp_path, 5, evaluations={"probe": Score(2, log)}, **changes)
    assert log == [
        *("score 0", "batch 0", "step 0", "batch 1", "step 1"),
        *("score 2", "save 2", "batch 2", "step 2", "batch 3", "step 3"),
        *("score 4", "save 4", "batch 4", "step 4", "score 5", "save 5", "wait"),
    ]
    assert [(row["step"], "loss" in row, "score" in row) for row in rows(tmp_path)] == [
        (0, True, True), (2, True, True), (4, True, True), (5, False, True),
    ]  # fmt: skip


def test_an_evaluation_between_log_steps_has_a_line_of_its_own(training, tmp_path):
    run(training, tmp_path, 6, evaluations={"probe": Score(3)}, log_every_steps=4, checkpoints=Recorder([]))
    found = rows(tmp_path)
    assert [(row["step"], "loss" in row, "score" in row) for row in found] == [
        (0, True, True), (3, False, True), (4, True, False), (5, True, False), (6, False, True),
    ]  # fmt: skip
    assert found[1].keys() == {"step", "score"}
    x = np.asarray(next(batches(1))["x"], np.float64)
    sigma = np.linalg.svd(x, compute_uv=False)
    share = sigma / sigma.sum()
    assert found[0]["x_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


def test_nothing_is_read_between_log_steps(training, tmp_path, monkeypatch):
    """Every transfer from the device goes through `jax.device_get`: a save or a log step makes it, no other step."""
    transfers, real = [], jax.device_get
    monkeypatch.setattr(loop.jax, "device_get", lambda tree: transfers.append(1) or real(tree))
    run(training, tmp_path, 9, log_every_steps=8, save_every_steps=100, checkpoints=Recorder([]))
    assert len(transfers) == 1 + 2 * 2 + 1  # health at first, scalars and health at steps 0 and 8, health at the save


def restore(training, workdir):
    checkpoints = saving.Checkpoints(workdir, keep=10)
    try:
        return checkpoints.restore(training.abstract)
    finally:
        checkpoints.close()


def kill_at(step, training):
    """A step that dies when its turn comes, as a killed process would."""

    def dying(state, batch, key):
        if int(state.step) == step:
            raise KeyboardInterrupt
        return training.step(state, batch, key)

    return dying


@pytest.mark.parametrize("killed", [1, 4, 5, 8, 9])
def test_killed_and_resumed_is_the_undisturbed_run(killed, training, tmp_path):
    """Evaluations at 0, 4, 8 and the end, saves at 4 and 8: at 4 the kill falls between the save and the line."""
    run(training, tmp_path / "whole", evaluations={"probe": Score(4)})
    with pytest.raises(KeyboardInterrupt):
        run(training, tmp_path / "cut", evaluations={"probe": Score(4)}, train_step=kill_at(killed, training))
    if checkpoint.steps_of(tmp_path / "cut"):
        state, meta = restore(training, tmp_path / "cut")
        if int(state.step) in (4, 8):
            assert meta["owed"]["probe"]["score"] == pytest.approx(float(state.params["net"]["w"][0]))
    else:
        state, meta = None, None
    score = Score(4)
    run(training, tmp_path / "cut", state=state, meta=meta, evaluations={"probe": score})
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "cut") if "score" in row] == [0, 4, 8, 10]
    assert meta is None or int(meta["step"]) not in score.seen, "what the checkpoint holds was run again"


def test_an_evaluation_that_was_owed_is_run_after_resuming(training, tmp_path):
    """Saved before it could run (a stop), and no longer due by the config: it is run all the same."""
    run(training, tmp_path, 4)
    state, meta = restore(training, tmp_path)
    assert meta["owed"] == {}
    score = Score(100)
    run(training, tmp_path, 8, state=state, meta=meta | {"owed": {"probe": None}}, evaluations={"probe": score})
    assert score.seen == [4, 8]


def test_a_batch_of_nan_changes_nothing_and_is_told(training, tmp_path, capsys):
    """Two bad batches: the updates of both are skipped, the run goes on, the checkpoint says so."""
    run(training, tmp_path, data=batches(10, nan_x=(2, 3)))
    found = {row["step"]: row for row in rows(tmp_path)}
    assert found[2]["loss"] is None and {"fit", "loss", "grad_norm", "x_rank"} <= set(found[2]["nonfinite"])
    assert found[4]["skipped_updates"] == 2 and found[4]["nonfinite_in_a_row"] == 0
    assert found[4]["collapse"] == ["not finite"] and "collapse" not in found[6]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("step 2: not finite: updates skipped since the last log step: 1 (1 in all)")
    assert said[1:] == ["step 6: no longer not finite"]
    assert checkpoint.steps_of(tmp_path) == [5, 8, 10], "the save due at 4 waits for an update that was not skipped"
    meta = checkpoint.read_meta(tmp_path, 5)
    assert meta["skipped_updates"] == 2
    state = training.state()
    for step, batch in enumerate(batches(5)):
        if step not in (2, 3):
            state, _, _ = training.step(state, batch, jax.random.key(0))
    saved = checkpoint.read_item(tmp_path, "params", 5)
    np.testing.assert_array_equal(saved["net"]["w"], np.asarray(state.params["net"]["w"]))


@pytest.mark.parametrize(
    ("bad", "named"), [({"nan_y": (4, 5, 6)}, "extra"), ({"nan_x": (4, 5, 6)}, "feature_spread, fit")]
)
def test_a_limit_passed_between_log_steps_names_its_terms(bad, named, training, tmp_path):
    """Steps 4 to 6 are bad, 7 and 8 are well again, 8 is the next log step; a save at 7 must not happen."""
    with pytest.raises(loop.NumericError, match=rf"{named} not finite, 3 updates skipped") as error:
        run(training, tmp_path, data=batches(10, **bad), log_every_steps=8, save_every_steps=4)
    assert "\n" not in str(error.value) and str(error.value).startswith("step 7")
    assert checkpoint.steps_of(tmp_path) == [4], "the checkpoint at 8 would follow three skipped updates"
    assert rows(tmp_path)[-1]["step"] == 0


def test_the_limit_at_a_log_step(training, tmp_path):
    with pytest.raises(loop.NumericError, match=r"step 6: extra not finite"):
        run(training, tmp_path, data=batches(10, nan_y=range(4, 10)), save_every_steps=4)
    assert checkpoint.steps_of(tmp_path) == [4]
    assert rows(tmp_path)[-1]["nonfinite_in_a_row"] == 3


def test_a_stopped_run_says_what_is_saved(training, tmp_path):
    """Nothing is saved inside a row of skipped updates: the second of them falls on the save at 4."""
    with pytest.raises(loop.NumericError, match=r"checkpoints are of step 2; .*init_step=2\)$"):
        run(training, tmp_path / "some", data=batches(10, nan_y=(2, 3, 4)), save_every_steps=2)
    assert checkpoint.steps_of(tmp_path / "some") == [2]
    with pytest.raises(loop.NumericError, match=r"nothing was saved before them"):
        run(training, tmp_path / "none", data=batches(10, nan_y=(0, 1, 2)), save_every_steps=2)


def test_single_bad_steps_are_no_row(training, tmp_path):
    run(training, tmp_path, data=batches(10, nan_y=(1, 2, 4, 5, 7, 8)), log_every_steps=3)
    assert rows(tmp_path)[-1]["skipped_updates"] == 6


def test_collapse_stops_by_choice_with_its_state_saved(training, tmp_path, capsys):
    """Batches of almost equal images; two log steps in a row are enough here."""
    tiny = {"data": batches(10, scale=1e-3), "evaluations": {"probe": Score(3)}}
    with pytest.raises(CollapseError, match=r"^step 2: images alike: .* the state is saved") as error:
        run(training, tmp_path, watch=watch("stop"), **tiny)
    assert "\n" not in str(error.value)
    assert checkpoint.steps_of(tmp_path) == [3]
    assert rows(tmp_path)[-1]["collapse"] == ["images alike"]
    assert "step 2: images alike: " in capsys.readouterr().err
    state, meta = restore(training, tmp_path)
    assert meta["owed"] == {"probe": None} and meta["collapse"]["holds"].keys() == {"images alike"}
    score = Score(3)
    going_on = watch("warn", saved=meta["collapse"])
    data = batches(10, start=3, scale=1e-3)
    run(training, tmp_path, state=state, meta=meta, data=data, watch=going_on, evaluations={"probe": score})
    assert score.seen == [3, 6, 9, 10] and capsys.readouterr().err == ""
