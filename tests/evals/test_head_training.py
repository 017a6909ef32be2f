"""Heads on cached features: a grid trains as its members alone, on the rows it is given and no others."""

import inspect

import jax
import numpy as np
import pytest
import torch
from test_chosen_rows import task_of

from cxr_jax.data.augment import CropRecipe
from cxr_jax.data.records import DataError
from cxr_jax.evals import cached_heads
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.head_training import HeadTrainer, Recipe, batch_order, choose
from cxr_jax.evals.ranking import auroc
from cxr_jax.evals.subsets import Drawn
from cxr_jax.heads.kinds import HEADS as HEADS_BY_NAME
from cxr_jax.objectives.supervised import Supervised

ROWS, CLASSES, WIDTH, BLOCKS, PATCHES = 24, 2, 8, 2, 3
MODEL = {"image_size": 16, "patch_size": 8, "width": WIDTH, "depth": 2, "num_heads": 1, "num_registers": 1}
HEADS = {
    "linear": {"blocks": BLOCKS, "mean_patch": True},
    "glori": {"blocks": BLOCKS, "decoder_width": 8, "num_heads": 2, "ffn_width": 8, "dropout_rate": 0.1},
}
RECIPE = {"learning_rates": (1e-3, 1e-2, 0.1), "weight_decays": (0.0, 0.5), "steps": 6, "batch_size": 8}


def recipe(**changes):
    return Recipe(**(RECIPE | {"warmup_frac": 0.0} | changes))


def data(seed=0):
    """Features with a little of the labels in them, and labels with unknowns."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (ROWS, CLASSES)).astype(np.int8)
    shapes = {"cls": (ROWS, BLOCKS, WIDTH), "registers": (ROWS, BLOCKS, 0, WIDTH)}
    shapes["patches"] = (ROWS, BLOCKS, PATCHES, WIDTH)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["cls"][:, :, 0] += 2.0 * (labels[:, :1] == 1)
    return arrays, labels


def trainer(name, wanted, arrays, labels, sizes=None):
    head = (sizes or HEADS[name]) | {"width": WIDTH, "num_classes": CLASSES}
    rates = tuple(rate for rate, _ in wanted.grid)
    objective = Supervised(MODEL, name, head, rates, CropRecipe(size=16, scale=(1.0, 1.0)))
    return HeadTrainer(objective, wanted, arrays, labels)


@pytest.fixture(scope="module", params=["linear", "glori"])
def trained(request, compiled_once):
    arrays, labels = data()
    whole = trainer(request.param, recipe(), arrays, labels)
    return request.param, whole, whole.fit(np.arange(ROWS), seed=3), arrays, labels


def test_a_grid_gives_what_its_members_give_alone(trained):
    name, whole, params, arrays, labels = trained
    together = whole.logits(params, arrays)
    assert together.shape == (ROWS, 6, CLASSES)
    for i in (5,) if name == "glori" else (0, 5):
        rate, decay = recipe().grid[i]
        alone = trainer(name, recipe(learning_rates=(rate,), weight_decays=(decay,)), arrays, labels)
        logits = alone.logits(alone.fit(np.arange(ROWS), seed=3), arrays)
        # Sums in another order; Adam divides by the root of small squares.
        np.testing.assert_allclose(together[:, i], logits[:, 0], rtol=2e-3, atol=2e-4)
    assert np.abs(together[:, 0] - together[:, 5]).max() > 0.1


def test_training_is_adamw_on_the_mean_of_known_labels_as_pytorch_does_it():
    """A linear head by torch.optim.AdamW in float64, with the cosine and the rows of each step worked out here."""
    arrays, labels = data()
    rate, decay, steps = 1e-2, 0.5, RECIPE["steps"]
    one = trainer("linear", recipe(learning_rates=(rate,), weight_decays=(decay,)), arrays, labels)
    rows = np.arange(ROWS)
    fresh = jax.device_get(
        trainer("linear", recipe(learning_rates=(0.0,), weight_decays=(0.0,)), arrays, labels).fit(rows, 3)
    )
    kernel, bias = (
        torch.tensor(np.asarray(fresh["head"]["classifier"][name][0], np.float64), requires_grad=True)
        for name in ("kernel", "bias")
    )
    x = np.concatenate([arrays["cls"].reshape(ROWS, -1), arrays["patches"][:, -1].mean(1)], 1).astype(np.float64)
    optimiser = torch.optim.AdamW([kernel, bias], lr=rate, weight_decay=decay, eps=1e-8)
    for t, now in enumerate(batch_order(rows, steps, RECIPE["batch_size"], 3)):
        optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * t / steps))
        logits = torch.tensor(x[now]) @ kernel + bias
        known = torch.tensor(labels[now] >= 0)
        wanted = torch.tensor((labels[now] == 1).astype(np.float64))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], wanted[known], reduction="sum")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ours = one.logits(one.fit(rows, 3), arrays)[:, 0]
    np.testing.assert_allclose(ours, (torch.tensor(x) @ kernel + bias).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_rows_that_were_not_given_are_never_touched(trained):
    """Features of all other rows are NaN: whoever trains on one has no finite head."""
    name, whole, _, arrays, labels = trained
    drawn = np.arange(0, ROWS, 3)
    poisoned = {key: x.copy() for key, x in arrays.items()}
    for x in poisoned.values():
        x[np.setdiff1d(np.arange(ROWS), drawn)] = np.nan
    params = trainer(name, recipe(), poisoned, labels).fit(drawn, seed=1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(whole.fit(drawn, seed=1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))


def test_seeds_repeat_and_differ(trained):
    _, whole, params, arrays, _ = trained
    again, other = (whole.logits(whole.fit(np.arange(ROWS), seed), arrays) for seed in (3, 4))
    np.testing.assert_array_equal(again, whole.logits(params, arrays))
    assert np.abs(other - again).max() > 1e-3


def test_scoring_twice_gives_the_same_and_no_row_depends_on_its_neighbours(trained):
    """GLoRI was trained with dropout; scores have none, and the last, filled-up part of the rows is as the others."""
    _, whole, params, arrays, _ = trained
    logits = whole.logits(params, arrays)
    np.testing.assert_array_equal(logits, whole.logits(params, arrays))
    few = {name: x[-5:] for name, x in arrays.items()}
    np.testing.assert_allclose(whole.logits(params, few), logits[-5:], rtol=1e-5, atol=1e-6)


def test_every_pass_sees_every_row_once():
    rows = np.array([3, 8, 9, 11, 20])
    order = batch_order(rows, steps=7, batch_size=3, seed=0)
    assert order.shape == (7, 3)
    stream = order.ravel()
    for start in range(0, 20, 5):
        np.testing.assert_array_equal(np.sort(stream[start : start + 5]), rows)
    assert (stream[:5] != stream[5:10]).any()


def test_the_choice_is_by_auroc_then_by_cross_entropy_and_never_a_head_that_diverged():
    labels = np.array([[1], [0], [1], [0], [-1]], np.int8)
    z = np.array([2.0, -2.0, 1.0, -1.0, 9.0])
    heads = [z * [1, 1, -1, -1, 1], 0.1 * z, z, np.where(z > 1.5, np.inf, z), 30 * z + 60]
    logits = np.stack(heads, 1)[:, :, None].astype(np.float32)
    best, values = choose(logits, labels)
    assert best == 2 and values[3] == 0.0
    assert values[0] == auroc(heads[0], labels[:, 0]) < values[1] == values[2] == values[4] == 1.0
    with pytest.raises(DataError, match="selection rows have no class with both labels"):
        choose(logits[:1], labels[:1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rates": ()}, "training.learning_rates"),
        ({"weight_decays": (-1.0,)}, "training.weight_decays"),
        ({"steps": 0}, "training.steps=0"),
        ({"warmup_frac": 2.0}, "training.warmup_frac=2.0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)


@pytest.mark.parametrize("name", sorted(HEADS_BY_NAME))
def test_any_head_can_be_trained_on_cached_features(name):
    """Shapes alone: initial weights, loss, gradients, the optimiser's tables and the scan fit together."""
    arrays, labels = data()
    wanted = {"blocks": BLOCKS, **HEADS.get(name, {})}
    legal = inspect.signature(HEADS_BY_NAME[name].__init__).parameters
    wanted |= {key: size for key, size in {"decoder_width": 8, "num_heads": 2, "ffn_width": 8}.items() if key in legal}
    head = trainer(name, recipe(), arrays, labels, wanted)
    params = jax.eval_shape(lambda: head.fit(np.arange(ROWS), seed=0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["head"])} == {len(recipe().grid)}


def test_the_selection_split_never_trains_whatever_is_asked_of_it(phantom_dataset, monkeypatch, compiled_once):
    """Released few-shot code trains on the whole validation set; with one head to choose from, it must not matter."""
    task = task_of(phantom_dataset)
    counts = {split.name: len(split) for split in task.splits.values()}

    def scores(seed_of_select):
        def made_up(task, split, backbone, **_):
            rng = np.random.default_rng(seed_of_select if split.name == "val" else 7)
            arrays, _ = data()
            return {
                key: rng.standard_normal((counts[split.name], *x.shape[1:])).astype(np.float32)
                for key, x in arrays.items()
            }

        monkeypatch.setattr(cached_heads, "features_of", made_up)
        one = recipe(learning_rates=(1e-2,), weight_decays=(0.0,))
        settings = cached_heads.HeadSettings("linear", HEADS["linear"], one, (0,), ("mean_patch",), "", 1.0)
        head = cached_heads.CachedHead(task, MODEL, {}, Geometry("pad", 16), settings)
        drawn = Drawn(np.arange(0, counts["train"], 2), np.arange(counts["val"]))
        return head.fit(drawn, seed=0).test

    np.testing.assert_array_equal(scores(1), scores(2))
