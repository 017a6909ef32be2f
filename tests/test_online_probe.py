"""The online probe: its scores against a nearest-neighbour reference, killed and resumed, and a training that notices
nothing.

A two-block ViT that follows its moving average on noisy phantoms stands for the objective, because it compiles in
seconds; data, step, checkpoints, metrics and probe are the real ones, driven as `cxr_jax.train` does.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from configs import smoke
from cxr_jax import checkpoint, config, experiments, loop, saving
from cxr_jax.data.geometry import fit_images, normalise
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.records import DataError
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import load_rows
from cxr_jax.evals.features import Geometry
from cxr_jax.experiments import prepare
from cxr_jax.metrics import Metrics, is_clock
from cxr_jax.models.layers import IN_PLACE
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.base import Aux
from cxr_jax.objectives.monitors import second_moment, spread
from cxr_jax.online_probe import OnlineProbe, thin
from cxr_jax.phases import Phases
from cxr_jax.sharding import batch_sharding, make_layout, make_mesh
from cxr_jax.state import abstract_state, init_state, make_step

STEPS, BATCH, K = 6, 8, 5
TARGETS = ("Cardiomegaly", "sex:F")
GEOMETRY = Geometry("pad", 16)
MODEL = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "num_registers": 1}


class Follow:
    """The student's CLS token of an image with noise follows the teacher's without."""

    def backbone(self, params):
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(**MODEL, rngs=nnx.Rngs(0))))
        return nnx.merge(graphdef, params["backbone"])

    def init(self, key):
        return {"backbone": nnx.to_pure_dict(nnx.state(ViT(**MODEL, rngs=nnx.Rngs(params=key))))}

    def init_targets(self, params):
        return jax.tree.map(jnp.copy, params)

    def update_targets(self, targets, params, carry, step):
        return jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, targets, params)

    def features(self, params, targets, images, *, network="teacher", blocks=1, layout=IN_PLACE):
        backbone = self.backbone(targets if network == "teacher" else params)
        return backbone.features(images, blocks=blocks, layout=layout)

    def loss(self, params, targets, batch, key, step, layout=IN_PLACE):
        images = normalise(fit_images(batch["image"], batch["size"], 16, "stretch"))
        noisy = images + jax.random.normal(key, images.shape)
        teacher = self.features(params, targets, images, layout=layout).cls[0]
        student = self.features(params, targets, noisy, network="student", layout=layout).cls[0]
        loss = jnp.square(student - jax.lax.stop_gradient(teacher)).mean()
        return loss, Aux({"feature_spread": spread(teacher)}, {}, {"teacher_cls": second_moment(teacher)})

    def pictures(self, *arguments):
        raise NotImplementedError


def tiny_config(dataset):
    values = smoke.get_config()
    values.batch_size, values.total_steps, values.data.path = BATCH, STEPS, str(dataset)
    values.probe.update(every_steps=2, train_split="train", test_split="val", targets=TARGETS, k=K, resamples=50)
    return values


@pytest.fixture(scope="module")
def training(phantom_dataset):
    """On two devices, so that features come from sharded parameters and images."""
    values, objective, mesh = tiny_config(phantom_dataset), Follow(), make_mesh(devices=jax.devices()[:2])
    tx, layout = optax.with_extra_args_support(optax.adam(1e-3)), make_layout(mesh, "float32")
    abstract = abstract_state(objective, tx, mesh)
    host = jax.device_get(init_state(objective, tx, mesh, jax.random.key(0)))
    return SimpleNamespace(
        config=values,
        mesh=mesh,
        objective=objective,
        host=host,
        state=lambda: place(host, abstract),
        abstract=abstract,
        step=make_step(objective, tx, mesh, layout, {"learning_rate": lambda step: 1e-3}),
        key=jax.random.key(1),
        split=open_split(str(phantom_dataset), "train"),
        probe=prepare.online_probe(values, objective, GEOMETRY, mesh, layout)["probe"],
    )


def place(host, abstract):
    """The state `host` in the shards of `abstract`."""
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), host, abstract)


def moved(params, scale):
    return jax.tree.map(lambda x: x + scale * np.sin(np.arange(x.size, dtype=x.dtype).reshape(x.shape)), params)


def run(training, workdir, *, probe, kill_at=None):
    """Start or continue a run; `kill_at` raises when that step's turn comes."""

    def step(state, batch, key):
        if int(state.step) == kill_at:
            raise KeyboardInterrupt
        return training.step(state, batch, key)

    checkpoints, meta = saving.Checkpoints(workdir), {"config": {}}
    if checkpoints.latest_step() is None:
        state = training.state()
    else:
        state, meta = checkpoints.restore(training.abstract)
    start = int(state.step)
    metrics = Metrics(workdir, start_step=start, total_steps=STEPS, tensorboard=False)
    options = {"batch_size": BATCH, "total_steps": STEPS}
    try:
        loop.run(
            state,
            train_step=step,
            batches=train_batches(
                training.split, sharding=batch_sharding(training.mesh), seed=0, start_step=start, **options
            ),
            key=training.key,
            save_times=loop.SaveTimes(2),
            phases=Phases(),
            stop_requested=lambda step: False,
            note_skipped=lambda steps: None,
            log_every_steps=3,
            checkpoints=checkpoints,
            meta=meta,
            metrics=metrics,
            watch=prepare.collapse_watch(training.config, training.objective, meta.get("collapse")),
            evaluations={"probe": training.probe} if probe else {},
            **options,
        )
    finally:
        metrics.close()
        checkpoints.close()


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not is_clock(name)} for row in found]


@pytest.fixture(scope="module")
def whole(training, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(training, workdir, probe=True)
    return rows(workdir)


def test_the_probe_scores_the_teacher_as_nearest_neighbours_do(training, phantom_dataset):
    host = moved(training.host.targets, 0.05)
    state = place(training.host.replace(targets=host), training.abstract)
    found = training.probe(state)
    features, labels = {}, {}
    for name in ("train", "val"):
        split = open_split(str(phantom_dataset), name, targets=TARGETS)
        loaded = load_rows(split, range(len(split)), TARGETS)
        images = normalise(fit_images(jnp.asarray(loaded["image"]), jnp.asarray(loaded["size"]), 16, "pad"))
        cls = np.asarray(jax.jit(training.objective.features)({}, host, images).cls[0], np.float64)
        features[name], labels[name] = cls / np.linalg.norm(cls, axis=1, keepdims=True), loaded["labels"]
    for c, target in enumerate(TARGETS):
        known = {name: labels[name][:, c] >= 0 for name in labels}
        # On the unit sphere |x - y|^2 = 2 - 2 cos.
        model = KNeighborsClassifier(K, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        model.fit(features["train"][known["train"]], labels["train"][known["train"], c])
        scores = model.predict_proba(features["val"][known["val"]])[:, 1]
        expected = roc_auc_score(labels["val"][known["val"], c], scores)
        assert found[f"probe_auroc_{target}"] == pytest.approx(expected, abs=1e-9)
        assert found[f"probe_auroc_{target}_low"] <= expected <= found[f"probe_auroc_{target}_high"]
    assert training.probe(state) == found


def test_it_looks_at_the_teacher_and_at_nothing_else(training):
    other = training.host.replace(params=moved(training.host.params, 1.0))
    assert training.probe(place(other, training.abstract)) == training.probe(training.state())


def test_training_does_not_notice(training, whole, tmp_path):
    """To the bit, with lines at the same steps besides those that hold the probe alone."""
    run(training, tmp_path / "run", probe=False)
    without = [{name: v for name, v in row.items() if not name.startswith("probe_")} for row in whole]
    assert [row for row in without if "loss" in row] == rows(tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 3, 5]
    probed = [row["step"] for row in whole if f"probe_auroc_{TARGETS[0]}" in row]
    assert probed == [0, 2, 4, 6] and [row["step"] for row in whole] == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kill_at", [2, 3])
def test_killed_and_resumed_is_complete(kill_at, training, whole, tmp_path, monkeypatch):
    """At 2 after the save that follows the probe and before its line is written, at 3 after both."""
    with pytest.raises(KeyboardInterrupt):
        run(training, tmp_path / "run", probe=True, kill_at=kill_at)
    assert checkpoint.steps_of(tmp_path / "run") == [2]
    assert checkpoint.read_meta(tmp_path / "run")["owed"]["probe"].keys() >= {f"probe_auroc_{TARGETS[0]}"}
    run(training, tmp_path / "run", probe=True)
    assert rows(tmp_path / "run") == whole


def test_at_most_so_many_images_evenly_spaced(phantom_dataset):
    split = open_split(str(phantom_dataset), "train")
    few = thin(split, 5)
    assert len(few) == 5 and thin(split, 1000) is split
    assert [int(row) for row in few.rows] == [0, 9, 18, 28, 37]


def section(training, values):
    """What `train` makes of a config."""
    layout = make_layout(training.mesh, "float32")
    return prepare.online_probe(values, training.objective, GEOMETRY, training.mesh, layout)


def changed(training, **changes):
    values = tiny_config(training.config.data.path)
    values.probe.update(changes)
    return section(training, values)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"every_steps": -1}, config.ConfigError, r"probe\.every_steps=-1 must be at least 1"),
        ({"k": 0}, config.ConfigError, r"probe\.k=0"),
        ({"max_images": 0}, config.ConfigError, r"probe\.max_images=0"),
        ({"targets": ()}, config.ConfigError, r"probe\.targets is empty"),
        ({"targets": ("Lupus",)}, DataError, "'Lupus' is not in the dataset"),
        ({"test_split": "train"}, DataError, "share .* patients"),
        ({"test_split": "dev"}, DataError, "no split 'dev'"),
        ({"max_images": 1}, DataError, "do not have both labels of 'Cardiomegaly'"),
    ],
)
def test_bad_sections_are_refused(changes, error, words, training):
    with pytest.raises(error, match=words):
        changed(training, **changes)


def test_a_misspelt_key_is_named_and_no_section_is_no_probe(training):
    with pytest.raises(config.ConfigError, match=r"probe\.test_spilt is not a key .* did you mean probe\.test_split"):
        changed(training, test_spilt="val")
    assert changed(training, every_steps=0) == {}
    values = tiny_config(training.config.data.path)
    del values.probe
    assert section(training, values) == {}


def test_features_without_direction_are_no_score(training):
    nothing = training.host.replace(targets=jax.tree.map(np.zeros_like, training.host.targets))
    broken = training.probe(place(nothing, training.abstract))
    assert broken.keys() == {f"probe_auroc_{target}" for target in TARGETS} and np.isnan([*broken.values()]).all()


def test_what_the_loop_and_the_collapse_rule_ask_for(training):
    """The recipe names its prototypes by loss, also where both losses share a head; the probe is an evaluation."""
    values = smoke.get_config()
    assert experiments.build(values).objective.num_prototypes == {"dino": 256, "ibot": 256}
    values.objective.update(shared_heads=True, dino_weight=0.0)
    for head in values.heads.values():
        head.num_prototypes = 128
    assert experiments.build(values).objective.num_prototypes == {"ibot": 128}
    assert isinstance(training.probe, OnlineProbe) and isinstance(training.probe, loop.Evaluation)
