"""Each loss against its published formula in float64 NumPy, by loops and without shared code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given_logits import given_logits, probabilities

from cxr_jax.models.layers import IN_PLACE
from cxr_jax.objectives.dino import dino_loss, dino_mass, dino_products
from cxr_jax.objectives.ibot import ibot_loss, ibot_products
from cxr_jax.objectives.koleo import koleo_loss, koleo_of_crops
from cxr_jax.objectives.monitors import second_moment, spread
from cxr_jax.objectives.prototypes import Assignment, LogitChunks, cross_entropy, from_chunks, to_chunks
from cxr_jax.objectives.sinkhorn import sinkhorn, softmax_centre

TEMPERATURE = 0.1
CHUNKS = [1, 3]


def sinkhorn_probabilities(logits, temperature, chunks=1):
    given = given_logits(np.asarray(logits, np.float32), chunks)
    return np.asarray(probabilities(given.embeddings, sinkhorn(given, jnp.float32(temperature)), temperature))


def entropies(student, teacher, products, mass, chunks):
    """Cross-entropies of student logits against given teacher probabilities `[rows, k]`."""
    log_teacher = np.log(teacher.reshape(-1, teacher.shape[-1])).astype(np.float32)
    nothing = np.zeros(teacher.shape[-1], np.float32)
    best = log_teacher.max(1)
    assignment = Assignment(to_chunks(jnp.asarray(nothing), chunks), jnp.zeros(len(best)), jnp.asarray(best))
    return cross_entropy(
        given_logits(np.asarray(student, np.float32), chunks),
        given_logits(log_teacher, chunks),
        assignment,
        products,
        jnp.asarray(mass, jnp.float32),
        student_temperature=TEMPERATURE,
        teacher_temperature=jnp.float32(1),
    )


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


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(("rows", "prototypes"), [(12, 9), (5, 42)])
@pytest.mark.parametrize("temperature", [0.02, 0.07])
def test_sinkhorn_is_three_rounds_of_the_published_algorithm(rows, prototypes, temperature, chunks):
    logits = np.random.default_rng(0).uniform(-1, 1, (rows, prototypes)).astype(np.float32)
    ours = sinkhorn_probabilities(logits, temperature, chunks)
    np.testing.assert_allclose(ours, sinkhorn_numpy(logits, temperature), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-5)


def test_sinkhorn_survives_the_whole_range_of_cosine_logits_at_the_lowest_temperature():
    # exp(+-3 / 0.02) spans 130 orders of magnitude, more than float32 has.
    rng = np.random.default_rng(1)
    logits = 3 * np.where(rng.random((16, 9)) < 0.5, -1.0, 1.0) + 1e-3 * rng.standard_normal((16, 9))
    ours = sinkhorn_probabilities(logits, 0.02)
    assert np.isfinite(ours).all()
    # float32 logits near 3 / 0.02 carry an absolute error of 2e-5, which is the relative error of their exponential.
    np.testing.assert_allclose(ours, sinkhorn_numpy(logits.astype(np.float32), 0.02), rtol=3e-4, atol=1e-7)


def test_sinkhorn_spreads_a_collapsed_batch_over_prototypes():
    """All rows like prototype 0 best; the balanced assignment still gives every prototype its share."""
    logits = 0.02 * np.random.default_rng(2).standard_normal((64, 8)) + 0.5 * (np.arange(8) == 0)
    shares = sinkhorn_probabilities(logits, 0.05).sum(0)
    np.testing.assert_allclose(shares, 8, rtol=0.05)  # three rounds leave the columns a few per cent off


@pytest.mark.parametrize("chunks", CHUNKS)
def test_softmax_centre_subtracts_before_the_temperature(chunks):
    rng = np.random.default_rng(3)
    logits, centre = rng.standard_normal((4, 6)), rng.standard_normal(6)
    given = given_logits(logits.astype(np.float32), chunks)
    assignment, means = softmax_centre(given, to_chunks(jnp.asarray(centre, jnp.float32), chunks), jnp.float32(0.5))
    ours = probabilities(given.embeddings, assignment, 0.5)
    np.testing.assert_allclose(ours, softmax((logits - centre) / 0.5), rtol=1e-5)
    np.testing.assert_allclose(from_chunks(means), logits.mean(0), rtol=1e-5)


def dino_inputs(num_local, images=3, k=6, seed=0):
    rng = np.random.default_rng(seed)
    global_logits, local_logits = rng.standard_normal((images, 2, k)), rng.standard_normal((images, num_local, k))
    return global_logits, local_logits, softmax(3 * rng.standard_normal((images, 2, k)))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("num_local", [2, 8])
def test_dino_loss_is_the_mean_over_all_pairs_but_equal_global_ones(num_local, chunks):
    student_global, student_local, teacher = dino_inputs(num_local)
    local, crossed, pairs = 0.0, 0.0, 0
    for t in range(2):
        for s in range(num_local):
            local += entropy(teacher[:, t], student_local[:, s]).mean()
            pairs += 1
        crossed += entropy(teacher[:, t], student_global[:, 1 - t]).mean()
        pairs += 1
    assert pairs == 2 * num_local + 2
    student = np.concatenate([student_global, student_local], axis=1)
    result = entropies(student, teacher, dino_products, dino_mass(num_local), chunks)
    ours_local, ours_crossed = dino_loss(result.entropies)
    assert float(ours_local) == pytest.approx(local / pairs, rel=1e-5)
    assert float(ours_crossed) == pytest.approx(crossed / pairs, rel=1e-5)


def test_with_eight_local_crops_local_terms_weigh_16_of_18_and_global_ones_2_of_18():
    """Uniform students: every term is ln k, so each part is its weight times ln k."""
    teacher = dino_inputs(8)[2]
    local, crossed = dino_loss(entropies(np.zeros((3, 10, 6)), teacher, dino_products, dino_mass(8), 1).entropies)
    assert float(local) == pytest.approx(16 / 18 * np.log(6), rel=1e-5)
    assert float(crossed) == pytest.approx(2 / 18 * np.log(6), rel=1e-5)


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
    for chunks in CHUNKS:
        result = entropies(logits, teacher, ibot_products, 1.0, chunks)
        ours = ibot_loss(result.entropies, jnp.asarray(weights, jnp.float32), len(hidden))
        assert float(ours) == pytest.approx(expected / len(hidden), rel=1e-5)


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


def test_koleo_of_crops_sums_over_the_two_crops_and_looks_in_groups_or_everywhere():
    cls = np.random.default_rng(8).standard_normal((6, 2, 4))
    for groups in (1, 3):
        loss, metrics = koleo_of_crops(jnp.asarray(cls, jnp.float32), groups)
        parts = [cls[:, c].reshape(groups, -1, 4) for c in range(2)]
        assert float(loss) == pytest.approx(sum(np.mean([koleo_numpy(g) for g in part]) for part in parts), rel=1e-5)
        assert 0 < float(metrics["koleo_distance_p5"]) <= float(metrics["koleo_distance_median"]) <= 2


def test_the_teachers_entropy_and_use_of_prototypes_are_those_of_its_rows():
    rng = np.random.default_rng(9)
    teacher = softmax(4 * rng.standard_normal((10, 6)))
    for chunks in CHUNKS:
        result = entropies(rng.standard_normal((10, 6)), teacher, ibot_products, 1.0, chunks)
        assert float(result.teacher_entropy) == pytest.approx(-(teacher * np.log(teacher)).sum(1).mean(), rel=1e-5)
        assert float(result.prototype_use) == pytest.approx(len(set(teacher.argmax(1))) / 6)
    one = np.full((10, 6), 1e-6) + np.eye(6)[2]
    result = entropies(rng.standard_normal((10, 6)), one / one.sum(1, keepdims=True), ibot_products, 1.0, 1)
    assert float(result.prototype_use) == pytest.approx(1 / 6)
    assert float(result.teacher_entropy) < 1e-3


@pytest.mark.parametrize("num_chunks", [2, 6])
def test_chunks_change_neither_losses_nor_gradients(num_chunks):
    """With trained directions and gains, through student embeddings and prototypes, float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(10)
        arrays = {
            name: jnp.asarray(rng.standard_normal(shape))
            for name, shape in {"y": (4, 5, 7), "v": (7, 12), "g": (12,), "ty": (8, 7), "tv": (7, 12)}.items()
        }

        def loss(arrays, num_chunks):
            def chunks(y, v, g):
                cut = {"v": to_chunks(v, num_chunks), "g": to_chunks(g, num_chunks)}
                return LogitChunks(y, cut, "float64", IN_PLACE)

            teacher = chunks(arrays["ty"], arrays["tv"], jnp.ones(12))
            result = cross_entropy(
                chunks(arrays["y"], arrays["v"], arrays["g"]),
                teacher,
                sinkhorn(teacher, jnp.asarray(0.3)),
                dino_products,
                jnp.asarray(dino_mass(3), float),
                student_temperature=TEMPERATURE,
                teacher_temperature=jnp.asarray(0.3),
            )
            return result.entropies.sum() + result.teacher_entropy + result.prototype_use

        def both(num_chunks):
            return jax.value_and_grad(loss)(arrays, num_chunks)

        whole, cut = both(1), both(num_chunks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), whole, cut)


def test_chunks_hold_no_array_of_all_rows_times_all_prototypes():
    """Temporary memory of loss and gradient, as the compiler reports it, against one such array."""
    rows, width, k = 512, 16, 16_384

    def loss(y, v, ty, chunks):
        def cut(y, v):
            return LogitChunks(
                y, {"v": to_chunks(v, chunks), "g": jnp.ones((chunks, k // chunks))}, "float32", IN_PLACE
            )

        teacher = cut(ty, jax.lax.stop_gradient(v))
        options = {"student_temperature": TEMPERATURE, "teacher_temperature": jnp.float32(0.07)}
        assignment = sinkhorn(teacher, options["teacher_temperature"])
        return cross_entropy(cut(y, v), teacher, assignment, ibot_products, jnp.ones(()), **options).entropies.sum()

    def temporary(chunks):
        shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, width), (width, k), (rows, width)))
        gradient = jax.jit(jax.grad(partial(loss, chunks=chunks), (0, 1)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = rows * k * 4
    assert temporary(1) > 2 * whole
    assert temporary(16) < 0.6 * whole


def test_spread_is_the_distance_of_unit_tokens_from_their_mean():
    tokens = np.random.default_rng(11).standard_normal((4, 5, 8)) + 1
    unit = (tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)).reshape(-1, 8)
    expected = np.sqrt(((unit - unit.mean(0)) ** 2).sum(1).mean())
    assert float(spread(jnp.asarray(tokens, jnp.float32))) == pytest.approx(expected, rel=1e-5)
    assert float(spread(jnp.ones((6, 4)) * jnp.arange(1, 7)[:, None])) == pytest.approx(0, abs=1e-3)


def test_second_moment():
    tokens = np.random.default_rng(12).standard_normal((9, 4)).astype(np.float32)
    np.testing.assert_allclose(second_moment(jnp.asarray(tokens)), tokens.T @ tokens / 9, rtol=1e-5, atol=1e-6)
