"""Masked autoencoding beside its parity test: what the encoder computes, monitors, pictures, refusals, training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.data.geometry import denormalise
from cxr_jax.experiments.mae import mae_optimiser
from cxr_jax.models.blocks import Block
from cxr_jax.models.patches import patchify, unpatchify
from cxr_jax.objectives.mae import MaskedAutoencoder
from cxr_jax.schedules import Timeline
from cxr_jax.sharding import make_layout, make_mesh
from cxr_jax.state import init_state, make_step

IMAGES, SIDE, WIDTH = 8, 8, 24
MODEL = {
    "image_size": 32,
    "patch_size": SIDE,
    "width": WIDTH,
    "depth": 2,
    "num_heads": 2,
    "ffn": "mlp",
    "num_registers": 0,
    "layer_scale": None,
    "positions": "sincos",
    "init": "xavier",
}
DECODER = {"encoder_width": WIDTH, "patch_size": SIDE, "width": 16, "depth": 1, "num_heads": 2}
CROP = CropRecipe(32, (0.2, 1.0), jitter_prob=0.0)
OBJECTIVE = MaskedAutoencoder(MODEL, DECODER, CROP, 0.75, True)
VIEWS = jax.jit(OBJECTIVE.views)


@pytest.fixture(scope="module", autouse=True)
def random_numbers_that_compile_fast():
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture(scope="module")
def batch():
    """Soft random pictures, which have something to learn."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40] / 8
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-1, 1, (IMAGES, 3))]
    images = 128 + 100 * np.stack(waves)
    return {"image": jnp.asarray(images, jnp.uint8), "size": jnp.full((IMAGES, 2), 40, jnp.int32)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def loss():
    return jax.jit(lambda p, batch, key: OBJECTIVE.loss(p, {}, batch, key, jnp.asarray(0)))


def arrays_of(jaxpr):
    """Shapes of all values of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (tuple(v.aval.shape) for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from arrays_of(getattr(inner, "jaxpr", inner))


def test_the_encoder_computes_a_quarter_of_the_patches(params, batch, monkeypatch):
    """Read from the blocks' inputs, and from the program of the gradient: no array holds a token of every patch."""
    seen, call = [], Block.__call__

    def spy(self, streams, *arguments):
        seen.append(streams[0].shape)
        return call(self, streams, *arguments)

    monkeypatch.setattr(Block, "__call__", spy)
    gradient = jax.grad(lambda p: OBJECTIVE.loss(p, {}, batch, jax.random.key(1), jnp.asarray(0))[0])
    shapes = set(arrays_of(jax.make_jaxpr(gradient)(params).jaxpr))
    assert set(seen) == {(IMAGES, 1 + 4, WIDTH), (IMAGES, 1 + 16, 16)}  # 16 patches, 4 of them visible
    tokens = {shape[1] for shape in shapes if len(shape) == 3 and shape[0] == IMAGES and shape[2] == WIDTH}
    assert tokens == {1, 4, 5}, "CLS, visible patches, both"
    assert (IMAGES, 16, SIDE * SIDE) in shapes and (IMAGES, 17, 16) in shapes, "pixels and decoder have all patches"


def test_a_hidden_patch_is_not_seen(params, batch):
    crops, visible, place = VIEWS(batch, jax.random.key(2))
    hidden = np.asarray(place) >= 4
    noise = jnp.asarray(np.random.default_rng(1).standard_normal(crops.shape), jnp.float32)
    shown = unpatchify(jnp.where(hidden[:, :, None], patchify(noise, SIDE), patchify(crops, SIDE)), SIDE)
    run = jax.jit(lambda *a: OBJECTIVE.predict(*a)[0])
    np.testing.assert_array_equal(run(params, crops, visible, place), run(params, shown, visible, place))
    assert not np.allclose(run(params, crops, visible, place), run(params, noise, visible, place))


def test_patches_are_row_major_and_come_back():
    image = jnp.arange(36.0).reshape(1, 6, 6)
    np.testing.assert_array_equal(patchify(image, 3)[0, 1], [3, 4, 5, 9, 10, 11, 15, 16, 17])
    np.testing.assert_array_equal(unpatchify(patchify(image, 3), 3), image)


def test_monitors_are_those_of_the_views_of_the_key(params, batch, loss):
    """Loss and metrics from the crops and masks of the same key, in NumPy and float64."""
    key = jax.random.key(3)
    value, aux = loss(params, batch, key)
    crops, visible, place = VIEWS(batch, key)
    predicted, seen = jax.jit(OBJECTIVE.predict)(params, crops, visible, place)
    predicted, tokens = np.asarray(predicted, np.float64), np.asarray(seen.patches[0], np.float64)
    patches = np.asarray(patchify(crops, SIDE), np.float64)
    variance = patches.var(-1, ddof=1, keepdims=True)
    wanted = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    hidden = np.asarray(place) >= 4
    error = np.square(predicted - wanted)
    expected = {
        "reconstruction_loss": error[hidden].mean(),
        "visible_error": error[~hidden].mean(),
        "target_variance": wanted[hidden].var(),
        "explained_variance": 1 - error[hidden].mean() / wanted[hidden].var(),
    }
    for name, rows in (("patch", tokens.reshape(-1, WIDTH)), ("mean_patch", tokens.mean(1))):
        np.testing.assert_allclose(aux.moments[name], rows.T @ rows / len(rows), atol=1e-5)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        spread = np.sqrt(np.square(unit - unit.mean(0)).sum(1).mean())
        expected[f"{name}_spread"] = spread
    assert hidden.sum() == IMAGES * 12 and aux.carry == {}
    assert {name: float(x) for name, x in aux.metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert float(value) == pytest.approx(expected["reconstruction_loss"], rel=1e-5)


def test_every_trained_parameter_has_a_gradient(params, batch):
    grads = jax.jit(jax.grad(lambda p: OBJECTIVE.loss(p, {}, batch, jax.random.key(1), jnp.asarray(0))[0]))(params)
    still = [
        jax.tree_util.keystr(at, simple=True, separator="/")
        for at, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.asarray(leaf).any()
    ]
    assert still == ["backbone/mask_token"], "which is there for iBOT"


@pytest.mark.parametrize("normalise_targets", [True, False])
def test_a_perfect_prediction_gives_the_picture_back(batch, normalise_targets):
    """Original, original with black holes, and the holes painted; a perfect painter paints the original."""

    class Perfect(MaskedAutoencoder):
        def predict(self, params, crops, visible, place, layout=None):
            return self.targets_of(patchify(crops, SIDE)), None

    objective, key = Perfect(MODEL, DECODER, CROP, 0.75, normalise_targets), jax.random.key(4)
    rows = jax.jit(partial(objective.pictures, images=3))({}, {}, batch, key)
    crops, _, place = VIEWS(batch, key)
    assert len(rows) == 3
    for i, (original, masked, painted) in enumerate(rows):
        np.testing.assert_allclose(original, denormalise(crops[i]), atol=1e-6)
        np.testing.assert_allclose(painted, original, atol=1e-5)
        black = ~np.asarray(patchify(masked[None], SIDE)[0]).any(-1)
        assert (black >= (np.asarray(place[i]) >= 4)).all() and not black.all()


def test_pictures_are_those_of_the_networks_given(params, batch):
    run = jax.jit(partial(OBJECTIVE.pictures, images=1))
    first, second = (run(p, {}, batch, jax.random.key(4)) for p in (params, jax.tree.map(lambda x: 2 * x, params)))
    np.testing.assert_array_equal(first[0][1], second[0][1])
    assert not np.allclose(first[0][2], second[0][2])


def test_there_is_one_network(params):
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 32, 32)), jnp.float32)
    assert OBJECTIVE.init_targets(params) == {} and OBJECTIVE.update_targets({}, params, {}, jnp.asarray(0)) == {}
    features = [OBJECTIVE.features(params, {}, images, network=name) for name in ("teacher", "student")]
    np.testing.assert_array_equal(features[0].cls, features[1].cls)
    assert features[0].patches.shape == (1, 2, 16, WIDTH), "all patches, none hidden"
    with pytest.raises(ValueError, match="legal are teacher, student"):
        OBJECTIVE.features(params, {}, images, network="ema")


def test_training_on_a_fixed_batch_lowers_the_loss(batch):
    """Twenty steps of the loop's own step function; tests/mesh compares one device with eight."""
    tx, schedules = mae_optimiser(
        timeline=Timeline.fresh(20),
        batch_size=IMAGES,
        base_learning_rate=0.3,
        final_learning_rate=0.0,
        warmup_frac=0.1,
        weight_decay=0.05,
        clip_norm=0.0,
        betas=(0.9, 0.95),
        first_moment_dtype="param",
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(OBJECTIVE, tx, mesh, jax.random.key(0))
    step = make_step(OBJECTIVE, tx, mesh, make_layout(mesh, "float32"), schedules)
    losses = []
    for _ in range(20):
        state, metrics, _ = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert int(state.health["skipped_updates"]) == 0
    assert np.mean(losses[-3:]) < 0.9 * losses[0], losses


def test_the_optimiser_is_the_published_one(params):
    """Rate linear in the batch; warm-up 5 %; decay of all but biases and norms, at the rate of the step."""
    options = {"final_learning_rate": 0.0, "clip_norm": 0.0, "betas": (0.9, 0.95), "first_moment_dtype": "param"}
    tx, schedules = mae_optimiser(
        timeline=Timeline.fresh(800),
        batch_size=4096,
        base_learning_rate=1.5e-4,
        warmup_frac=0.05,
        weight_decay=0.05,
        **options,
    )
    rates = [float(schedules["learning_rate"](step)) for step in (0, 39, 420, 800)]
    assert rates == pytest.approx([0.0, 2.4e-3, 1.2e-3, 0.0], abs=1e-8)
    assert schedules["weight_decay"](7) == 0.05
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(zeros, tx.init(params), ones, step=jnp.asarray(39))
    for at, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(at, simple=True, separator="/")
        decayed = 0.0 if name.endswith(("bias", "scale")) else -2.4e-3 * 0.05
        np.testing.assert_allclose(leaf, decayed, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.0}, r"mask_ratio=0\.0"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1\.0"),
        ({"mask_ratio": 0.98}, "leaves 0 of 16 patches visible"),
        ({"mask_ratio": 0.01}, "leaves 16 of 16 patches visible"),
        ({"crop": CropRecipe(30, (0.2, 1.0))}, "30 px must be a multiple of model.patch_size=8"),
        ({"model": MODEL | {"drop_path": 0.1}}, r"model\.drop_path=0\.1"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OBJECTIVE, **changes)
