"""The grid of heads: unknown labels are silent, every member trains as if alone, what is frozen stays to the bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.vit import Features
from cxr_jax.objectives.label_losses import LabelLoss, masked_bce
from cxr_jax.objectives.supervised import Supervised
from cxr_jax.optim import adamw
from cxr_jax.schedules import warmup_cosine_schedule

IMAGES, CLASSES, WIDTH, BLOCKS = 5, 3, 8, 2
RATES = (1e-4, 1e-2, 0.1)
MODEL = {"image_size": 16, "patch_size": 8, "width": WIDTH, "depth": 2, "num_heads": 1, "num_registers": 1}
CROP = CropRecipe(size=16, scale=(0.75, 1.0), jitter_prob=0.0)
GLORI = {"decoder_width": 8, "num_heads": 2, "ffn_width": 8, "dropout_rate": 0.0}
HEADS = {"linear": {"blocks": BLOCKS}, "glori": {"blocks": BLOCKS, **GLORI}}
LABELS = np.array([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [1, 1, -1], [-1, -1, -1]], np.int8)


class OnFeatures(Supervised):
    """The objective on features that the batch brings, so that no crop or backbone has to be compiled."""

    def _crops(self, batch, key, layout=None):
        return batch["image"]

    def features(self, params, targets, images, **_):
        return Features(**targets)


def make(head, rates=RATES, kind=OnFeatures, **changes):
    kwargs = HEADS[head] | {"width": WIDTH, "num_classes": CLASSES} | changes
    return kind(model=MODEL, head_name=head, head=kwargs, learning_rates=rates, crop=CROP)


def make_features(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((BLOCKS, IMAGES, WIDTH), (BLOCKS, IMAGES, 1, WIDTH), (BLOCKS, IMAGES, 4, WIDTH))
    return {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in zip(Features._fields, shapes, strict=True)
    }


def make_batch(labels=LABELS):
    return {"image": jnp.zeros((IMAGES, 16, 16)), "labels": jnp.asarray(labels)}


def optimiser(rates=RATES, peak=1.0):
    """As `cxr_jax.train` makes it for fine-tuning, where the peak is 1."""
    cosine = warmup_cosine_schedule(1.0, 0.0, 0, 10)
    return adamw(
        learning_rate=lambda step: peak * cosine(step),
        weight_decay=lambda step: 1e-1,
        clip_norm=None,
        lr_tables=(((r"/queries$", 0.0), (r".", np.asarray(rates))),),
        wd_table=((r".", 1.0),),
    )


def spread(params, seed=3):
    """Other values for every member, so that a mix-up between members shows."""
    rng = np.random.default_rng(seed)
    first = lambda x: 0.0 if isinstance(x, jax.ShapeDtypeStruct) else x
    return jax.tree.map(lambda x: jnp.asarray(first(x) + 0.3 * rng.standard_normal(x.shape), x.dtype), params)


@pytest.fixture(scope="module", params=sorted(HEADS))
def trained(request):
    """`(objective, params, compiled gradient, compiled step)` of each kind of head."""
    objective = make(request.param)
    params = spread(jax.jit(objective.init)(jax.random.key(0)))
    gradient = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    return request.param, objective, params, gradient


KEY, STEP = jax.random.key(1), jnp.asarray(0)


def bce(logits, labels):
    """Sum over known labels in float64."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    terms = np.where(labels == 1, -np.log(p), -np.log(1 - p))
    return terms[labels >= 0].sum()


def test_masked_bce_sums_over_known_labels_for_every_head():
    logits = np.random.default_rng(0).standard_normal((4, IMAGES, CLASSES)).astype(np.float32)
    ours = masked_bce(jnp.asarray(logits), jnp.asarray(LABELS))
    np.testing.assert_allclose(ours, [bce(head, LABELS) for head in logits], rtol=1e-5)


def test_masked_bce_has_no_gradient_at_unknown_labels_even_at_extreme_logits():
    logits = jnp.where(LABELS < 0, 1e30, 0.5) * jnp.ones((2, 1, 1))
    gradient = jax.grad(lambda x: masked_bce(x, jnp.asarray(LABELS)).sum())(logits)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[:, LABELS < 0].any()
    np.testing.assert_allclose(gradient[:, LABELS >= 0][0], (1 / (1 + np.exp(-0.5)) - LABELS)[LABELS >= 0], rtol=1e-5)


def test_the_loss_is_the_sum_of_all_heads_and_metrics_are_per_known_label(trained):
    _, objective, params, gradient = trained
    features = make_features()
    (loss, aux), _ = gradient(params, features, make_batch(), KEY, STEP)
    logits = jax.jit(objective.logits)(params, Features(**features))
    expected = [bce(head, LABELS) for head in logits]
    assert float(loss) == pytest.approx(sum(expected), rel=1e-5)
    known = (LABELS >= 0).sum()
    for rate, value in zip(RATES, expected, strict=True):
        assert float(aux.metrics[f"bce_lr_{rate:g}"]) == pytest.approx(value / known, rel=1e-5)
    assert float(aux.metrics["bce_best"]) == pytest.approx(min(expected) / known, rel=1e-5)


def test_an_image_without_known_labels_changes_no_head(trained):
    """The last image knows nothing: other features for it leave loss and every head's gradient as they are."""
    _, _, params, gradient = trained
    features = make_features()
    changed = {name: x.at[:, -1].set(7.0) for name, x in features.items()}
    (loss, _), grads = gradient(params, features, make_batch(), KEY, STEP)
    (loss_changed, _), grads_changed = gradient(params, changed, make_batch(), KEY, STEP)
    assert float(loss) == pytest.approx(float(loss_changed), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_changed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_class_without_known_labels_has_no_gradient_in_any_head(trained):
    name, _, params, gradient = trained
    labels = LABELS.copy()
    labels[:, 1] = -1
    _, grads = gradient(params, make_features(), make_batch(labels), KEY, STEP)
    kernel = np.asarray(grads["head"]["classifier"]["kernel"])
    of_class = kernel[:, :, 1] if name == "linear" else kernel[:, 1]
    others = kernel[:, :, 0] if name == "linear" else kernel[:, 0]
    assert not of_class.any() and not np.asarray(grads["head"]["classifier"]["bias"])[:, 1].any()
    assert np.abs(others).reshape(len(RATES), -1).max(1).min() > 0


@pytest.mark.parametrize("head", sorted(HEADS))
def test_thirteen_rates_at_once_are_thirteen_runs(head):
    """Three AdamW steps of a grid of 13 with dropout against 13 grids of one, float64."""
    dtypes = dict.fromkeys(("param_dtype", "compute_dtype", "reduce_dtype"), "float64")
    rates, dropout = tuple(np.geomspace(1e-5, 0.1, 13)), {"dropout_rate": 0.1} if head == "glori" else {}

    def run(params, rates, peak=1.0):
        objective, tx = make(head, rates, **dtypes, **dropout), optimiser(rates, peak)

        def step(carry, step):
            params, state = carry
            loss = lambda p: objective.loss(p, features, batch, jax.random.fold_in(KEY, step), step)[0]
            updates, state = tx.update(jax.grad(loss)(params), state, params, step=step)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(3))[0][0]

    with jax.enable_x64(True):
        features = {name: x.astype("float64") for name, x in make_features().items()}
        batch = make_batch()
        params = spread(jax.eval_shape(make(head, rates, **dtypes).init, KEY))
        together = jax.jit(partial(run, rates=rates))(params)
        # The rate is the schedule's and an argument, so that one program serves all thirteen.
        alone = jax.jit(lambda params, rate: run(params, (1.0,), rate))
        for i, rate in enumerate(rates):
            member = alone(jax.tree.map(lambda x, i=i: x[i : i + 1], params), rate)
            for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(member), strict=True):
                assert ours.dtype == np.float64
                np.testing.assert_allclose(ours[i], theirs[0], rtol=1e-10, atol=1e-10)


def test_the_first_step_of_every_member_has_the_length_of_its_learning_rate(trained):
    """Adam's first step is lr * sign(g): the ratio between members is the ratio of their rates (no decay here)."""
    _, _, params, gradient = trained
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, grads = gradient(params, make_features(), make_batch(), KEY, STEP)
    updates, _ = optimiser().update(grads, optimiser().init(params), zeros, step=STEP)
    bias = np.abs(np.asarray(updates["head"]["classifier"]["bias"]))
    np.testing.assert_allclose(bias, np.array(RATES)[:, None] * np.ones_like(bias), rtol=1e-4)


def test_queries_stay_frozen_to_the_bit():
    """Over three steps with weight decay, whatever the member's rate."""
    objective = make("glori")
    params = start = spread(jax.jit(objective.init)(jax.random.key(0)))
    tx = optimiser()
    state = tx.init(params)

    @jax.jit
    def train(params, state, step):
        grads = jax.grad(lambda p: objective.loss(p, make_features(), make_batch(), KEY, step)[0])(params)
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state

    for step in range(3):
        params, state = train(params, state, jnp.asarray(step))
    np.testing.assert_array_equal(params["head"]["queries"], start["head"]["queries"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["head"]["mlp"]):
        assert np.isfinite(leaf).all(), path
    assert not np.allclose(params["head"]["embed"]["kernel"], start["head"]["embed"]["kernel"])


def test_the_backbone_has_no_gradient_and_never_changes():
    """The real path: crops, backbone, heads. Features come from the frozen targets, which are returned as they were."""
    objective = make("linear", kind=Supervised)
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (IMAGES, 20, 20)), jnp.uint8),
        "size": jnp.full((IMAGES, 2), 20, jnp.int32),
        "labels": jnp.asarray(LABELS),
    }

    @jax.jit
    def run(key):
        params = objective.init(key)
        targets = objective.init_targets(params)
        loss = partial(objective.loss, batch=batch, key=key, step=STEP)
        params = jax.tree.map(lambda x: x + 0.1, params)
        by_head, by_backbone = jax.grad(lambda p, t: loss(p, t)[0], argnums=(0, 1))(params, targets)
        return targets, by_head, by_backbone, loss(params, targets)[0]

    targets, by_head, by_backbone, loss = run(jax.random.key(0))
    assert np.isfinite(float(loss))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_head))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(by_backbone))
    assert objective.update_targets(targets, {}, {}, STEP) is targets


def test_all_members_start_equal():
    head = jax.jit(make("glori").init)(jax.random.key(0))["head"]
    for leaf in jax.tree.leaves(head):
        assert leaf.shape[0] == len(RATES)
        np.testing.assert_array_equal(leaf[0], leaf[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_name": "glory"}, "'glory': legal are linear, pooled, attentive, glori"),
        ({"learning_rates": ()}, "empty"),
        ({"backbone": "thawed"}, "objective.backbone='thawed': legal are frozen, lora, full"),
        ({"backbone": "full"}, "optim.learning_rates has 3 rates: .* one of either"),
        ({"mixup_alpha": -1.0}, "mixup_alpha=-1.0"),
        ({"model": MODEL | {"drop_path": 0.1}}, "a frozen backbone drops nothing"),
        ({"model": MODEL | {"drop_path": 1.5}}, "0 up to but not 1"),
        ({"model": MODEL | {"drop_path": -0.5}}, "0 up to but not 1"),
        (
            {"model": MODEL | {"drop_path": 0.1}, "backbone": "full", "learning_rates": (0.1,), "group_size": 4},
            "drops no row of a group of 4",
        ),
        ({"backbone": "lora", "learning_rates": (0.1,), "lora": {"rank": 9, "kernels": ("qkv",)}}, "lora.rank=9"),
        ({"backbone": "lora", "learning_rates": (0.1,), "lora": {"rank": 1, "kernels": ("mlp",)}}, "qkv, proj"),
        ({"label_loss": LabelLoss(("cumulative_link",))}, "needs head.name='ordinal'"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    kwargs = {"model": MODEL, "head": {}, "crop": CROP, "head_name": "linear", "learning_rates": RATES}
    with pytest.raises(ValueError, match=message):
        Supervised(**kwargs | changes)
