"""Tiny models with random weights for the export tests: arguments of `ViT` and a backbone to go with them."""

import jax
import numpy as np

from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.folder import Written, read_weights, write_folder
from cxr_jax.export.layouts import Target
from cxr_jax.export.mapping import unflatten
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
        "positions": "learned",
        "pos_resize": "offset",
        "norm_epsilon": 1e-6,
    }
    return {**model, **changes}


# Sizes of heads for a tiny model, by part.
PROJECTION = {"width": 24, "hidden": 16, "bottleneck": 8, "num_prototypes": 20}
DECODER = {"encoder_width": 24, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "norm_epsilon": 1e-6}
GLORI = {
    "name": "glori",
    "width": 24,
    "num_classes": 5,
    "blocks": 2,
    "decoder_width": 16,
    "num_heads": 8,
    "ffn_width": 12,
    "dropout_rate": 0.1,
    "concat_cls": True,
}
LINEAR = {"name": "linear", "width": 24, "num_classes": 5, "blocks": 3, "mean_patch": True}


def random_parts(options: dict, seed: int = 0) -> dict:
    """Every parameter of these modules random and of a size that matters, so that a swapped or forgotten one shows."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in parameter_shapes(options).items():
        values = 0.1 * rng.standard_normal(shape)
        if path.endswith("/scale") or "layer_scale" in path:
            values = values + 1.0
        elif "token" in path or "pos_embed" in path:
            values = values * 5
        flat[path] = values.astype(np.float32)
    return unflatten(flat)


def random_backbone(model: dict, seed: int = 0) -> dict:
    """A backbone alone, see `random_parts`."""
    return random_parts({"backbone": model}, seed)["backbone"]


def grid_of(head: dict, count: int = 1) -> dict:
    """A head repeated along a leading axis of learning rates, each member another."""
    return jax.tree.map(lambda leaf: np.stack([leaf * (i + 1) for i in range(count)]), head)


def grey_target(format: str, size: int = 32, channels: int = 3, chunks: int = 0) -> Target:
    return Target(format, size, (0.5,) * channels, (0.25,) * channels, chunks)


def write(folder, model, network, target: Target, options: dict | None = None, facts: dict | None = None) -> Written:
    """One network, or `{"teacher": ..., "student": ...}`, in a layout."""
    networks = network if "teacher" in network else {"teacher": network}
    return write_folder(folder, Contents(networks, model, Geometry("pad", 32), options or {}, facts or {}), target)


def write_hf(folder, model, backbone, image_size=32, num_channels=3, fit="pad") -> Written:
    """A backbone alone as a Hugging Face folder."""
    contents = Contents({"teacher": {"backbone": backbone}}, model, Geometry(fit, image_size))
    return write_folder(folder, contents, grey_target("hf", image_size, num_channels))


def read_hf(folder) -> tuple[dict, dict]:
    """The backbone of a folder and the arguments of its `ViT`."""
    contents = read_weights(folder).contents
    return contents.networks["teacher"]["backbone"], contents.model


def assert_same(a: dict, b: dict) -> None:
    """Bit-exact equality of two parameter trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, (x, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path[0]))
