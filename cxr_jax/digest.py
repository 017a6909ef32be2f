"""A number per array that tells whether its bytes are still what they were, on whatever topology they lie.

In: a tree of arrays. Out: `{"backbone/cls_token": 2868043521}`.

    digest = sum_i mix(bits_i xor 2654435761 i)   mod 2^32

over the array's elements as unsigned integers, i their index in the whole array; `mix` is the finaliser of MurmurHash3
(Appleby). Sums of integers do not depend on their order, so one device and a pod agree. `mix` is one to one, so that any
change of one element shows, and scrambles all bits, so that changes of several (signs, say) do not cancel, but for one
chance in 2^32. It guards against damage, not against malice.
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
MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))  # shift to the right, then factor
CHUNK = 2**20  # elements of an array on the host that are looked at together


def _bits(x: Array) -> Array:
    """The elements as unsigned integers of at most 32 bits; wider ones are two, side by side."""
    size = min(x.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint8) if x.dtype == bool else x, jnp.dtype(f"uint{8 * size}"))


def _mixed(x):
    """MurmurHash3's finaliser of 32-bit integers, of NumPy's as of JAX's."""
    for shift, factor in MIX:
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x


def _digest(bits: Array) -> UInt[Array, ""]:
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return _mixed(bits.astype(jnp.uint32) ^ (index * jnp.uint32(MULTIPLIER))).sum(dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> np.uint32:
    """The digest without a device, which would copy the array, and round 64 bits to 32 where those are switched off."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * min(x.dtype.itemsize, 4)}")
    total = 0
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK].astype(np.uint32)
        places = np.arange(start, start + part.size).astype(np.uint32) * np.uint32(MULTIPLIER)
        total += int(_mixed(part ^ places).sum(dtype=np.uint32))
    return np.uint32(total % 2**32)


def _all_of(on_device):
    return {name: _digest(_bits(leaf)) for name, leaf in on_device.items()}


@functools.cache
def _program(everywhere: Sharding | None):
    return jax.jit(_all_of, **({} if everywhere is None else {"out_shardings": everywhere}))


def begin(tree: Any, everywhere: Sharding | None = None) -> dict[str, Array | np.uint32]:
    """The digest of every array of `tree` by path, still on its way: nothing waits for the device.

    `everywhere` is the replicated sharding of a mesh with several processes.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: _on_host(leaf) for name, leaf in flat.items() if isinstance(leaf, np.ndarray)}
    on_device = {name: leaf for name, leaf in flat.items() if name not in on_host}
    return on_host | (_program(everywhere)(on_device) if on_device else {})


def finish(begun: dict[str, Array | np.uint32]) -> dict[str, int]:
    """The digests as numbers."""
    return {name: int(value) for name, value in jax.device_get(begun).items()}


def digests(tree: Any, everywhere: Sharding | None = None) -> dict[str, int]:
    """The digest of every array of `tree` by path."""
    return finish(begin(tree, everywhere))
