"""At the recipe's sizes, the gradient of a chunk's logits is computed where the rows lie: no logits travel.

Only with many prototypes does the compiler prefer to compute it where the prototypes lie, so the sizes are those of
configs/pretrain/chexfound_vitl16.py: 304 images of 10 crops, 131,072 prototypes in 8 chunks. Nothing is executed.
"""

import jax
import jax.numpy as jnp
import pytest

from cxr_jax.objectives.dino import dino_mass, dino_products
from cxr_jax.objectives.prototypes import Assignment, LogitChunks, cross_entropy, to_chunks
from cxr_jax.sharding import batch_sharding, make_layout, make_mesh, tree_shardings
from tests.mesh.tiny_training import FAST_COMPILE

IMAGES, CROPS, BOTTLENECK, PROTOTYPES, CHUNKS = 304, 10, 384, 131_072, 8


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=["fsdp8", "fsdp4_tensor2"])
def test_no_logits_travel(axes):
    mesh = make_mesh(**axes)
    layout = make_layout(mesh, "bfloat16")

    def loss(embeddings, student, teacher):
        cut = lambda head: {name: to_chunks(leaf, CHUNKS) for name, leaf in head["head"]["prototypes"].items()}
        logits = lambda head, rows: LogitChunks(rows, cut(head), "float32", layout)
        columns = jnp.zeros((CHUNKS, PROTOTYPES // CHUNKS))
        rows = layout.rows(jnp.zeros(2 * IMAGES))
        entropies = cross_entropy(
            logits(student, embeddings),
            logits(teacher, layout.rows(embeddings[:, :2].reshape(2 * IMAGES, BOTTLENECK))),
            Assignment(columns, rows, rows),
            dino_products,
            jnp.asarray(dino_mass(CROPS - 2), jnp.float32),
            student_temperature=0.1,
            teacher_temperature=jnp.float32(0.05),
        ).entropies
        return entropies.sum()

    rows = jax.ShapeDtypeStruct((IMAGES, CROPS, BOTTLENECK), "bfloat16", sharding=batch_sharding(mesh))
    shapes = {"v": (BOTTLENECK, PROTOTYPES), "g": (PROTOTYPES,)}
    head = {"head": {"prototypes": {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}}}
    head = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        head,
        tree_shardings(head, mesh),
    )
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(rows, head, head).compile(FAST_COMPILE).as_text()
    assert "all-reduce" in program
    assert "all-to-all" not in program and "collective-permute" not in program
