"""Gram anchoring against its equation in float64 NumPy, and what it must not feel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.gram import gram_loss

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((3, 9, 5)), RNG.standard_normal((3, 9, 7))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cosine(x, y):
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def gram_numpy(student, teacher, negatives="keep"):
    """Pair by pair: the mean of the squared differences of cosines."""
    total, count = 0.0, 0
    for s, t in zip(student, teacher, strict=True):
        for i in range(len(s)):
            for j in range(len(s)):
                ours, theirs = cosine(s[i], s[j]), cosine(t[i], t[j])
                if negatives == "remove":
                    ours, theirs = max(ours, 0.0), max(theirs, 0.0)
                elif negatives == "remove_teacher" and theirs < 0:
                    ours, theirs = max(ours, 0.0), 0.0
                total += (ours - theirs) ** 2
                count += 1
    return total / count


@pytest.mark.parametrize("negatives", ["keep", "remove", "remove_teacher"])
def test_gram_is_the_mean_squared_difference_of_cosines(negatives):
    """Student and teacher of different widths; the three ways with negatives give three values."""
    ours = float(gram_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER), negatives=negatives))
    assert ours == pytest.approx(gram_numpy(STUDENT, TEACHER, negatives), rel=1e-12)
    others = {name: gram_numpy(STUDENT, TEACHER, name) for name in ("keep", "remove", "remove_teacher")}
    assert len({round(value, 6) for value in others.values()}) == 3


def test_gram_is_the_frobenius_norm_of_the_paper_over_the_pairs():
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    grams = [unit(x) @ unit(x).transpose(0, 2, 1) for x in (STUDENT, TEACHER)]
    norms = [np.linalg.norm(a - b, "fro") ** 2 for a, b in zip(*grams, strict=True)]
    assert float(gram_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER))) == pytest.approx(np.mean(norms) / 9**2)


def test_images_do_not_see_each_other_but_a_reshaped_group_does():
    """A group of two images as one leading index compares patches across its images too."""
    student, teacher = (x[:, :, :5][:2] for x in (STUDENT, TEACHER))
    apart = [
        float(gram_loss(jnp.asarray(s[None]), jnp.asarray(t[None]))) for s, t in zip(student, teacher, strict=True)
    ]
    assert float(gram_loss(jnp.asarray(student), jnp.asarray(teacher))) == pytest.approx(np.mean(apart))
    grouped = [x.reshape(1, -1, 5) for x in (student, teacher)]
    assert float(gram_loss(*map(jnp.asarray, grouped))) == pytest.approx(gram_numpy(*grouped))
    assert gram_numpy(*grouped) != pytest.approx(np.mean(apart), rel=0.01)


def test_rotation_and_length_of_patches_are_free():
    rotation = np.linalg.qr(RNG.standard_normal((7, 7)))[0]
    turned = TEACHER @ rotation * RNG.uniform(0.1, 10, (3, 9, 1))
    assert float(gram_loss(jnp.asarray(turned), jnp.asarray(TEACHER))) == pytest.approx(0, abs=1e-25)


def test_no_gradient_goes_to_the_teacher():
    ours, theirs = jax.jit(jax.grad(gram_loss, argnums=(0, 1)))(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    assert np.abs(ours).max() > 0 and not np.asarray(theirs).any()


@pytest.mark.parametrize("negatives", ["keep", "remove", "remove_teacher"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_finite_at_zero_and_the_dtype_is_kept(dtype, negatives):
    """All tokens zero, and one zero among others, in the student and in the teacher."""
    run = jax.jit(jax.value_and_grad(lambda s, t: gram_loss(s, t, negatives=negatives)))
    one = jnp.ones((2, 4, 3), dtype).at[0, 0].set(0)
    for student, teacher in ((jnp.zeros_like(one), one), (one, one[:, ::-1])):
        loss, gradient = run(student, teacher)
        assert loss.dtype == dtype and np.isfinite(gradient).all()


def test_an_unknown_treatment_of_negatives_is_refused_by_name():
    with pytest.raises(ValueError, match="keep, remove, remove_teacher"):
        gram_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER), negatives="clip")
