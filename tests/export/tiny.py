"""Tiny models with random weights for the export tests: arguments of `ViT` and a backbone to go with them."""

import jax
import numpy as np

from cxr_jax.export.names import unflatten
from cxr_jax.export.ours import parameter_shapes

VARIANTS = {
    "swiglu_registers": {"ffn": "swiglu", "num_registers": 4},
    "mlp_registers": {"ffn": "mlp", "num_registers": 2},
    "swiglu_plain": {"ffn": "swiglu", "num_registers": 0},
    "mlp_plain_no_layer_scale": {"ffn": "mlp", "num_registers": 0, "layer_scale": None},
}


def tiny_model(**changes) -> dict:
    """Arguments of a ViT of width 24, two heads, three layers, on 32 px in patches of 8."""
    model = {
        "image_size": 32,
        "patch_size": 8,
        "width": 24,
        "depth": 3,
        "num_heads": 2,
        "ffn": "swiglu",
        "num_registers": 4,
        "layer_scale": 1e-5,
        "pos_resize": "offset",
    }
    return {**model, **changes}


def random_backbone(model: dict, seed: int = 0) -> dict:
    """Every parameter random and of a size that matters, so that a swapped or forgotten one shows."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in parameter_shapes(model).items():
        values = 0.1 * rng.standard_normal(shape)
        if path.endswith("/scale") or "layer_scale" in path:
            values = values + 1.0
        elif "token" in path or "pos_embed" in path:
            values = values * 5
        flat[path.removeprefix("backbone/")] = values.astype(np.float32)
    return unflatten(flat)


def assert_same(a: dict, b: dict) -> None:
    """Bit-exact equality of two parameter trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, (x, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path[0]))
