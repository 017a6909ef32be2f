"""Memory of the losses over prototypes, read from the compiled program; nothing is allocated or run.

With 131,072 prototypes an array of all rows times all prototypes is what fills a device. Figures are printed
(`pytest -s tests/efficiency`).
"""

from math import prod

import jax
import jax.numpy as jnp
import pytest

from tests.objectives.given_embeddings import dino, ibot

EMBEDDING, IMAGES, LOCAL = 16, 16, 8
TEMPERATURES = (0.1, 0.05)


def dino_step(num_chunks):
    """DINO of 16 images with 2 + 8 crops: 160 student rows and 32 teacher rows."""

    def loss(student, prototypes, teacher, teacher_prototypes):
        arrays = (student, prototypes, teacher, teacher_prototypes)
        return dino(*arrays, temperatures=TEMPERATURES, num_chunks=num_chunks)

    return loss, (IMAGES, 2 + LOCAL), (IMAGES, 2)


def ibot_step(num_chunks):
    """iBOT of 256 hidden patches."""
    rows = 256

    def loss(student, prototypes, teacher, teacher_prototypes):
        arrays, weights = (student, prototypes, teacher, teacher_prototypes), jnp.full(rows, 1 / rows)
        return ibot(*arrays, weights=weights, num_crops=1, temperatures=TEMPERATURES, num_chunks=num_chunks)

    return loss, (rows,), (rows,)


def temporary_bytes(function, *shapes) -> int:
    """What the compiled function needs beside its arguments and results."""
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def floats(*dims):
    return jax.ShapeDtypeStruct(dims, "float32")


def test_the_measure_on_a_known_program():
    """`sum(sin(x W)^T sin(x W))` holds sin(x W) and its product: a known pair of arrays."""

    def product(x, w):
        y = jnp.sin(x @ w)
        return jnp.sin(y.T @ y).sum()

    rows, k = 512, 1024
    measured = temporary_bytes(product, floats(rows, 8), floats(8, k))
    assert 4 * (rows * k + k * k) <= measured <= 1.1 * 4 * (rows * k + k * k)


def step_bytes(step, num_chunks, prototypes):
    """Temporary bytes of value and gradient of a loss, over this many prototypes."""
    loss, student, teacher = step(num_chunks)
    last = {"v": floats(EMBEDDING, prototypes), "g": floats(prototypes)}
    shapes = (floats(*student, EMBEDDING), last, floats(*teacher, EMBEDDING), last)
    return temporary_bytes(jax.value_and_grad(loss, argnums=(0, 1)), *shapes)


@pytest.mark.parametrize("step", [dino_step, ibot_step])
def test_chunks_divide_the_memory_of_the_losses(step):
    """Over 131,072 prototypes: in 8 chunks not even one array of all student rows times all prototypes fits."""
    prototypes = 131_072
    measured = {chunks: step_bytes(step, chunks, prototypes) for chunks in (1, 8, 64)}
    array = 4 * prototypes * prod(step(1)[1])
    mebibytes = {chunks: f"{size / 2**20:.1f}" for chunks, size in measured.items()}
    print(f"\n{step.__name__}: MiB by number of chunks {mebibytes}; student logits alone {array / 2**20:.1f}")
    assert measured[1] > 3 * array
    assert measured[8] < array and measured[8] < measured[1] / 6
    # What remains are copies of the prototypes in chunks and their gradients.
    assert measured[64] < 4 * 4 * prototypes * (EMBEDDING + 1)
