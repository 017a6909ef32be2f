"""Each loss against its published formula in float64 NumPy, by loops and without shared code."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.dino import dino_loss
from cxr_jax.objectives.ibot import ibot_loss
from cxr_jax.objectives.koleo import koleo_loss
from cxr_jax.objectives.self_distillation import collapse_metrics, prototype_use
from cxr_jax.objectives.sinkhorn import sinkhorn, softmax_centre

TEMPERATURE = 0.1


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def entropy(target, logits):
    """H(t, s) with s = softmax(logits / 0.1)."""
    return -(target * np.log(softmax(np.asarray(logits, np.float64) / TEMPERATURE))).sum(-1)


def sinkhorn_numpy(logits, temperature):
    """DINOv2: exp(logits / temperature) to a doubly normalised plan, rows then columns, three times."""
    plan = np.exp(np.asarray(logits, np.float64) / temperature).T
    prototypes, rows = plan.shape
    plan /= plan.sum()
    for _ in range(3):
        plan /= plan.sum(1, keepdims=True)
        plan /= prototypes
        plan /= plan.sum(0, keepdims=True)
        plan /= rows
    return (plan * rows).T


@pytest.mark.parametrize(("rows", "prototypes"), [(12, 7), (5, 40)])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_is_three_rounds_of_the_published_algorithm(rows, prototypes, temperature):
    logits = np.random.default_rng(0).uniform(-1, 1, (rows, prototypes)).astype(np.float32)
    ours = np.asarray(sinkhorn(jnp.asarray(logits), jnp.float32(temperature)))
    np.testing.assert_allclose(ours, sinkhorn_numpy(logits, temperature), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-5)


def test_sinkhorn_survives_the_whole_range_of_cosine_logits_at_the_lowest_temperature():
    # exp(+-1 / 0.04) spans 21 orders of magnitude; a gain of 1.5 stretches it to 32, near float32's whole range.
    rng = np.random.default_rng(1)
    logits = 1.5 * np.where(rng.random((16, 9)) < 0.5, -1.0, 1.0) + 1e-3 * rng.standard_normal((16, 9))
    ours = np.asarray(sinkhorn(jnp.asarray(logits, jnp.float32), jnp.float32(0.04)))
    assert np.isfinite(ours).all()
    # float32 logits near 1.5 / 0.04 carry an absolute error of 4e-6, which is the relative error of their exponential.
    np.testing.assert_allclose(ours, sinkhorn_numpy(logits.astype(np.float32), 0.04), rtol=1e-4, atol=1e-7)


def test_sinkhorn_spreads_a_collapsed_batch_over_prototypes():
    """All rows like prototype 0 best; the balanced assignment still gives every prototype its share."""
    logits = 0.02 * np.random.default_rng(2).standard_normal((64, 8)) + 0.5 * (np.arange(8) == 0)
    shares = np.asarray(sinkhorn(jnp.asarray(logits, jnp.float32), jnp.float32(0.05))).sum(0)
    np.testing.assert_allclose(shares, 8, rtol=0.05)  # three rounds leave the columns a few per cent off


def test_softmax_centre_subtracts_before_the_temperature():
    rng = np.random.default_rng(3)
    logits, centre = rng.standard_normal((4, 6)), rng.standard_normal(6)
    ours = softmax_centre(jnp.asarray(logits, jnp.float32), jnp.asarray(centre, jnp.float32), jnp.float32(0.5))
    np.testing.assert_allclose(ours, softmax((logits - centre) / 0.5), rtol=1e-5)


def dino_inputs(num_local, images=3, k=5, seed=0):
    rng = np.random.default_rng(seed)
    global_logits, local_logits = rng.standard_normal((images, 2, k)), rng.standard_normal((images, num_local, k))
    return global_logits, local_logits, softmax(3 * rng.standard_normal((images, 2, k)))


@pytest.mark.parametrize("num_local", [2, 8])
def test_dino_loss_is_the_mean_over_all_pairs_but_equal_global_ones(num_local):
    student_global, student_local, teacher = dino_inputs(num_local)
    local, crossed, pairs = 0.0, 0.0, 0
    for t in range(2):
        for s in range(num_local):
            local += entropy(teacher[:, t], student_local[:, s]).mean()
            pairs += 1
        crossed += entropy(teacher[:, t], student_global[:, 1 - t]).mean()
        pairs += 1
    assert pairs == 2 * num_local + 2
    inputs = (jnp.asarray(x, jnp.float32) for x in (student_global, student_local, teacher))
    ours_local, ours_crossed = dino_loss(*inputs, TEMPERATURE)
    assert float(ours_local) == pytest.approx(local / pairs, rel=1e-5)
    assert float(ours_crossed) == pytest.approx(crossed / pairs, rel=1e-5)


def test_with_eight_local_crops_local_terms_weigh_16_of_18_and_global_ones_2_of_18():
    """Uniform students: every term is ln k, so each part is its weight times ln k."""
    teacher = dino_inputs(8)[2]
    local, crossed = dino_loss(jnp.zeros((3, 2, 5)), jnp.zeros((3, 8, 5)), jnp.asarray(teacher, jnp.float32), 0.1)
    assert float(local) == pytest.approx(16 / 18 * np.log(5), rel=1e-5)
    assert float(crossed) == pytest.approx(2 / 18 * np.log(5), rel=1e-5)


def test_ibot_loss_is_the_mean_over_each_crops_hidden_patches_over_all_crops():
    rng = np.random.default_rng(4)
    hidden, k = (3, 0, 5, 0), 6
    logits, teacher = rng.standard_normal((8, k)), softmax(rng.standard_normal((8, k)))
    expected, start, weights = 0.0, 0, []
    for count in hidden:
        if count:
            expected += entropy(teacher[start : start + count], logits[start : start + count]).mean()
            weights += [1 / count] * count
        start += count
    arrays = (jnp.asarray(x, jnp.float32) for x in (logits, teacher, np.array(weights)))
    assert float(ibot_loss(*arrays, len(hidden), TEMPERATURE)) == pytest.approx(expected / len(hidden), rel=1e-5)


def koleo_numpy(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        nearest = min(others, key=lambda j: ((x[i] - x[j]) ** 2).sum())
        total -= np.log(np.sqrt(((x[i] - x[nearest] + 1e-8) ** 2).sum()) + 1e-8)
    return total / len(x)


def test_koleo_is_the_log_distance_to_the_nearest_of_the_group():
    cls = np.random.default_rng(5).standard_normal((3, 6, 4))
    loss, distance = koleo_loss(jnp.asarray(cls, jnp.float32))
    assert float(loss) == pytest.approx(np.mean([koleo_numpy(group) for group in cls]), rel=1e-5)
    assert distance.shape == (3, 6)


def test_koleo_neighbours_never_leave_their_group():
    """Two groups of the same tokens: across groups the nearest distance would be 0 and the loss 18."""
    cls = np.random.default_rng(6).standard_normal((1, 4, 8))
    loss, _ = koleo_loss(jnp.asarray(np.concatenate([cls, cls]), jnp.float32))
    assert float(loss) == pytest.approx(koleo_numpy(cls[0]), rel=1e-5)


def test_koleo_does_not_feel_the_length_of_tokens():
    cls = np.random.default_rng(7).standard_normal((1, 5, 8))
    scaled = cls * np.array([1, 10, 0.1, 3, 100])[:, None]
    one, other = (float(koleo_loss(jnp.asarray(x, jnp.float32))[0]) for x in (cls, scaled))
    assert one == pytest.approx(other, abs=1e-6)


ROWS, WIDTH, PROTOTYPES = 64, 8, 16


def metrics(cls, assigned):
    found = collapse_metrics(jnp.asarray(cls, jnp.float32), jnp.asarray(assigned, jnp.float32))
    return {name: float(value) for name, value in found.items()}


def test_collapse_metrics_of_a_collapsed_network():
    """Every image has the same CLS token and the same prototype."""
    found = metrics(np.tile(np.arange(1.0, WIDTH + 1), (ROWS, 1)), np.tile(np.eye(PROTOTYPES)[3], (ROWS, 1)))
    assert found["feature_spread"] == pytest.approx(0, abs=1e-3)  # float32 rounding of a variance of 0
    assert found["teacher_entropy"] == pytest.approx(0, abs=1e-6)
    assert found["prototype_use"] == pytest.approx(1 / PROTOTYPES)


def test_collapse_metrics_of_tokens_on_a_line_and_a_uniform_teacher():
    line = np.ones(WIDTH) + np.linspace(-0.01, 0.01, ROWS)[:, None] * np.eye(WIDTH)[0]
    found = metrics(line, np.full((ROWS, PROTOTYPES), 1 / PROTOTYPES))
    assert found["feature_rank"] == pytest.approx(1, rel=0.01)  # a short arc of the sphere is a line up to curvature
    assert found["teacher_entropy"] == pytest.approx(np.log(PROTOTYPES), rel=1e-5)


def test_collapse_metrics_of_a_healthy_network():
    """Tokens along +-each axis: all directions used, mean 0, each pair of axes its prototype."""
    cls = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)] * (ROWS // (2 * WIDTH)))
    found = metrics(5 * cls, np.eye(PROTOTYPES)[np.arange(ROWS) % PROTOTYPES])
    assert found["feature_rank"] == pytest.approx(WIDTH, rel=1e-4)
    assert found["feature_spread"] == pytest.approx(1, rel=1e-4)
    assert found["prototype_use"] == 1


def test_prototype_use_counts_of_what_could_be_used():
    few_rows = np.eye(PROTOTYPES)[[0, 0, 5, 7]]
    assert float(prototype_use(jnp.asarray(few_rows))) == pytest.approx(3 / 4)
