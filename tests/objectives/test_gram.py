"""Gram anchoring against its equation in float64 NumPy, its resize against torch, and what it must not feel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.gram import gram_loss, resize_patches

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


@pytest.mark.parametrize("rule", ["size", "offset", "antialias"])
@pytest.mark.parametrize(("grid_in", "grid_out"), [(8, 4), (7, 4), (4, 6)])
def test_resized_patches_are_torchs(rule, grid_in, grid_out):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
    patches = RNG.standard_normal((2, grid_in**2, 3))
    grid = torch.tensor(patches).reshape(2, grid_in, grid_in, 3).permute(0, 3, 1, 2)
    if rule == "offset":
        factor = (grid_out + 0.1) / grid_in
        theirs = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    else:
        theirs = torch.nn.functional.interpolate(
            grid, size=(grid_out, grid_out), mode="bicubic", align_corners=False, antialias=rule == "antialias"
        )
    ours = resize_patches(jnp.asarray(patches), grid_out, rule)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(2, -1, 3), atol=1e-12)


def test_a_teacher_on_the_same_grid_is_left_as_it_is():
    np.testing.assert_array_equal(resize_patches(jnp.asarray(STUDENT), 3), STUDENT)


def test_what_is_not_possible_is_refused_by_name():
    with pytest.raises(ValueError, match="keep, remove, remove_teacher"):
        gram_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER), negatives="clip")
    with pytest.raises(ValueError, match="offset, size, antialias"):
        resize_patches(jnp.asarray(STUDENT), 2, "bilinear")
    with pytest.raises(ValueError, match="10 patch tokens are no square grid"):
        resize_patches(jnp.zeros((1, 10, 3)), 2)
