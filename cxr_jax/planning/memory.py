"""Bytes per device: of the state by kind, of a compiled step, and of the collectives that no program can do without.

In: abstract arrays with their shardings, a compiled step. Out: bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cxr_jax.sharding import data_shards, parameter_spec, path_name
from cxr_jax.state import TrainState

EXHAUSTED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", re.IGNORECASE)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def shard_bytes(tree) -> int:
    """Bytes that one device holds of a tree of abstract arrays with shardings."""
    return sum(
        prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding is not None
    )


def state_bytes(state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """Bytes per device of what a step is given, by kind. Targets are the teacher, or a frozen backbone."""
    parts = {"params": state.params, "optimiser": state.opt_state, "teacher": state.targets, "batch": batch}
    return {name: shard_bytes(part) for name, part in parts.items()}


def parameter_counts(params: Mapping[str, dict]) -> dict[str, int]:
    """Parameters of every sub-module, and their sum."""
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    return counts | {"total": sum(counts.values())}


@dataclass(frozen=True)
class StepMemory:
    """Bytes per device of a compiled step as its compiler laid it out: arguments, temporaries, the program itself."""

    arguments: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """The state is donated: results take the place of arguments."""
        return self.arguments + self.temporaries + self.program


def step_memory(compiled: jax.stages.Compiled) -> StepMemory:
    """What the compiler says of a compiled step."""
    stats = compiled.memory_analysis()
    results = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    return StepMemory(
        stats.argument_size_in_bytes, stats.temp_size_in_bytes + results, stats.generated_code_size_in_bytes
    )


def exhausted(message: str) -> tuple[float, float] | None:
    """Bytes used and bytes there are, from a compiler's complaint that memory does not suffice; None if it is another.

    Both are of one device and leave out what the runtime itself reserves.
    """
    found = EXHAUSTED.search(message)
    if not found:
        return None
    used, used_unit, limit, limit_unit = found.groups()
    return float(used) * UNITS[used_unit.upper()], float(limit) * UNITS[limit_unit.upper()]


def least_collective_bytes(state: TrainState, mesh: Mesh, compute_dtype: str, reduce_dtype: str) -> float:
    """Bytes that every device has to send in one step of ZeRO-3, without those of the loss.

    A split parameter is gathered twice in the compute dtype (forward and backward) and its teacher's once; its
    gradient is reduced and scattered once in the reduce dtype, then summed over the replicas. The gradient of a
    parameter that is not split is summed over all data devices.
    """
    fsdp, replicas = mesh.shape["fsdp"], mesh.shape["replica"]
    compute, reduce = (jnp.dtype(dtype).itemsize for dtype in (compute_dtype, reduce_dtype))
    taught = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.targets)[0]}
    total = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        name = path_name(path)
        spec = parameter_spec(name, leaf.shape, mesh)
        size = leaf.size / (mesh.shape["tensor"] if "tensor" in spec else 1)
        if "fsdp" in spec:
            gathers = 2 + (name in taught)
            total += size * (fsdp - 1) / fsdp * (gathers * compute + reduce)
            total += 2 * size / fsdp * (replicas - 1) / replicas * reduce
        else:
            shards = data_shards(mesh)
            total += 2 * size * (shards - 1) / shards * reduce
    return total
