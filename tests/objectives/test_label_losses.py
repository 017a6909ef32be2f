"""Label losses against float64 NumPy written from the papers' equations, one label at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.label_losses import LabelLoss, label_loss
from cxr_jax.objectives.mixup import mixup

GRID, IMAGES, CLASSES = 3, 6, 4
LABELS = np.array([[1, 0, -1, 0], [-1, 1, 0, 0], [0, -1, 1, 1], [1, 1, -1, 0], [-1, -1, -1, -1], [0, 0, 0, 1]], np.int8)
COUNTS = ((30, 970), (5, 500), (400, 600), (1, 99))
LOGITS = 2 * np.random.default_rng(0).standard_normal((GRID, IMAGES, CLASSES))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(x, y, c):
    return -np.log(sigmoid(x)) if y else -np.log(1 - sigmoid(x))


def focal(x, y, c, gamma=2.0, alpha=0.25):
    """FL(p_t) = -alpha_t (1 - p_t)^gamma log p_t."""
    p_t, alpha_t = (sigmoid(x), alpha) if y else (1 - sigmoid(x), 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * np.log(p_t)


def asymmetric(x, y, c, positive=1.0, negative=4.0, clip=0.05):
    """ASL: L+ = (1-p)^g+ log p, L- = p_m^g- log(1 - p_m), p_m = max(p - m, 0), with a minus before both."""
    p = sigmoid(x)
    if y:
        return -((1 - p) ** positive) * np.log(p)
    shifted = max(p - clip, 0.0)
    return -(shifted**negative) * np.log(1 - shifted)


def ldam(x, y, c, margin=0.5, scale=3.0):
    """Delta_j = C / n_j^(1/4), C such that the largest is `margin`; taken from the logit of the true side."""
    count = COUNTS[c][0 if y else 1]
    delta = margin / count**0.25 * min(n for pair in COUNTS for n in pair) ** 0.25
    return np.log(1 + np.exp(-scale * (x - delta if y else -x - delta)))


def effective_number(beta):
    """(1 - beta^n) / (1 - beta); weights are its inverse, scaled to mean 1."""
    weights = {
        (c, y): 1 / ((1 - beta ** COUNTS[c][0 if y else 1]) / (1 - beta)) for c in range(CLASSES) for y in (0, 1)
    }
    mean = np.mean(list(weights.values()))
    return lambda c, y: weights[c, y] / mean


def summed(logits, labels, terms, weight=lambda c, y: 1.0, shift=lambda c: 0.0):
    return [
        sum(
            weight(c, y) * sum(term(head[i, c] + shift(c), y, c) for term in terms)
            for i in range(len(labels))
            for c in range(CLASSES)
            if (y := labels[i, c]) >= 0
        )
        for head in logits
    ]


BALANCED = LabelLoss(balance_beta=0.99, balance_from_step=10)
CASES = {
    "bce": (LabelLoss(), {"terms": [bce]}),
    "focal": (LabelLoss(("focal",)), {"terms": [focal]}),
    "asymmetric": (LabelLoss(("asymmetric",)), {"terms": [asymmetric]}),
    "asymmetric_added": (LabelLoss(("bce", "asymmetric")), {"terms": [bce, asymmetric]}),
    "ldam": (LabelLoss(("ldam",), ldam_scale=3.0), {"terms": [ldam]}),
    "balanced": (LabelLoss(balance_beta=0.99), {"terms": [bce], "weight": effective_number(0.99)}),
    "deferred_later": (BALANCED, {"terms": [bce], "weight": effective_number(0.99)}),
    "adjusted": (
        LabelLoss(logit_adjustment=1.5),
        {"terms": [bce], "shift": lambda c: 1.5 * np.log(COUNTS[c][0] / COUNTS[c][1])},
    ),
    "ldam_balanced": (
        LabelLoss(("ldam",), ldam_scale=3.0, balance_beta=0.99),
        {"terms": [ldam], "weight": effective_number(0.99)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sum_over_known_labels_is_the_papers(name):
    loss, reference = CASES[name]
    with jax.enable_x64(True):
        ours = label_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), loss, COUNTS, jnp.asarray(10))
    np.testing.assert_allclose(ours, summed(LOGITS, LABELS, **reference), rtol=1e-10)


def test_deferred_weights_are_one_before_their_step_and_need_to_know_it():
    ours = label_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), BALANCED, COUNTS, jnp.asarray(9))
    np.testing.assert_allclose(ours, summed(LOGITS, LABELS, [bce]), rtol=1e-5)
    with pytest.raises(ValueError, match="was not told the step"):
        label_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), BALANCED, COUNTS)


@pytest.mark.parametrize("name", CASES)
def test_unknown_labels_have_no_gradient_even_at_extreme_logits(name):
    loss, _ = CASES[name]
    logits = jnp.where(LABELS < 0, 1e30, LOGITS)
    gradient = np.asarray(
        jax.grad(lambda x: label_loss(x, jnp.asarray(LABELS), loss, COUNTS, jnp.asarray(10)).sum())(logits)
    )
    assert np.isfinite(gradient).all()
    assert not gradient[:, LABELS < 0].any() and gradient[:, LABELS >= 0].all(1).any()


@pytest.mark.parametrize("name", CASES)
def test_known_labels_at_extreme_logits_stay_finite(name):
    loss, _ = CASES[name]
    logits = jnp.where(LABELS == 1, -60.0, 60.0) * jnp.ones((2, 1, 1))
    value, gradient = jax.value_and_grad(
        lambda x: label_loss(x, jnp.asarray(LABELS), loss, COUNTS, jnp.asarray(10)).sum()
    )(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_ordinal_levels_have_the_cumulative_link_models_probabilities():
    rng = np.random.default_rng(1)
    logits = np.sort(rng.standard_normal((GRID, IMAGES, CLASSES)))[..., ::-1]
    levels = np.array([0, 4, 2, 1, 3, 4])
    labels = (np.arange(1, CLASSES + 1) <= levels[:, None]).astype(np.int8)
    labels[5, 1] = -1  # a row that does not know all is silent
    with jax.enable_x64(True):
        ours = label_loss(jnp.asarray(logits), jnp.asarray(labels), LabelLoss(("cumulative_link",)))
    reached = np.concatenate([np.ones((GRID, IMAGES, 1)), sigmoid(logits), np.zeros((GRID, IMAGES, 1))], -1)
    probability = reached[..., :-1] - reached[..., 1:]
    np.testing.assert_allclose(probability.sum(-1), 1)
    expected = [-sum(np.log(head[i, levels[i]]) for i in range(5)) for head in probability]
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_mixtures_of_labels_cost_mixtures_of_losses():
    soft = np.where(LABELS < 0, -1, 0.3 * (LABELS == 1) + 0.7 * (LABELS == 0))
    for loss in (LabelLoss(), LabelLoss(("asymmetric",))):
        both = [
            label_loss(jnp.asarray(LOGITS), jnp.asarray(np.where(LABELS < 0, -1, y)), loss)
            for y in ((LABELS == 1), (LABELS == 0))
        ]
        ours = label_loss(jnp.asarray(LOGITS), jnp.asarray(soft), loss)
        np.testing.assert_allclose(ours, 0.3 * both[0] + 0.7 * both[1], rtol=1e-5)


def test_mixup_mixes_neighbours_and_keeps_unknown_unknown():
    crops = np.random.default_rng(0).standard_normal((IMAGES, 4, 4)).astype("float32")
    images, labels = mixup(jax.random.key(3), jnp.asarray(crops), jnp.asarray(LABELS), 0.8)
    for r in range(IMAGES):
        other = r ^ 1
        share = np.sum((images[r] - crops[other]) * (crops[r] - crops[other])) / np.sum((crops[r] - crops[other]) ** 2)
        assert 0 <= share <= 1
        np.testing.assert_allclose(images[r], share * crops[r] + (1 - share) * crops[other], atol=1e-5)
        known = (LABELS[r] >= 0) & (LABELS[other] >= 0)
        wanted = np.where(known, share * LABELS[r] + (1 - share) * LABELS[other], -1)
        np.testing.assert_allclose(labels[r], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": ("hinge",)}, r"terms=\('hinge',\): legal are one or more of bce, focal"),
        ({"terms": ()}, "one or more"),
        ({"terms": ("bce", "cumulative_link")}, "stands alone"),
        ({"balance_beta": 1.0}, "balance_beta=1.0"),
        ({"asymmetric_clip": -0.1}, "asymmetric_clip=-0.1"),
        ({"focal_gamma": -1.0}, "focal_gamma=-1.0"),
        ({"ldam_scale": 0.0}, "ldam_scale=0.0"),
    ],
)
def test_impossible_losses_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(**options)
