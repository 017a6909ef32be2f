"""What the objective adds around its losses: views from the step's key, weights, the EMA teacher, refusals.

The value of the loss and its gradients are compared with PyTorch in tests/parity/test_objective_torch.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import multi_crop_recipes, random_crops
from cxr_jax.data.masking import block_masks
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.schedules import cosine_schedule, linear_schedule

IMAGES = 4
CROPS = multi_crop_recipes(
    global_size=16,
    local_size=8,
    num_local=2,
    global_scale=(0.32, 1.0),
    local_scale=(0.05, 0.32),
    blur_probs="as_released",
    jitter_prob=0.0,
)
MODEL = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 1, "num_registers": 1}
HEAD = {"width": 8, "hidden": 8, "bottleneck": 4, "num_prototypes": 6}
OBJECTIVE = SelfDistillation(
    model=MODEL,
    heads={"dino_head": HEAD, "ibot_head": HEAD},
    crops=CROPS,
    group_size=2,
    mask_ratio=(0.1, 0.5),
    dino_weight=1.0,
    ibot_weight=3.0,
    koleo_weight=0.1,
    student_temperature=0.1,
    teacher_temperature=linear_schedule(0.04, 0.07, 3),
    ema=cosine_schedule(0.9, 1.0, 10),
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (IMAGES, 24, 24)), jnp.uint8),
        "size": jnp.array([[24, 24], [20, 24], [24, 18], [22, 21]], jnp.int32),
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def views(batch):
    return jax.jit(OBJECTIVE.views)(batch, jax.random.key(5))


def test_rows_are_image_major(batch, views):
    """Global row 2i + c is crop c of image i, local row l i + c likewise, masks are those of their group."""
    key_crops, key_masks = jax.random.split(jax.random.key(5))
    crops = jax.jit(lambda *a: random_crops(*a, CROPS))(key_crops, batch["image"], batch["size"])
    global_crops, local_crops, mask, positions, weights = views
    for i in range(IMAGES):
        for c in range(2):
            np.testing.assert_allclose(global_crops[2 * i + c], crops[c][i], atol=1e-5)
            np.testing.assert_allclose(local_crops[2 * i + c], crops[2 + c][i], atol=1e-5)
    expected = block_masks(key_masks, num_groups=2, num_crops=4, grid=4, mask_ratio=(0.1, 0.5))
    np.testing.assert_array_equal(mask, expected[0].reshape(2 * IMAGES, -1))
    np.testing.assert_array_equal(positions, expected[1])
    np.testing.assert_array_equal(weights, expected[2])


def test_the_loss_is_the_weighted_sum_of_its_terms_on_the_views_of_its_key(batch, params, views):
    """Views are drawn from the first half of the step's key; the spy hands out others, to save their compilation."""

    class Spy(SelfDistillation):
        def views(self, batch, key, layout):
            drawn_from.append(jax.random.key_data(key))
            return views

    drawn_from = []
    fields = {field.name: getattr(OBJECTIVE, field.name) for field in dataclasses.fields(OBJECTIVE)}
    objective = Spy(**fields)

    @jax.jit
    def run(key):
        loss, aux = objective.loss(params, params, batch, key, jnp.asarray(1))
        return loss, aux, drawn_from[-1]

    loss, aux, used = run(jax.random.key(9))
    np.testing.assert_array_equal(used, jax.random.key_data(jax.random.split(jax.random.key(9))[0]))
    terms = {name: float(value) for name, value in aux.metrics.items()}
    total = terms["dino_local_loss"] + terms["dino_global_loss"] + 3 * terms["ibot_loss"] + 0.1 * terms["koleo_loss"]
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert terms["teacher_temperature"] == pytest.approx(0.055, rel=1e-5) and aux.carry == {}


def terms_on(objective, views, batch, step=1):
    """Loss and metrics of `objective` on given views, and its parameters."""

    class Given(type(objective)):
        def views(self, batch, key, layout):
            return views

    given = Given(**{field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)})
    params = jax.jit(given.init)(jax.random.key(0))
    other = jax.tree.map(lambda x: x + 0.05 * jnp.sin(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    targets = given.init_targets(other)
    loss, aux = jax.jit(given.loss)(params, targets, batch, jax.random.key(9), jnp.asarray(step))
    return float(loss), {name: float(value) for name, value in aux.metrics.items()}, params, targets


def test_optional_terms_are_added_with_their_weights(batch, views):
    off, plain, _, _ = terms_on(OBJECTIVE, views, batch)
    on, terms, _, targets = terms_on(
        dataclasses.replace(
            OBJECTIVE, gram_weight=2.0, regularised_blocks=(0,), variance_weight=3.0, covariance_weight=5.0
        ),
        views,
        batch,
    )
    assert {"gram_loss", "variance_loss", "covariance_loss"} == terms.keys() - plain.keys()
    assert min(terms["gram_loss"], terms["variance_loss"], terms["covariance_loss"]) > 0
    extra = 2 * terms["gram_loss"] + 3 * terms["variance_loss"] + 5 * terms["covariance_loss"]
    assert on == pytest.approx(off + extra, rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, targets["gram"], targets["backbone"])


@pytest.mark.parametrize(("every", "refreshed"), [(0, False), (4, True), (3, False)])
def test_the_gram_teacher_is_taken_anew_when_due(params, every, refreshed):
    objective = dataclasses.replace(OBJECTIVE, gram_weight=1.0, gram_refresh_every_steps=every)
    targets = objective.init_targets(jax.tree.map(lambda x: x + 1, params))
    updated = objective.update_targets(targets, params, {}, jnp.asarray(3))
    expected = updated["backbone"] if refreshed else targets["gram"]
    jax.tree.map(np.testing.assert_array_equal, updated["gram"], expected)


def test_koleo_waits_until_cls_tokens_have_spread(batch, views):
    spreading = dataclasses.replace(OBJECTIVE, model=MODEL | {"layer_scale": 1.0})
    waiting = terms_on(dataclasses.replace(spreading, koleo_start_spread=1.0), views, batch)[1]
    started = terms_on(dataclasses.replace(spreading, koleo_start_spread=1e-4), views, batch)[1]
    assert waiting["koleo_loss"] == 0 and started["koleo_loss"] != 0


def test_shared_heads_and_no_centring(batch, views):
    shared = dataclasses.replace(OBJECTIVE, shared_heads=True, centring="softmax")
    loss, _, params, targets = terms_on(shared, views, batch)
    assert params.keys() == {"backbone", "dino_head"} and np.isfinite(loss)
    assert targets["centres"].keys() == {"dino_head", "ibot_head"}
    none, _, _, targets = terms_on(dataclasses.replace(OBJECTIVE, centring="none"), views, batch)
    zero_centre, _, _, _ = terms_on(dataclasses.replace(OBJECTIVE, centring="softmax"), views, batch)
    assert none == pytest.approx(zero_centre, rel=1e-6) and "centres" not in targets


@pytest.mark.parametrize("step", [0, 3, 9, 10])
def test_the_teacher_follows_with_the_momentum_of_the_step(params, step):
    targets = jax.tree.map(lambda x: jnp.full_like(x, 2.0), params)
    momentum = 1.0 - 0.1 * 0.5 * (1 + np.cos(np.pi * step / 10))
    updated = OBJECTIVE.update_targets(targets, params, {}, jnp.asarray(step))
    for new, student in zip(jax.tree.leaves(updated), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(new, momentum * 2.0 + (1 - momentum) * np.asarray(student), rtol=1e-5, atol=1e-6)


def test_the_teacher_starts_as_a_copy_in_other_buffers(params):
    targets = OBJECTIVE.init_targets(params)
    assert jax.tree.structure(targets) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(targets), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_features_come_from_the_named_network(params):
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16, 16)), jnp.float32)
    other = jax.tree.map(lambda x: 2.0 * x, params)
    teacher = OBJECTIVE.features(params, other, images)
    student = OBJECTIVE.features(other, params, images, network="student")
    np.testing.assert_array_equal(teacher.cls, student.cls)
    assert not np.allclose(teacher.cls, OBJECTIVE.features(params, other, images, network="student").cls)
    with pytest.raises(ValueError, match="teacher, student"):
        OBJECTIVE.features(params, other, images, network="ema")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centring": "sinkhorm"}, "sinkhorn, softmax"),
        ({"group_size": 1}, "at least 2"),
        ({"koleo_scope": "batch"}, "group, global"),
        ({"gram_negatives": "drop"}, "keep, remove"),
        ({"gram_weight": -1.0}, "gram_weight=-1.0 must be at least 0"),
        ({"student_temperature": 0.0}, "must be above 0"),
        ({"regularised_blocks": (1,), "variance_weight": 1.0}, "different numbers from 0 to 0"),
        ({"regularised_blocks": (0, 0), "variance_weight": 1.0}, "different numbers"),
        ({"variance_weight": 1.0}, "name blocks and at least one weight, or neither"),
        ({"prototype_chunks": 4}, "must divide heads.dino_head.num_prototypes=6"),
        ({"mask_ratio": (0.5, 0.1)}, "mask_ratio"),
        ({"mask_ratio": (0.0, 0.01)}, "at least one"),
        ({"mask_ratio": (0.5, 1.5)}, "low <= high <= 1"),
        ({"model": MODEL | {"patch_size": 6}}, "patch_size=6"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OBJECTIVE, **changes)
