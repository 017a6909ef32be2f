"""A grid of 13 heads on one backbone pass: what it costs by counted FLOPs, at the full size of ViT-L and GLoRI.

Shapes are traced, never allocated. Figures are printed (`pytest -s tests/efficiency/test_head_grid.py`). The count of a
gradient includes that of the features, which nobody reads and the compiler leaves out: a program is cheaper than this.
"""

from functools import cache

import jax
import numpy as np
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.variants import variant
from cxr_jax.objectives.supervised import Supervised
from cxr_jax.planning.flops import flops, trace

IMAGES, CLASSES, GRID = 4, 40, 13
HEADS = {
    "glori": {"blocks": 4},
    "glori_journal": {"blocks": 4, "adaptive_temperature": True, "pyramid": (8, 4, 2)},
    "linear": {"blocks": 4},
}


def shape(*dims, dtype="float32"):
    return jax.ShapeDtypeStruct(dims, dtype)


@cache
def costs(name: str, size: int) -> dict[str, int]:
    """One training step's loss and gradient: of the whole grid, of a grid of one, and of the backbone alone."""
    model = variant("vit_l16") | {"image_size": size}
    head = HEADS[name] | {"width": model["width"], "num_classes": CLASSES}
    crop = CropRecipe(size=size, scale=(0.75, 1.0), jitter_prob=0.0)
    found = {}
    key, step = jax.eval_shape(lambda: (jax.random.key(0), 0))
    batch = {"image": shape(IMAGES, size, size, dtype="uint8"), "size": shape(IMAGES, 2, dtype="int32")}
    batch["labels"] = shape(IMAGES, CLASSES, dtype="int8")
    for count in (1, GRID):
        rates = tuple(np.geomspace(1e-5, 0.1, count))
        objective = Supervised(model, name.split("_")[0], head, rates, crop)
        params = jax.eval_shape(objective.init, key)
        targets = jax.eval_shape(objective.init_targets, params)
        loss = jax.value_and_grad(objective.loss, has_aux=True)
        found[f"{count} heads"] = flops(trace(loss, params, targets, batch, key, step))
    images = shape(IMAGES, size, size)
    features = lambda targets, images: objective.features({}, targets, images, blocks=4)
    found["backbone"] = flops(trace(features, targets, images))
    return found


@pytest.mark.parametrize(("name", "size"), [("glori", 224), ("glori", 512), ("glori_journal", 512), ("linear", 224)])
def test_thirteen_heads_share_one_pass_of_the_backbone(name, size):
    """At most 1.15 x (backbone + 13 heads), and at most twice one head, with ViT-L/16."""
    found = costs(name, size)
    one = found["1 heads"] - found["backbone"]  # a head and the crops
    sum_of_parts = found["backbone"] + GRID * one
    grid, against_one = found["13 heads"] / sum_of_parts, found["13 heads"] / found["1 heads"]
    per_image = {part: round(count / IMAGES / 1e9, 1) for part, count in found.items()}
    print(f"\n{name}, {size} px: GFLOP per image {per_image}; {grid:.3f} of the parts, {against_one:.2f} x one head")
    assert found["backbone"] > 0.5 * found["1 heads"]
    assert grid <= 1.15
    assert against_one <= 2


def test_a_pass_for_every_head_would_be_seen():
    found = costs("glori", 224)
    apart = GRID * found["1 heads"]
    assert apart / (found["backbone"] + GRID * (found["1 heads"] - found["backbone"])) > 1.15
