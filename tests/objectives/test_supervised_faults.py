"""Faults of CheXFound's released evaluation code, each as a check that our code passes and the fault does not.

Dropout left on at evaluation; the label mask right only for the first of the heads; a retraining stage that goes on
from the first one's head. (The fourth, a guard that gives few-shot runs the whole validation split, is one of the
protocols'.)
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.vit import Features
from cxr_jax.objectives.label_losses import masked_bce
from cxr_jax.objectives.supervised import Supervised

RATES = tuple(np.geomspace(1e-5, 0.1, 13))
IMAGES, CLASSES, WIDTH = 4, 3, 8
LABELS = np.array([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [1, 1, -1]], np.int8)


@pytest.fixture(scope="module")
def trained():
    """A grid of GLoRI heads that drop a third of everything in training, and features."""
    objective = Supervised(
        model={"image_size": 16, "patch_size": 8, "width": WIDTH, "depth": 2, "num_heads": 1},
        head_name="glori",
        head={
            "width": WIDTH,
            "num_classes": CLASSES,
            "blocks": 2,
            "decoder_width": 8,
            "num_heads": 2,
            "ffn_width": 8,
            "dropout_rate": 0.3,
        },
        learning_rates=RATES,
        crop=CropRecipe(size=16, scale=(1.0, 1.0)),
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    tokens = ((2, IMAGES, WIDTH), (2, IMAGES, 1, WIDTH), (2, IMAGES, 4, WIDTH))
    features = Features(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in tokens))
    return objective, params, features


# --- dropout at evaluation -------------------------------------------------------------------------------------------


def twice_the_same(score) -> bool:
    """An evaluation of the same images, run twice, gives the same numbers to the bit."""
    return np.array_equal(score(0), score(1))


def test_an_evaluation_has_no_dropout(trained):
    objective, params, features = trained
    logits = jax.jit(objective.logits)
    assert twice_the_same(lambda run: logits(params, features))
    # The fault: heads that were never switched to evaluation draw anew at every pass.
    assert not twice_the_same(lambda run: logits(params, features, jax.random.key(run)))


# --- the mask of unknown labels --------------------------------------------------------------------------------------


def silent_for_every_head(loss) -> list[bool]:
    """Head by head, whether its logit of an unknown label leaves its loss without a gradient."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(len(RATES), IMAGES, CLASSES)))
    gradient = np.asarray(jax.grad(lambda x: sum(loss(x, LABELS)))(logits))
    assert gradient[:, LABELS >= 0].all()
    return [not head[LABELS < 0].any() for head in gradient]


def mask_made_inside_the_loop(logits, labels):
    """The fault: the mask is taken from labels whose negatives the loop over heads has just overwritten with 0."""
    losses, labels = [], np.array(labels)
    for head in logits:
        mask = labels >= 0
        labels = np.where(mask, labels, 0)
        entropy = jnp.where(labels == 1, jax.nn.softplus(-head), jax.nn.softplus(head))
        losses.append(jnp.where(mask, entropy, 0).sum())
    return losses


def test_unknown_labels_are_masked_for_all_thirteen_heads(trained):
    objective, params, features = trained
    assert all(silent_for_every_head(lambda logits, labels: masked_bce(logits, jnp.asarray(labels))))
    assert silent_for_every_head(mask_made_inside_the_loop) == [True] + [False] * 12
    # The whole way: each head's loss is what it is in a grid of its own.
    total, _ = objective.head_loss(params, features, jnp.asarray(LABELS), None)
    logits = objective.logits(params, features)
    assert float(total) == pytest.approx(sum(float(x) for x in masked_bce(logits, jnp.asarray(LABELS))), rel=1e-6)
    assert float(total) != pytest.approx(sum(float(x) for x in mask_made_inside_the_loop(logits, LABELS)), rel=1e-3)


# --- the retraining stage --------------------------------------------------------------------------------------------


def starts_fresh(start, state) -> bool:
    """Whether a run that starts from a fine-tuned one has the head that it would have had without."""
    started = start(state)
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(started["head"]), jax.tree.leaves(state.params["head"]), strict=True)
    )


def test_retraining_starts_from_fresh_heads(trained, tmp_path):
    """Stage two names the run of stage one as its source, and takes the backbone alone."""
    from cxr_jax import checkpoint
    from cxr_jax.init_from import pretrained_backbone
    from cxr_jax.saving import Checkpoints
    from cxr_jax.state import TrainState

    objective, trained_params, _ = trained
    targets = jax.jit(objective.init_targets)({})
    first = TrainState(jnp.asarray(7), trained_params, targets, {}, {})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_and_wait(first, {"config": {}, "fingerprint": None, "objective": "supervised"})
    checkpoints.close()

    fresh = jax.jit(objective.init)(jax.random.key(5))
    second = TrainState(jnp.asarray(0), fresh, jax.tree.map(jnp.zeros_like, targets), {}, {})

    def ours(state):
        started = pretrained_backbone(state, run=str(tmp_path), network="teacher", item="targets").state
        jax.tree.map(np.testing.assert_array_equal, started.targets, targets)
        return started.params

    def warm(state):
        """The fault: what the first stage saved last is loaded, head and all."""
        return checkpoint.read_item(tmp_path, "params")

    assert starts_fresh(ours, second)
    assert not starts_fresh(warm, SimpleNamespace(params=fresh))
