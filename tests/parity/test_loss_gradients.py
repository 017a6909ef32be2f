"""Each loss term by itself: float32 value (1e-5) and gradients (1e-4) against PyTorch's autograd in float64.

The references are written from the papers' equations, with loops over crops and pairs. DINO and iBOT start from the
embeddings and the prototypes, so that the gradient of the weight-normalised last layer is compared too, whole and in
chunks of prototypes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.gram import gram_loss
from cxr_jax.objectives.koleo import koleo_of_crops
from cxr_jax.objectives.variance_covariance import variance_covariance_loss
from tests.objectives.given_embeddings import dino, ibot

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

IMAGES, LOCAL, GROUP, WIDTH, PROTOTYPES = 6, 4, 3, 8, 24
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
HIDDEN = (3, 0, 5, 1, 0, 2)  # hidden patches of each global crop
FEATURES = 5


# --- the code under test ---------------------------------------------------------------------------------------------


TEMPERATURES = {"temperatures": (STUDENT_TEMPERATURE, TEACHER_TEMPERATURE)}


def our_dino(*arrays, num_chunks=1):
    """Embeddings `[b, 2 + l, e]` of the student, global crops first, and `[b, 2, e]` of the teacher."""
    return dino(*arrays, **TEMPERATURES, num_chunks=num_chunks)


def our_ibot(*arrays, num_chunks=1):
    """Embeddings `[m, e]` of the hidden patches of all crops."""
    weights = jnp.asarray(np.concatenate([np.full(n, 1 / n) for n in HIDDEN if n]), arrays[0].dtype)
    return ibot(*arrays, weights=weights, num_crops=len(HIDDEN), **TEMPERATURES, num_chunks=num_chunks)


def our_koleo(cls):
    """CLS tokens `[b, 2, d]`, neighbours within groups of `GROUP` images, summed over the two crop indices."""
    return koleo_of_crops(cls, IMAGES // GROUP)[0]


def our_gram(student, teacher):
    return gram_loss(student, teacher)


def our_variance_covariance(features):
    variance, covariance = variance_covariance_loss(features)
    return 25 * variance + covariance


# --- the equations ---------------------------------------------------------------------------------------------------


def torch_logits(embeddings, prototypes):
    directions = prototypes["v"] / prototypes["v"].pow(2).sum(0).sqrt()
    return (embeddings @ directions) * prototypes["g"]


def torch_assign(scores):
    """Sinkhorn-Knopp: a plan whose columns (prototypes), then rows, are normalised three times."""
    plan = torch.exp(scores / TEACHER_TEMPERATURE)
    for _ in range(3):
        plan = plan / plan.sum(0, keepdim=True) / plan.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / plan.shape[0]
    return plan / plan.sum(1, keepdim=True)


def torch_entropy(target, scores):
    return -(target * torch.log(torch.softmax(scores / STUDENT_TEMPERATURE, -1))).sum(-1)


def torch_dino(student, prototypes, teacher, teacher_prototypes):
    with torch.no_grad():
        targets = torch_assign(torch_logits(teacher, teacher_prototypes).flatten(0, 1)).reshape(IMAGES, 2, -1)
    total, pairs = 0.0, 0
    for t in range(2):
        for s in range(2 + LOCAL):
            if s != t:
                total = total + torch_entropy(targets[:, t], torch_logits(student[:, s], prototypes)).mean()
                pairs += 1
    return total / pairs


def torch_ibot(student, prototypes, teacher, teacher_prototypes):
    with torch.no_grad():
        targets = torch_assign(torch_logits(teacher, teacher_prototypes))
    total, start = 0.0, 0
    for count in HIDDEN:
        rows = slice(start, start + count)
        if count:
            total = total + torch_entropy(targets[rows], torch_logits(student[rows], prototypes)).mean()
        start += count
    return total / len(HIDDEN)


def torch_koleo(cls):
    total = 0.0
    for crop in range(2):
        per_group = []
        for start in range(0, IMAGES, GROUP):
            x = cls[start : start + GROUP, crop]
            x = x / x.norm(dim=1, keepdim=True)
            nearest = []
            for i in range(GROUP):
                distances = [(x[i] - x[j] + 1e-8).norm() for j in range(GROUP) if j != i]
                nearest.append(torch.log(torch.stack(distances).min() + 1e-8))
            per_group.append(-torch.stack(nearest).mean())
        total = total + torch.stack(per_group).mean()
    return total


def torch_gram(student, teacher):
    per_image = []
    for s, t in zip(student, teacher.detach(), strict=True):
        s, t = (x / x.norm(dim=1, keepdim=True) for x in (s, t))
        per_image.append(torch.linalg.matrix_norm(s @ s.T - t @ t.T, "fro") ** 2 / len(s) ** 2)
    return torch.stack(per_image).mean()


def torch_variance_covariance(features):
    total = 0.0
    for x in features:
        variance = torch.relu(1 - torch.sqrt(x.var(0) + 1e-4)).mean()
        covariance = torch.cov(x.T)
        off_diagonal = covariance - torch.diag(torch.diag(covariance))
        total = total + 25 * variance + off_diagonal.pow(2).sum() / x.shape[1]
    return total / len(features)


# --- inputs and comparison -------------------------------------------------------------------------------------------


def inputs(term, rng):
    """Random inputs of a term; those after the first `trained` ones are the teacher's."""
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)

    def unit(*shape):
        x = draw(*shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    prototypes = lambda: {"v": draw(WIDTH, PROTOTYPES), "g": 1 + 0.2 * draw(PROTOTYPES)}
    if term.startswith("dino"):
        return (unit(IMAGES, 2 + LOCAL, WIDTH), prototypes(), unit(IMAGES, 2, WIDTH), prototypes()), 2
    if term.startswith("ibot"):
        return (unit(sum(HIDDEN), WIDTH), prototypes(), unit(sum(HIDDEN), WIDTH), prototypes()), 2
    if term == "koleo":
        return (draw(IMAGES, 2, WIDTH),), 1
    if term == "gram":
        return (draw(IMAGES, 9, WIDTH), draw(IMAGES, 9, WIDTH)), 1
    return (draw(3, 2 * IMAGES, FEATURES) * np.linspace(0.2, 1.4, FEATURES, dtype=np.float32),), 1


TERMS = {
    "dino": (our_dino, torch_dino),
    "dino in chunks": (partial(our_dino, num_chunks=4), torch_dino),
    "ibot": (our_ibot, torch_ibot),
    "ibot in chunks": (partial(our_ibot, num_chunks=4), torch_ibot),
    "koleo": (our_koleo, torch_koleo),
    "gram": (our_gram, torch_gram),
    "variance_covariance": (our_variance_covariance, torch_variance_covariance),
}


@pytest.mark.parametrize("term", TERMS)
def test_value_and_gradients_are_pytorchs(term):
    ours, theirs = TERMS[term]
    arrays, trained = inputs(term, np.random.default_rng(0))
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(trained))))(*arrays)
    tensors = jax.tree.map(lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True), arrays)
    expected = theirs(*tensors)
    expected.backward()
    assert value.dtype == np.float32
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    for ours_leaf, tensor in zip(jax.tree.leaves(gradients), jax.tree.leaves(tensors[:trained]), strict=True):
        wanted = tensor.grad.numpy()
        assert np.abs(wanted).max() > 1e-4
        assert np.abs(ours_leaf - wanted).max() / np.abs(wanted).max() < 1e-4
