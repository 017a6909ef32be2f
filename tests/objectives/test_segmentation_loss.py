"""The grid of segmentation heads: the published loss, silence of images without a mask, every member as if alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.vit import Features
from cxr_jax.objectives.segmentation import Segmentation

IMAGES, WIDTH, BLOCKS, GRID, PATCH = 4, 6, 2, 2, 4
SIDE = GRID * PATCH
RATES = (1e-3, 1e-2, 1e-1)
MODEL = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "depth": 2, "num_heads": 1, "num_registers": 1}
CROP = CropRecipe(size=SIDE, scale=(0.5, 1.0), jitter_prob=0.0)
HEAD = {"width": WIDTH, "num_classes": 1, "patch_size": PATCH, "blocks": BLOCKS}
KEY, STEP = jax.random.key(1), jnp.asarray(0)
HAS_MASK = jnp.array([True, False, True, True])


class OnFeatures(Segmentation):
    """The objective on features and cropped masks that the batch brings."""

    def _crops(self, batch, key, layout=None):
        return batch["image"]

    def _masks(self, batch, key, layout=None):
        return batch["mask"]

    def features(self, params, targets, images, **_):
        return Features(**targets)


def make(rates=RATES, kind=OnFeatures, **changes):
    options = {"model": MODEL, "head_name": "linear", "head": HEAD, "learning_rates": rates, "crop": CROP} | changes
    return kind(**options, bce_weight=0.7, dice_weight=1.3)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


FEATURES = {
    "cls": normal(BLOCKS, IMAGES, WIDTH),
    "registers": normal(BLOCKS, IMAGES, 1, WIDTH),
    "patches": normal(BLOCKS, IMAGES, GRID**2, WIDTH),
}
MASKS = normal(IMAGES, SIDE, SIDE, seed=2) > 0.3
MASKS = MASKS.at[2].set(False)  # a mask on which there is nothing


def batch(has_mask=HAS_MASK, masks=MASKS):
    return {"image": jnp.zeros((IMAGES, SIDE, SIDE)), "mask": masks, "has_mask": has_mask}


@pytest.fixture(scope="module")
def trained():
    objective = make()
    params = objective.init(jax.random.key(0))
    draw = np.random.default_rng(3).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.5 * draw(x.shape), x.dtype), params)
    return objective, params, jax.jit(jax.value_and_grad(objective.loss, has_aux=True))


def reference(logits, masks, rows):
    """The module's equation in float64."""
    z, t = np.asarray(logits, np.float64), np.asarray(masks, np.float64)
    p = 1 / (1 + np.exp(-z))
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean((1, 2))
    soft = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    hard = (2 * ((z > 0) * t).sum((1, 2)) + 1) / ((z > 0).sum((1, 2)) + t.sum((1, 2)) + 1)
    rows = np.asarray(rows)
    return (0.7 * entropy + 1.3 * (1 - soft))[rows].mean(), hard[rows].mean()


def test_the_loss_is_the_published_one_summed_over_the_grid(trained):
    objective, params, gradient = trained
    (loss, aux), _ = gradient(params, FEATURES, batch(), KEY, STEP)
    logits = jax.jit(objective.pixel_logits)(params, Features(**FEATURES))
    assert logits.shape == (len(RATES), IMAGES, SIDE, SIDE)
    expected = [reference(head, MASKS, HAS_MASK) for head in logits]
    assert float(loss) == pytest.approx(sum(value for value, _ in expected), rel=1e-5)
    for rate, (value, dice) in zip(RATES, expected, strict=True):
        assert float(aux.metrics[f"segmentation_loss_lr_{rate:g}"]) == pytest.approx(value, rel=1e-5)
        assert float(aux.metrics[f"dice_lr_{rate:g}"]) == pytest.approx(dice, rel=1e-5)
    assert float(aux.metrics["dice_best"]) == pytest.approx(max(dice for _, dice in expected), rel=1e-5)


def test_an_image_without_a_mask_is_silent_and_is_not_an_empty_mask(trained):
    """Whatever features and canvas of the second image, nothing changes; said to be empty, it does."""
    _, params, gradient = trained
    (loss, _), grads = gradient(params, FEATURES, batch(), KEY, STEP)
    other = FEATURES | {"patches": FEATURES["patches"].at[:, 1].set(50.0)}
    (same, _), same_grads = gradient(params, other, batch(masks=MASKS.at[1].set(False)), KEY, STEP)
    assert float(loss) == pytest.approx(float(same), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    (empty, _), _ = gradient(params, FEATURES, batch(jnp.ones(IMAGES, bool), MASKS.at[1].set(False)), KEY, STEP)
    assert abs(float(empty) - float(loss)) > 1e-3


def test_a_batch_without_masks_moves_nothing(trained):
    _, params, gradient = trained
    (loss, aux), grads = gradient(params, FEATURES, batch(jnp.zeros(IMAGES, bool)), KEY, STEP)
    assert all(np.isfinite(value) for value in aux.metrics.values()) and np.isfinite(loss)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_every_member_trains_as_if_alone(trained):
    _, params, gradient = trained
    _, grads = gradient(params, FEATURES, batch(), KEY, STEP)
    alone = jax.jit(jax.value_and_grad(make(RATES[:1]).loss, has_aux=True))
    for i in range(len(RATES)):
        member = jax.tree.map(lambda x, i=i: x[i : i + 1], params)
        _, own = alone(member, FEATURES, batch(), KEY, STEP)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-6)


def test_impossible_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="legal are linear, upernet"):
        make(head_name="glori")
    with pytest.raises(ValueError, match="learning_rates is empty"):
        make(rates=())
    with pytest.raises(ValueError, match="bce_weight=0"):
        Segmentation(MODEL, "linear", HEAD, RATES, CROP, bce_weight=0.0, dice_weight=0.0)
