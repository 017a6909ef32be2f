"""The engine under the name table: our parameters to a PyTorch layout's tensors, and back.

In: our parameters as a flat dict {"backbone/blocks/attn/qkv/kernel": array}, with stacked layers leading, or a state
dict {"encoder.layer.0.attention.attention.query.weight": array}, and the tables of `names`. Out: the other one.

A table is a tuple of `Entry(ours, theirs, rule)` with the sizes of the module that it describes. The rule says how one
layer's array changes shape, in letters: `"d t h e -> t: (h e) d"` takes our [d, 3, h, e] apart along `t`, one array
per name in `theirs` (query, key, value), and makes each a [h*e, d] matrix. A rule (`rules`) only reshapes and
transposes, so every entry works both ways and a round trip is bit-exact. `{i}` in a name is the layer, `{c}` the chunk
of layers that it is in: the engine takes our leading layer axis apart on the way out and stacks it again on the way in.

A tensor is made when it is asked for (`Lazy`), and read when its place is ready: neither way ever holds two copies of a
model.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cxr_jax.export.rules import LayoutError, Rule

Flat = dict[str, np.ndarray]
SHOWN = 5  # names in an error before it says how many more


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made, or read, by `make()`; its shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


Tensors = Mapping[str, "Lazy | np.ndarray"]


@dataclass(frozen=True)
class Dims:
    """Sizes that array shapes alone do not tell: depth L, width d, heads h, patch side p; `chunk` layers in a chunk."""

    depth: int
    width: int
    num_heads: int
    patch_size: int
    chunk: int = 0

    def letters(self) -> dict[str, int]:
        """Letters that every rule may use: t = query, key, value; g = gate, value; y, x = rows, columns."""
        return {
            "d": self.width,
            "h": self.num_heads,
            "e": self.width // self.num_heads,
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
    `fill`: the constant that stands in our model for a tensor which their file lacks (DINOv3's key bias 0).
    """

    ours: str
    theirs: tuple[str, ...]
    rule: str
    absent: float | None = None
    fill: float | None = None

    @property
    def layered(self) -> bool:
        return "{i}" in self.theirs[0]

    def names(self, dims: Dims) -> list[str]:
        """Every tensor name of this entry, layer by layer."""
        layers = range(dims.depth if self.layered else 1)
        return [name.format(i=i, c=i // dims.chunk if dims.chunk else 0) for i in layers for name in self.theirs]


@dataclass(frozen=True)
class Table:
    """The entries of one module and its sizes."""

    entries: tuple[Entry, ...]
    dims: Dims

    def under(self, ours: str = "", theirs: str = "") -> "Table":
        """The same module at another place: prefixes for our paths and their names."""
        moved = (
            Entry(ours + e.ours, tuple(theirs + name for name in e.theirs), e.rule, e.absent, e.fill)
            for e in self.entries
        )
        return Table(tuple(moved), self.dims)


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


def to_array(tensor: "Lazy | np.ndarray") -> np.ndarray:
    """The array itself."""
    return tensor.make() if isinstance(tensor, Lazy) else np.asarray(tensor)


def to_layout(ours: Mapping[str, np.ndarray], *tables: Table, allow: Collection[str] = ()) -> dict[str, Lazy]:
    """Our flat parameters -> the layout's state dict, of tensors that are made when asked for (contiguous, same dtype).

    Raises LayoutError naming every path that the tables lack and `allow` does not name, every path of the tables that
    is not there, or the first array whose shape does not fit its rule.
    """
    entries = [(entry, table.dims) for table in tables for entry in table.entries]
    wanted = {entry.ours for entry, _ in entries}
    missing = [entry.ours for entry, _ in entries if entry.ours not in ours and entry.absent is None]
    _refuse(missing=missing, extra=[p for p in ours if p not in wanted and p not in allow], side="our model")
    out: dict[str, Lazy] = {}
    for entry, dims in entries:
        rule, names = Rule(entry.rule, dims.letters()), entry.names(dims)
        if entry.ours not in ours:
            shape = tuple(rule.right_sizes())
            filler = Lazy(shape, np.dtype(np.float32), lambda e=entry, s=shape: np.full(s, e.absent, np.float32))
            out.update(dict.fromkeys(names, filler))
            continue
        array = np.asarray(ours[entry.ours])
        if entry.layered and array.shape[:1] != (dims.depth,):
            raise LayoutError(
                f"{entry.ours}: found shape {array.shape}; the leading axis must be the depth {dims.depth}"
            )
        layers = array if entry.layered else array[None]
        shape, count = rule.right_shape(layers.shape[1:], entry.ours), len(entry.theirs)
        for index, name in enumerate(names):
            part = (rule, layers[index // count], index % count, entry.ours)
            out[name] = Lazy(shape, array.dtype, lambda p=part: np.ascontiguousarray(p[0].part(*p[1:])))
    return out


def from_layout(
    theirs: Tensors,
    *tables: Table,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    allow: Collection[str] = (),
) -> Flat:
    """The layout's state dict -> our flat parameters in float32, layers stacked again.

    `expected` {path: shape} is the model that will hold them; with it, shapes are checked before anything is read, and
    a constant which our model does not carry (`Entry.absent`) is dropped after checking that it is that constant.
    Raises LayoutError naming missing tensors, those that the tables lack and `allow` does not name, or the first one of
    a wrong shape.
    """
    entries = [(entry, table.dims) for table in tables for entry in table.entries]
    wanted = {name for entry, dims in entries for name in entry.names(dims)}
    missing = [
        name for entry, dims in entries if entry.fill is None for name in entry.names(dims) if name not in theirs
    ]
    extra = [name for name in theirs if name not in wanted and name not in allow]
    _refuse(missing=missing, extra=extra, side="the weights file")
    ours: Flat = {}
    for entry, dims in entries:
        names = entry.names(dims)
        if expected is not None and entry.ours not in expected and entry.absent is not None:
            _check_constant(theirs, names, entry)
            continue
        ours[entry.ours] = _stack(theirs, entry, dims, None if expected is None else expected.get(entry.ours, ()))
    if expected is not None:
        _refuse(missing=[path for path in expected if path not in ours], extra=[], side="our model")
    return ours


def check_depth(theirs: Tensors, *tables: Table) -> None:
    """Raise LayoutError at the first layer of a table of which `theirs` holds nothing, however many it speaks of."""
    for table in tables:
        layered = [entry for entry in table.entries if entry.layered]
        for i in range(table.dims.depth if layered else 0):
            chunk = i // table.dims.chunk if table.dims.chunk else 0
            found = [name.format(i=i, c=chunk) for entry in layered for name in entry.theirs]
            if not any(name in theirs for name in found):
                raise LayoutError(
                    f"the weights file holds nothing of layer {i}, counted from 0, of {table.dims.depth}: "
                    f"{len(found)} missing: {_first(found)}"
                )


def _stack(theirs: Tensors, entry: Entry, dims: Dims, expected: tuple[int, ...] | None) -> np.ndarray:
    """All layers of one entry in one array, read one layer at a time."""
    rule, names, step = Rule(entry.rule, dims.letters()), entry.names(dims), len(entry.theirs)
    groups = [names[start : start + step] for start in range(0, len(names), step)]
    whole = None
    for layer, group in enumerate(groups):
        parts = [_tensor(theirs, name, entry, rule) for name in group]
        for name, part in zip(group, parts, strict=True):
            if not np.isfinite(part).all():
                raise LayoutError(f"{name}: holds NaN or infinity; such weights are broken, take another checkpoint")
        try:
            array = rule.backward(parts, group)
        except LayoutError as error:
            wanted = f"; our model expects {entry.ours} of {tuple(expected)}" if expected else ""
            raise LayoutError(f"{error}{wanted}") from None
        if whole is None:
            shape = ((len(groups), *array.shape)) if entry.layered else array.shape
            if expected is not None and tuple(expected) != shape:
                legal = tuple(expected) or "no such parameter"
                raise LayoutError(f"{names[0]}: gives {entry.ours} of shape {shape}, but the model expects {legal}")
            whole = np.empty(shape, np.float32)
        place = whole[layer] if entry.layered else whole
        if place.shape != array.shape:
            raise LayoutError(f"{group[0]}: its shape differs from that of layer 0")
        place[...] = array
    return whole


def _tensor(theirs: Tensors, name: str, entry: Entry, rule: Rule) -> np.ndarray:
    if name in theirs:
        return to_array(theirs[name])
    return np.full(rule.right_sizes(), entry.fill, np.float32)


def _check_constant(theirs: Tensors, names: Iterable[str], entry: Entry) -> None:
    for name in names:
        if not np.all(to_array(theirs[name]) == entry.absent):
            raise LayoutError(f"{name}: our model has no {entry.ours}, so every value must be {entry.absent}")


def _refuse(missing: list[str], extra: list[str], side: str) -> None:
    """Raise LayoutError when tensors are missing from or unknown on one side, naming them."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_first(missing)}")
    if extra:
        parts.append(f"{len(extra)} unmapped: {_first(sorted(extra))}")
    if parts:
        raise LayoutError(f"tensors of {side} do not match the name table; " + "; ".join(parts))


def _first(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
