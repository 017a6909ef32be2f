"""What devices send each other in one step, read from the compiled program.

In: a `Program` and which slice (or host) each device is in. Out: `Collective`s with their bytes and counts.

Per device and execution, for an array of S bytes (gathered, or before it is scattered) among n devices, at best:

    all-gather, reduce-scatter, all-to-all   S (n - 1) / n          all-reduce   2 S (n - 1) / n          permute   S

Where the n devices lie in p slices, what is exchanged between slices is first reduced to each device's share within its
own: S p / n in place of S among p. The TPU compiler fuses an all-reduce with the slice that is taken of its result
(`all-reduce-scatter`): that is a reduce-scatter. What goes between slices it hands to the hosts' network: there each
device sends its share and receives the result, and only an attribute tells which collective that is.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cxr_jax.planning.hlo import ArrayType, Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
IOTA = re.compile(r"replica_groups=(?P<iota>\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
MESH = re.compile(r"replica_groups=mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\((?P<ids>[^)]*\)?)\))? \{(?P<used>[^}]*)\}")
SCATTERS = "all-reduce-scatter"
BETWEEN = re.compile(r'_megascale_target="\{([\d,]+)\}.*_megascale_transfer_type="(\w+)"')


@dataclass(frozen=True)
class Collective:
    """One collective: `payload` bytes of the whole array, `near` and `far` bytes that each device sends each time."""

    kind: str
    arrays: tuple[ArrayType, ...]
    devices: int
    times: int
    payload: float
    near: float
    far: float
    origin: str

    @property
    def bytes(self) -> float:
        """Bytes that each device sends in one step."""
        return self.times * (self.near + self.far)


def collectives_of(program: Program, places: Sequence[int]) -> list[Collective]:
    """All collectives; `places[i]` is the slice or host of the program's device i."""
    found, seen = [], set()
    for instruction, computation, where, times in program.runs(into_fusions=True):
        kind = instruction.opcode.removesuffix("-start")
        between = BETWEEN.search(instruction.rest) if kind == "send" else None
        if kind not in KINDS and not between:
            continue
        # The TPU compiler spreads one collective over the fusions that it goes on beside; its channel tells.
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        if channel and (channel[1], where) in seen:
            continue
        seen.add((channel and channel[1], where))
        if between:
            kind, groups = between[2].lower().replace("_", "-"), _one_in_each(places)[:, : between[1].count(",") + 1]
        else:
            groups = groups_of(instruction, len(places))
        if kind == "all-reduce" and computation.name.startswith(SCATTERS):
            kind = "reduce-scatter"
        arrays = _operands(instruction, computation)
        found.append(_collective(kind, arrays, groups, np.asarray(places), times, _origin(instruction)))
    return [collective for collective in found if collective.devices > 1]


def _one_in_each(places: Sequence[int]) -> np.ndarray:
    """A group of one device in each slice."""
    return np.unique(places, return_index=True)[1][None]


def _operands(instruction: Instruction, computation: Computation) -> tuple[ArrayType, ...]:
    return tuple(array for name in instruction.operands for array in computation.by_name[name].arrays)


def _origin(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.rest)
    return found[1] if found else instruction.name


def _collective(kind, arrays, groups, places, times, origin) -> Collective:
    size, devices = float(sum(array.bytes for array in arrays)), groups.shape[1]
    across = max(len(set(places[group].tolist())) for group in groups)
    if kind == "collective-permute":
        far = size if across > 1 else 0.0
        return Collective(kind, arrays, 2, times, size, size - far, far, origin)
    payload = size * devices if kind == "all-gather" else size
    within = devices / across

    def share(n):
        return (2 if kind == "all-reduce" else 1) * (n - 1) / n

    near, far = payload * share(within), payload / within * share(across)
    return Collective(kind, arrays, devices, times, payload, near, far, origin)


def groups_of(instruction: Instruction, num_devices: int) -> np.ndarray:
    """The groups of devices that exchange among themselves, `[groups, devices]`; for a permute its pairs."""
    text = instruction.rest
    if mesh := MESH.search(text):
        return _mesh_groups(mesh)
    if iota := IOTA.search(text):
        return iota_order(iota["iota"])
    listed = LISTED.search(text)
    groups = re.findall(r"\{([\d,]*)\}", listed[1]) if listed else []
    if not groups:
        return np.arange(num_devices)[None]
    return np.asarray([[int(n) for n in group.split(",")] for group in groups])


def iota_order(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: 0, 1, ... as `[2,4]`, transposed, as `[4,2]`. Without an arrow the order itself."""
    shape, _, source = text.rpartition("<=")
    source, _, axes = source.partition("T(")
    dims = [int(n) for n in source.strip("[]").split(",")]
    order = np.arange(prod(dims)).reshape(dims)
    if axes:
        order = order.transpose([int(n) for n in axes.strip(")").split(",")])
    return order.reshape([int(n) for n in shape.strip("[]").split(",")]) if shape else order.reshape(-1)


def _mesh_groups(match: re.Match) -> np.ndarray:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`: the devices along the axes that are used."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match["axes"])}
    order = iota_order(match["ids"]) if match["ids"] else np.arange(prod(axes.values()))
    used = []
    dims, names = [], []
    wanted = dict(re.findall(r"'([^']+)'(:\(\d+\)\d+)?", match["used"]))
    for name, size in axes.items():
        part = re.fullmatch(r":\((\d+)\)(\d+)", wanted.get(name, "") or "")
        if part:  # a part of an axis: what stands before it, itself, what stands after it
            before, length = int(part[1]), int(part[2])
            dims += [before, length, size // before // length]
            names += [None, name, None]
        else:
            dims.append(size)
            names.append(name if name in wanted else None)
    used = [i for i, name in enumerate(names) if name]
    rest = [i for i in range(len(dims)) if i not in used]
    mesh = order.reshape(dims).transpose(rest + used)
    return mesh.reshape(-1, prod(dims[i] for i in used))


def summary(collectives: Sequence[Collective]) -> dict[str, dict[str, Any]]:
    """By kind: how many run in a step, and bytes that each device sends in it, within and between slices."""
    table = defaultdict(lambda: {"count": 0, "bytes": 0.0, "far_bytes": 0.0})
    for one in collectives:
        row = table[one.kind]
        row["count"] += one.times
        row["bytes"] += one.bytes
        row["far_bytes"] += one.times * one.far
    return {kind: table[kind] for kind in sorted(table)}
