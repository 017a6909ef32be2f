"""A number per array that tells whether its bytes are still what they were, on whatever topology they lie.

In: a tree of arrays. Out: `{"backbone/cls_token": 2868043521}`.

    digest = sum_i bits_i (2654435761 i | 1)   mod 2^32

over the array's elements as unsigned integers, i their index in the whole array. Sums of integers do not depend on
their order, so one device and a pod agree; the factors are odd, so that any change of one element shows. It guards
against damage, not against malice.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, UInt

from cxr_jax.sharding import path_name

MULTIPLIER = 2654435761


def _bits(x: Array | np.ndarray) -> Array | np.ndarray:
    """The elements as unsigned integers of at most 32 bits; wider ones are two, side by side."""
    size = min(x.dtype.itemsize, 4)
    if isinstance(x, np.ndarray):
        # Not by JAX, which would round 64 bits to 32 where those are switched off.
        return np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * size}")
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint8) if x.dtype == bool else x, jnp.dtype(f"uint{8 * size}"))


def _digest(bits: Array) -> UInt[Array, ""]:
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    factors = (index * jnp.uint32(MULTIPLIER)) | jnp.uint32(1)
    return (bits.astype(jnp.uint32) * factors).sum(dtype=jnp.uint32)


def _all_of(on_host, on_device):
    bits = on_host | {name: _bits(leaf) for name, leaf in on_device.items()}
    return {name: _digest(value) for name, value in bits.items()}


@functools.cache
def _program(everywhere: Sharding | None):
    return jax.jit(_all_of, **({} if everywhere is None else {"out_shardings": everywhere}))


def begin(tree: Any, everywhere: Sharding | None = None) -> dict[str, Array]:
    """The digest of every array of `tree` by path, still on its way: nothing waits for the device.

    `everywhere` is the replicated sharding of a mesh with several processes.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: _bits(leaf) for name, leaf in flat.items() if isinstance(leaf, np.ndarray)}
    on_device = {name: leaf for name, leaf in flat.items() if name not in on_host}
    return _program(everywhere)(on_host, on_device)


def finish(begun: dict[str, Array]) -> dict[str, int]:
    """The digests as numbers."""
    return {name: int(value) for name, value in jax.device_get(begun).items()}


def digests(tree: Any, everywhere: Sharding | None = None) -> dict[str, int]:
    """The digest of every array of `tree` by path."""
    return finish(begin(tree, everywhere))
