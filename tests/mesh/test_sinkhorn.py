"""Sinkhorn-Knopp sees the global batch: rows split over eight devices give the assignment of one device.

In float64, at 1e-10, for odd numbers of rows per device, with more prototypes than rows and with fewer. Then through
the objective: DINO's assignment covers all global crops, iBOT's exactly the hidden patches of all images.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import multi_crop_recipes
from cxr_jax.models.vit import Features
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.objectives.views import Views
from cxr_jax.sharding import batch_sharding, make_layout, make_mesh, replicated
from tests.objectives.given_embeddings import sinkhorn_probabilities

DEVICES, WIDTH = 8, 6
TEMPERATURE = 0.05
# (rows per device, prototypes, chunks of them): fewer prototypes than rows, more, and one row on each device.
SHAPES = ((3, 7, 1), (5, 7, 1), (3, 64, 1), (3, 64, 4), (1, 40, 1), (5, 6, 3))


# --- the code under test ---------------------------------------------------------------------------------------------


def assign(embeddings, directions, num_chunks):
    """Probabilities `[rows, k]` of the teacher's embeddings `[rows, e]` over unit prototypes `[e, k]`."""
    prototypes = {"v": directions, "g": jnp.ones(directions.shape[1], directions.dtype)}
    return sinkhorn_probabilities(embeddings, prototypes, TEMPERATURE, num_chunks)


class GivenTokens(SelfDistillation):
    """The objective on tokens instead of images: `params["backbone"]` and `targets["backbone"]` are the tokens."""

    def views(self, batch, key, layout=None):
        return Views(*(batch[name] for name in ("global", "local", "mask", "positions", "weights")))

    def _apply(self, name, params):
        if name != "backbone":
            return super()._apply(name, params)
        tokens = params["backbone"]

        def features(stream):
            cls, patches = tokens[stream]["cls"], tokens[stream]["patches"]
            return Features(cls[None], patches[None, :, :0], patches[None])

        return lambda images, *args, **kwargs: tuple(features(i) for i, _ in enumerate(images))


# --- the assignment --------------------------------------------------------------------------------------------------


def sinkhorn_numpy(scores):
    """DINOv2's algorithm on one process: the whole plan, prototypes and rows in turn, three times."""
    plan = np.exp(scores / TEMPERATURE)
    for _ in range(3):
        plan /= plan.sum(0) * plan.shape[1]
        plan /= plan.sum(1, keepdims=True) * plan.shape[0]
    return plan * plan.shape[0]


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(replica=2, fsdp=4)


def scores_of(rows, prototypes, seed=0):
    """Unit embeddings and prototypes; rows of one device resemble each other, so that its own shares are uneven."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((DEVICES, rows, WIDTH)) + 3 * rng.standard_normal((DEVICES, 1, WIDTH))
    x = x.reshape(-1, WIDTH) / np.linalg.norm(x.reshape(-1, WIDTH), axis=1, keepdims=True)
    w = rng.standard_normal((WIDTH, prototypes))
    return x, w / np.linalg.norm(w, axis=0)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: "{}rows_{}prototypes_{}chunks".format(*s))
def assigned(request, mesh):
    """Scores, the assignment of one device and that of eight, and the program of the eight."""
    *sizes, num_chunks = request.param
    x, w = scores_of(*sizes)
    run = partial(assign, num_chunks=num_chunks)
    one = jax.jit(run)(x, w)
    rows = batch_sharding(mesh)
    many = jax.jit(run, in_shardings=(rows, replicated(mesh)), out_shardings=rows).lower(x, w).compile()
    return x @ w, np.asarray(one), many(jax.device_put(x, rows), jax.device_put(w, replicated(mesh))), many


def test_eight_devices_assign_as_one(assigned):
    scores, one, many, _ = assigned
    shards = [np.asarray(shard.data) for shard in many.addressable_shards]
    assert len(shards) == DEVICES and {len(shard) for shard in shards} == {len(scores) // DEVICES}
    np.testing.assert_allclose(np.asarray(many), one, rtol=0, atol=1e-10)
    np.testing.assert_allclose(one, sinkhorn_numpy(scores), rtol=0, atol=1e-10)


def test_sums_cross_devices(assigned):
    """What each device would make of its own rows is another assignment, by far more than any rounding."""
    scores, _, many, _ = assigned
    apart = np.concatenate([sinkhorn_numpy(share) for share in np.split(scores, DEVICES)])
    assert np.abs(np.asarray(many) - apart).max() > 0.1


def test_vectors_travel_and_rows_stay(assigned):
    """The program all-reduces, and gathers nothing: logits are never whole on a device."""
    text = assigned[-1].as_text()
    assert "all-reduce" in text
    assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute"))


# --- in the objective ------------------------------------------------------------------------------------------------

IMAGES, GROUP, GRID, LOCAL = 16, 2, 3, 1
HEAD = {"width": WIDTH, "hidden": 8, "bottleneck": 4, "param_dtype": "float64", "compute_dtype": "float64"}
HEAD |= {"reduce_dtype": "float64"}


def make_objective():
    crops = multi_crop_recipes(
        global_size=8 * GRID,
        local_size=8,
        num_local=LOCAL,
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
        blur_probs="as_documented",
    )
    model = {"image_size": 8 * GRID, "patch_size": 8, "width": WIDTH, "depth": 1, "num_heads": 1}
    return GivenTokens(
        model=model | {name: "float64" for name in ("param_dtype", "compute_dtype", "reduce_dtype")},
        heads={"dino_head": HEAD | {"num_prototypes": 10}, "ibot_head": HEAD | {"num_prototypes": 12}},
        crops=crops,
        group_size=GROUP,
        mask_ratio=(0.1, 0.5),
        dino_weight=1.0,
        ibot_weight=3.0,
        koleo_weight=0.1,
        student_temperature=0.1,
        teacher_temperature=lambda step: jnp.asarray(TEMPERATURE),
        ema=lambda step: jnp.asarray(0.9),
    )


def make_inputs(objective):
    """A batch whose masks hide 1 and 4 patches in two of each group's four crops, and tokens for both networks."""
    rng = np.random.default_rng(1)
    mask = np.zeros((IMAGES // GROUP, 2 * GROUP, GRID**2), bool)
    for group in mask:
        for crop, hidden in zip(rng.permutation(2 * GROUP), (1, 4, 0, 0), strict=True):
            group[crop, rng.permutation(GRID**2)[:hidden]] = True
    positions = np.stack([np.flatnonzero(group) for group in mask]).astype(np.int32)
    batch = {
        "image": np.zeros((IMAGES, 1, 1), np.uint8),
        "global": np.zeros((2 * IMAGES, 1, 1)),
        "local": np.zeros((LOCAL * IMAGES, 1, 1)),
        "mask": mask.reshape(2 * IMAGES, -1),
        "positions": positions,
        "weights": 1 / np.take_along_axis(mask.sum(2), positions // GRID**2, 1),
    }
    heads = {name: tree for name, tree in SelfDistillation.init(objective, jax.random.key(0)).items() if "head" in name}
    heads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), heads)

    def tokens():
        draw = lambda rows, n: {
            "cls": rng.standard_normal((rows, WIDTH)),
            "patches": rng.standard_normal((rows, n, WIDTH)),
        }
        return {"backbone": [draw(2 * IMAGES, GRID**2), draw(LOCAL * IMAGES, 1)]}

    return batch, heads | tokens(), heads | tokens()


@pytest.fixture(scope="module")
def losses(mesh):
    """`run(targets, weights) -> metrics` on one device and on eight, whose tokens and batch are split over rows."""
    objective = make_objective()
    batch, params, targets = make_inputs(objective)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    split = lambda tree: {name: rows if name == "backbone" else whole for name in tree}

    def loss(params, targets, batch, layout):
        return objective.loss(params, targets, batch, jax.random.key(0), jnp.asarray(0), layout)[1].metrics

    one = jax.jit(lambda p, t, b: loss(p, t, b, make_layout(make_mesh(devices=jax.devices()[:1]), "float64")))
    many = jax.jit(
        lambda p, t, b: loss(p, t, b, make_layout(mesh, "float64")),
        in_shardings=(split(params), split(targets), rows),
    )
    run = lambda program: (
        lambda changed, weights=batch["weights"]: program(params, changed, batch | {"weights": weights})
    )
    return batch, targets, run(one), run(many)


TERMS = ("dino_local_loss", "dino_global_loss", "ibot_loss", "koleo_loss")


def replaced(targets, name, rows):
    """The teacher's tokens `name` of the global crops with new random ones where `rows` is True."""
    tokens = targets["backbone"][0]
    new = np.where(rows[..., None], np.random.default_rng(2).standard_normal(tokens[name].shape), tokens[name])
    return targets | {"backbone": [tokens | {name: new}, targets["backbone"][1]]}


def test_losses_on_given_tokens_are_those_of_one_device(losses):
    _, targets, one, many = losses
    ours, reference = many(targets), one(targets)
    for name in TERMS:
        assert float(ours[name]) == pytest.approx(float(reference[name]), rel=1e-10), name


def test_ibot_assigns_exactly_the_hidden_patches(losses):
    """New teacher tokens at all shown patches change nothing; at one hidden patch of the last crop they change iBOT."""
    batch, targets, _, many = losses
    before, mask = many(targets), batch["mask"]
    after = many(replaced(targets, "patches", ~mask))
    for name in TERMS:
        assert float(after[name]) == float(before[name]), name
    one_hidden = np.zeros_like(mask)
    crop = np.flatnonzero(mask.any(1))[-1]
    one_hidden[crop, np.flatnonzero(mask[crop])[0]] = True
    assert float(many(replaced(targets, "patches", one_hidden))["ibot_loss"]) != float(before["ibot_loss"])


def test_a_hidden_patch_changes_the_targets_on_other_devices(losses):
    """Only the last group's patches count in this loss; new teacher patches in the first group still move it.

    The way leads through the prototypes' shares alone: a device that normalised its own rows would not see it.
    """
    batch, targets, one, many = losses
    weights = np.where(np.arange(IMAGES // GROUP)[:, None] == IMAGES // GROUP - 1, batch["weights"], 0)
    changed = replaced(targets, "patches", batch["mask"] & (np.arange(2 * IMAGES) < 2 * GROUP)[:, None])
    before, after = (float(many(t, weights)["ibot_loss"]) for t in (targets, changed))
    assert abs(after - before) > 1e-3 * before > 0
    assert after == pytest.approx(float(one(changed, weights)["ibot_loss"]), rel=1e-10)
