"""What becomes of the backbone: low-rank factors on a frozen one, or all of it trained with layer-wise decay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.finetune import mae_full
from cxr_jax.data.augment import CropRecipe
from cxr_jax.experiments.supervised import head_optimiser
from cxr_jax.export.mapping import flatten
from cxr_jax.models.lora import merge_lora
from cxr_jax.objectives.supervised import Supervised

WIDTH, DEPTH, HEADS, RANK, ALPHA, CLASSES, IMAGES = 8, 3, 2, 2, 6.0, 2, 4
MODEL = {"image_size": 16, "patch_size": 8, "width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_registers": 1}
LORA = {"rank": RANK, "alpha": ALPHA, "kernels": ("qkv", "proj")}
STEP = jnp.asarray(0)


class GivenCrops(Supervised):
    """The objective on crops that the batch brings."""

    def _crops(self, batch, key, layout=None):
        return batch["image"]


def make(backbone, **changes):
    options = {
        "model": MODEL | {"drop_path": 0.5 if backbone == "full" else 0.0, "layer_scale": 1.0},
        "head_name": "pooled",
        "head": {"width": WIDTH, "num_classes": CLASSES, "blocks": 1, "init_std": 1.0},
        "learning_rates": (1e-2,),
        "crop": CropRecipe(size=16, scale=(1.0, 1.0)),
        "backbone": backbone,
        "group_size": 2,
        "lora": LORA,
    }
    return GivenCrops(**options | changes)


BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).normal(size=(IMAGES, 16, 16)), jnp.float32),
    "labels": jnp.asarray([[1, 0], [0, -1], [1, 1], [-1, 0]], jnp.int8),
}


@pytest.fixture(scope="module")
def modes():
    """`{mode: (objective, params, targets, value and gradients of both)}`."""
    found = {}
    for mode in ("lora", "full"):
        objective = make(mode)

        @jax.jit
        def begin(key, objective=objective):
            params = objective.init(key)
            return params, objective.init_targets(params)

        params, targets = begin(jax.random.key(0))
        loss = lambda params, targets, key, objective=objective: objective.loss(params, targets, BATCH, key, STEP)[0]
        found[mode] = objective, params, targets, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return found


def test_factors_start_as_the_backbone_itself_and_are_merged_as_the_paper_says(modes):
    objective, params, targets, _ = modes["lora"]
    start = objective.backbone_params(params, targets)
    jax.tree.map(np.testing.assert_array_equal, start, targets["backbone"])
    rng = np.random.default_rng(1)
    factors = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params["lora"])
    with jax.enable_x64(True):
        merged = merge_lora(targets["backbone"], factors, rank=RANK, alpha=ALPHA)
    before, after = flatten(targets["backbone"]), flatten(merged)
    for name, axes in (("qkv", "dr,rche->dche"), ("proj", "her,rd->hed")):
        path = f"blocks/attn/{name}/kernel"
        change = [np.einsum(axes, factors[name]["a"][i], factors[name]["b"][i]) for i in range(DEPTH)]
        np.testing.assert_allclose(after.pop(path), before.pop(path) + ALPHA / RANK * np.array(change), rtol=1e-5)
    assert all(after[path] is before[path] for path in before)


def test_only_factors_and_head_have_a_gradient(modes):
    _, params, targets, gradient = modes["lora"]
    assert set(params) == {"head", "lora"} and set(params["lora"]) == {"qkv", "proj"}
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    _, (by_params, by_targets) = gradient(moved, targets, jax.random.key(1))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(by_targets))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_params))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params["lora"], targets["backbone"])]
    assert sizes[0] == DEPTH * (RANK * (WIDTH + 3 * WIDTH) + RANK * 2 * WIDTH) < sizes[1]


def test_all_of_the_backbone_learns_and_nothing_is_a_target(modes):
    _, params, targets, gradient = modes["full"]
    assert targets == {} and set(params) == {"head", "backbone"}
    _, (by_params, _) = gradient(params, targets, jax.random.key(1))
    # Hidden patches do not occur, the pool leaves out CLS and registers after the last block, and a shift of all
    # scores by the key's bias cancels.
    untouched = {path for path, leaf in flatten(by_params).items() if not np.asarray(leaf).any()}
    assert untouched == {"backbone/mask_token"}
    per_layer = np.abs(np.asarray(by_params["backbone"]["blocks"]["attn"]["qkv"]["kernel"])).max((1, 2, 3, 4))
    assert (per_layer > 0).all()


def test_drop_path_is_drawn_in_training_and_never_in_features(modes):
    objective, params, targets, gradient = modes["full"]
    losses = [float(gradient(params, targets, jax.random.key(seed))[0]) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    features = jax.jit(partial(objective.features, params, targets))
    first, second = features(BATCH["image"]), features(BATCH["image"])
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_checkpoints_say_how_to_evaluate_each_mode(modes):
    for mode, (objective, params, targets, _) in modes.items():
        meta = {
            "model": objective.model,
            "head": {"name": "pooled", **objective.head},
            "learning_rates": [1e-2],
            "geometry": {"image_size": 16},
            "backbone": {"mode": mode} | (LORA if mode == "lora" else {}),
        }
        moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
        ours, theirs = (
            jax.jit(o.features)(moved, targets, BATCH["image"]) for o in (Supervised.trained(meta), objective)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_full_fine_tuning_has_layer_wise_rates_and_undecayed_vectors(modes):
    """Adam's first step is rate x sign(gradient): rate x 0.75^(depth + 1 - layer), embeddings being layer 0."""
    _, params, _, _ = modes["full"]
    config = mae_full.get_config()
    config.optim.update(warmup_frac=0.0)
    tx, schedules = head_optimiser(config, (1e-2,), "full", DEPTH)
    ones = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def first_step(params):
        return tx.update(ones, tx.init(params), params, step=STEP)[0]

    steps = {path: -np.asarray(leaf) for path, leaf in flatten(first_step(params)).items()}
    decay, weights = config.optim.layer_decay, flatten(params)
    qkv = "backbone/blocks/attn/qkv/kernel"
    expected = 1e-2 * decay ** (DEPTH - np.arange(DEPTH))
    kept = steps[qkv] - (expected * config.optim.weight_decay)[:, None, None, None, None] * np.asarray(weights[qkv])
    np.testing.assert_allclose(kept, np.broadcast_to(expected[:, None, None, None, None], kept.shape), rtol=1e-4)
    np.testing.assert_allclose(steps["backbone/pos_embed"], 1e-2 * decay ** (DEPTH + 1), rtol=1e-4)
    np.testing.assert_allclose(steps["backbone/norm/scale"], 1e-2, rtol=1e-4)
    np.testing.assert_allclose(steps["head/classifier/bias"], 1e-2, rtol=1e-4)
    assert float(schedules["learning_rate"](0)) == pytest.approx(1e-2)
