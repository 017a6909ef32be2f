"""One name table between our parameter paths and a PyTorch layout; it drives export and import alike.

In: our parameters as a flat dict {"backbone/blocks/attn/qkv/kernel": array}, with stacked layers leading, or
a PyTorch state dict {"encoder.layer.0.attention.attention.query.weight": array}. Out: the other one. Arrays
are NumPy.

A layout is a tuple of `Entry(ours, theirs, rule)`. The rule says how one layer's array changes shape, in
letters: `"d t h e -> t: (h e) d"` takes our [d, 3, h, e] apart along `t`, one array per name in `theirs`
(query, key, value), and makes each a [h*e, d] matrix. Letters in brackets are one axis, the first letter the
slowest. A rule (`rules.py`) only reshapes and transposes, so every entry works both ways and a round trip is
bit-exact. `{i}` in a name is the layer: the engine takes our leading layer axis apart on the way out and
stacks it again on the way in. Sizes that a shape cannot tell (heads, sides of a patch) come from `Dims`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cxr_jax.export.rules import LayoutError, Rule

Flat = dict[str, np.ndarray]


@dataclass(frozen=True)
class Dims:
    """Sizes of a model which array shapes alone do not tell: depth L, width d, heads h, patch side p."""

    depth: int
    width: int
    num_heads: int
    patch_size: int

    def letters(self) -> dict[str, int]:
        """Letters that every rule may use: t = query, key, value; g = gate, value; y, x = rows, columns."""
        return {
            "d": self.width,
            "h": self.num_heads,
            "y": self.patch_size,
            "x": self.patch_size,
            "t": 3,
            "g": 2,
        }


@dataclass(frozen=True)
class Entry:
    """One of our arrays and its name or names in the layout.

    `ours`: our path. `theirs`: their name, or one name per step of the axis before the colon in `rule`.
    `absent`: the constant that stands in the layout for a parameter which our model lacks (LayerScale 1).
    """

    ours: str
    theirs: tuple[str, ...]
    rule: str
    absent: float | None = None

    @property
    def layered(self) -> bool:
        return "{i}" in self.theirs[0]

    def names(self, depth: int) -> list[str]:
        """Every tensor name of this entry, layer by layer."""
        return [name.format(i=i) for i in range(depth if self.layered else 1) for name in self.theirs]


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Nested dict of arrays -> {"a/b/c": array}."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping) -> dict:
    """{"a/b/c": array} -> nested dict of arrays."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def to_layout(ours: Mapping[str, np.ndarray], layout: tuple[Entry, ...], dims: Dims) -> Flat:
    """Our flat parameters -> the layout's state dict (contiguous arrays, same dtype).

    Raises LayoutError naming every path that the table lacks, every path of the table that is not there, and
    the first array whose shape does not fit its rule.
    """
    wanted = {e.ours for e in layout}
    missing = [e.ours for e in layout if e.ours not in ours and e.absent is None]
    _refuse(missing=missing, extra=[path for path in ours if path not in wanted], side="our model")
    out: Flat = {}
    for entry in layout:
        rule = Rule(entry.rule, dims.letters())
        if entry.ours not in ours:
            filler = np.full(rule.right_sizes(), entry.absent, np.float32)
            out.update({name: filler.copy() for name in entry.names(dims.depth)})
            continue
        array = np.asarray(ours[entry.ours])
        if entry.layered and array.shape[:1] != (dims.depth,):
            raise LayoutError(
                f"{entry.ours}: found shape {array.shape}; the leading axis must be the depth {dims.depth}"
            )
        layers = array if entry.layered else array[None]
        names = iter(entry.names(dims.depth))
        for layer in layers:
            for part in rule.forward(layer, entry.ours):
                out[next(names)] = np.ascontiguousarray(part)
    return out


def from_layout(
    theirs: Mapping[str, np.ndarray],
    layout: tuple[Entry, ...],
    dims: Dims,
    expected: Mapping[str, tuple[int, ...]] | None = None,
) -> Flat:
    """The layout's state dict -> our flat parameters, layers stacked again.

    `expected` {path: shape} is the model that will hold them; with it, shapes are checked and a constant
    which our model does not carry (`Entry.absent`) is dropped after checking that it is that constant. Raises
    LayoutError naming every missing and every unknown tensor, or the first one of a wrong shape.
    """
    wanted = {name for e in layout for name in e.names(dims.depth)}
    missing = [name for e in layout for name in e.names(dims.depth) if name not in theirs]
    _refuse(missing=missing, extra=[name for name in theirs if name not in wanted], side="the weights file")
    ours: Flat = {}
    for entry in layout:
        names = entry.names(dims.depth)
        if expected is not None and entry.ours not in expected and entry.absent is not None:
            for name in names:
                if not np.all(theirs[name] == entry.absent):
                    raise LayoutError(f"{name}: our model has no {entry.ours}, so every value must be {entry.absent}")
            continue
        rule, step = Rule(entry.rule, dims.letters()), len(entry.theirs)
        groups = [names[start : start + step] for start in range(0, len(names), step)]
        layers = [rule.backward([np.asarray(theirs[name]) for name in group], group) for group in groups]
        for layer, group in zip(layers, groups, strict=True):
            if layer.shape != layers[0].shape:
                raise LayoutError(f"{group[0]}: its shape differs from that of layer 0")
        array = np.stack(layers) if entry.layered else np.ascontiguousarray(layers[0])
        if expected is not None and tuple(expected.get(entry.ours, ())) != array.shape:
            raise LayoutError(
                f"{names[0]}: gives {entry.ours} of shape {array.shape}, but the model "
                f"expects {tuple(expected[entry.ours]) if entry.ours in expected else 'no such parameter'}"
            )
        ours[entry.ours] = array
    if expected is not None:
        _refuse(missing=[path for path in expected if path not in ours], extra=[], side="our model")
    return ours


def _refuse(missing: list[str], extra: list[str], side: str) -> None:
    """Raise LayoutError when tensors are missing from or unknown on one side, naming each."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {', '.join(missing)}")
    if extra:
        parts.append(f"{len(extra)} unmapped: {', '.join(sorted(extra))}")
    if parts:
        raise LayoutError(f"tensors of {side} do not match the name table; " + "; ".join(parts))


def _norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{ours}/scale", (f"{theirs}.weight",), "d -> d"),
        Entry(f"{ours}/bias", (f"{theirs}.bias",), "d -> d"),
    )


def _dense(ours: str, theirs: str, rule: str = "a b -> b a", bias: str = "b -> b") -> tuple[Entry, ...]:
    return (
        Entry(f"{ours}/kernel", (f"{theirs}.weight",), rule),
        Entry(f"{ours}/bias", (f"{theirs}.bias",), bias),
    )


def hugging_face(*, ffn: str, registers: bool) -> tuple[Entry, ...]:
    """Names of transformers' Dinov2WithRegistersModel, or of Dinov2Model when there are no registers.

    These are the names of the published checkpoints. transformers 5 renames some inside its modules (q_proj,
    gate_proj) and translates both when it reads and when it writes a folder, so the file keeps these. Our
    patch kernel comes with its channels in front, `[C, p*p, d]` (`channels.py`).
    """
    layer = "encoder.layer.{i}"
    qkv = tuple(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
    if ffn == "swiglu":
        mlp = (
            *_dense("backbone/blocks/mlp/w_in", f"{layer}.mlp.weights_in", "d g f -> (g f) d", "g f -> (g f)"),
            *_dense("backbone/blocks/mlp/w_out", f"{layer}.mlp.weights_out"),
        )
    else:
        mlp = (
            *_dense("backbone/blocks/mlp/w_in", f"{layer}.mlp.fc1"),
            *_dense("backbone/blocks/mlp/w_out", f"{layer}.mlp.fc2"),
        )
    register_tokens = (Entry("backbone/register_tokens", ("embeddings.register_tokens",), "r d -> 1 r d"),)
    return (
        Entry("backbone/cls_token", ("embeddings.cls_token",), "d -> 1 1 d"),
        Entry("backbone/mask_token", ("embeddings.mask_token",), "d -> 1 d"),
        *(register_tokens if registers else ()),
        Entry("backbone/pos_embed", ("embeddings.position_embeddings",), "n d -> 1 n d"),
        *_dense("backbone/patch_embed", "embeddings.patch_embeddings.projection", "c (y x) d -> d c y x"),
        *_norm("backbone/blocks/norm1", f"{layer}.norm1"),
        Entry("backbone/blocks/attn/qkv/kernel", tuple(f"{n}.weight" for n in qkv), "d t h e -> t: (h e) d"),
        Entry("backbone/blocks/attn/qkv/bias", tuple(f"{n}.bias" for n in qkv), "t h e -> t: (h e)"),
        *_dense("backbone/blocks/attn/proj", f"{layer}.attention.output.dense", "h e d -> d (h e)"),
        Entry("backbone/blocks/layer_scale1", (f"{layer}.layer_scale1.lambda1",), "d -> d", absent=1.0),
        *_norm("backbone/blocks/norm2", f"{layer}.norm2"),
        *mlp,
        Entry("backbone/blocks/layer_scale2", (f"{layer}.layer_scale2.lambda1",), "d -> d", absent=1.0),
        *_norm("backbone/norm", "layernorm"),
    )
