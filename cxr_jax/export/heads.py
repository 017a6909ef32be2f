"""Heads under PyTorch's names: projection heads of self-distillation, GLoRI and linear classifiers of a fine-tuning.

In: flat parameters `dino_head/...`, `ibot_head/...`, `decoder/...`, `head/...`. Out: tensors under the names of DINOv2
and CheXFound, and back. What a layout cannot hold goes to `heads.safetensors` beside its weights, under the same names.

    dino_head.mlp.0.weight, ...                       DINOv2 and CheXFound
    head.decoder.layers.0.linear1.weight, ...         one fine-tuned head
    classifiers_dict.<name>.decoder.layers.0. ...     CheXFound's grid of heads, one per learning rate (`classifiers`)
    mask_token, decoder_embed.weight, ...             what MAE and timm have no place for
"""

from typing import Any

import numpy as np

from cxr_jax.export import names
from cxr_jax.export.contents import PROJECTION_HEADS
from cxr_jax.export.mapping import Dims, Entry, Flat, Table, Tensors, from_layout, to_layout
from cxr_jax.export.ours import parameter_shapes
from cxr_jax.export.rules import LayoutError

_ATTENTION = "attn/{}/{}"
_LETTERLESS = Dims(1, 1, 1, 1)  # for tables whose rules need no size


def projection_tables(parts: list[str]) -> list[Table]:
    """The names of the projection heads `parts`."""
    table = Table(names.projection_head(), _LETTERLESS)
    return [table.under(f"{part}/", f"{part}.") for part in parts]


def projection_options(tensors: Tensors) -> dict[str, dict[str, int]]:
    """Sizes of the projection heads among `tensors`, by part. The table's shapes are then checked against them."""
    found = {}
    for part in PROJECTION_HEADS:
        if not any(name.startswith(f"{part}.") for name in tensors):
            continue
        own = [f"{part}.{name}" for name in ("mlp.0.weight", "last_layer.weight_v")]
        for name in own:
            if name not in tensors:
                raise LayoutError(f"tensors of the weights file do not match the name table; 1 missing: {name}")
            if len(tensors[name].shape) != 2:
                raise LayoutError(f"{name}: found shape {tuple(tensors[name].shape)}; legal are matrices")
        (hidden, width), (prototypes, bottleneck) = (tensors[name].shape for name in own)
        found[part] = {"width": width, "hidden": hidden, "bottleneck": bottleneck, "num_prototypes": prototypes}
    return found


def head_table(options: dict[str, Any], prefix: str) -> Table:
    """The names of one fine-tuned head, `head/...` here and `<prefix>...` there; see `join_qkv`."""
    extras = [name for name in ("adaptive_temperature", "pyramid") if options.get(name)]
    if options["name"] not in ("glori", "linear") or extras:
        raise LayoutError(
            f"this run has a head that no layout has names for ({', '.join((options['name'], *extras))}); "
            "--parts=backbone writes the backbone alone"
        )
    if options["name"] == "glori":
        table = Table(names.glori(), Dims(1, options["decoder_width"], options["num_heads"], 1))
    else:
        table = Table(names.linear_classifier(), _LETTERLESS)
    return table.under("head/", prefix)


def head_shapes(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of one fine-tuned head, query, key and value joined."""
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in parameter_shapes({"head": options}).items()}
    return {path: array.shape for path, array in join_qkv(zeros).items()}


def join_qkv(flat: Flat) -> Flat:
    """Query, key and value of GLoRI's attention side by side, as `torch.nn.MultiheadAttention` keeps them."""
    flat = dict(flat)
    for leaf, axis in (("kernel", 1), ("bias", 0)):
        paths = ["head/" + _ATTENTION.format(part, leaf) for part in "qkv"]
        if paths[0] in flat:
            flat["head/" + _ATTENTION.format("qkv", leaf)] = np.stack([flat.pop(path) for path in paths], axis)
    return flat


def split_qkv(flat: Flat) -> Flat:
    """The inverse of `join_qkv`."""
    flat = dict(flat)
    for leaf, axis in (("kernel", 1), ("bias", 0)):
        whole = flat.pop("head/" + _ATTENTION.format("qkv", leaf), None)
        if whole is not None:
            parts = (np.ascontiguousarray(np.take(whole, i, axis)) for i in range(3))
            flat |= {"head/" + _ATTENTION.format(part, leaf): array for part, array in zip("qkv", parts, strict=True)}
    return flat


def member(head: dict[str, Any], index: int) -> dict[str, Any]:
    """One head of a fine-tuning's grid, whose leaves have a leading axis of learning rates."""
    return {k: member(v, index) if isinstance(v, dict) else np.asarray(v)[index] for k, v in head.items()}


def write_head(flat: Flat, options: dict[str, Any], prefix: str):
    """One fine-tuned head `head/...` as lazy tensors under `prefix`."""
    return to_layout(join_qkv(flat), head_table(options, prefix))


def read_head(tensors: Tensors, options: dict[str, Any], prefix: str) -> Flat:
    """The inverse of `write_head`; `tensors` may hold more than this head."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return split_qkv(from_layout(own, head_table(options, prefix), expected=head_shapes(options)))


def beside_tables(paths: list[str], options: dict[str, Any]) -> tuple[Table, ...]:
    """The names, in heads.safetensors, of what a layout could not hold."""
    parts = {path.split("/")[0] for path in paths}
    found = projection_tables([part for part in PROJECTION_HEADS if part in parts])
    if "backbone/mask_token" in paths:
        found.append(Table((Entry("backbone/mask_token", ("mask_token",), "m -> m"),), _LETTERLESS))
    if "decoder" in parts:
        sizes = options["decoder"]
        dims = Dims(sizes["depth"], sizes["width"], sizes["num_heads"], sizes["patch_size"])
        found.append(Table(names.mae_decoder(positions=False), dims).under(theirs="decoder."))
    if "head" in parts:
        found.append(head_table(options["head"], "head."))
    return tuple(found)
