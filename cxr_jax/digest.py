"""A number per array that tells whether its bytes are still what they were, on whatever topology they lie.

In: a tree of arrays. Out: `{"backbone/cls_token": 2868043521}`.

    digest = sum_i mix(bits_i xor 2654435761 i)   mod 2^32

over the array's elements as unsigned integers, i their index in the whole array; `mix` is the finaliser of MurmurHash3
(Appleby). Sums of integers do not depend on their order, so one device and a pod agree. `mix` is one to one, so that
any change of one element shows, and scrambles all bits, so that changes of several (signs, say) do not cancel, but for
one chance in 2^32. It guards against damage, not against malice.

A single CPU looks at neighbouring elements stretch by stretch: XLA makes vector code of that, and one sum over the
array takes it nine times as long.
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
STRETCH, SHORTEST = 2**13, 2**8  # elements that a CPU looks at together, at most and at least
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


def _terms(bits: Array, index: UInt[Array, "*shape"]) -> UInt[Array, "*shape"]:
    return _mixed(bits.astype(jnp.uint32) ^ (index * jnp.uint32(MULTIPLIER)))


def _whole(x: Array) -> UInt[Array, ""]:
    """One sum over the array, wherever its parts lie."""
    bits = _bits(x)
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return _terms(bits, index).sum(dtype=jnp.uint32)


def _stretch_by_stretch(x: Array, stretch: int) -> UInt[Array, ""]:
    """The same of an array that one device holds, `stretch` elements at a time."""
    within = jnp.arange(stretch, dtype=jnp.uint32)

    def add(total, start_and_elements):
        start, elements = start_and_elements
        # Bits are taken here rather than of the array before, which would be written and read again.
        return total + _terms(_bits(elements), start + within), None

    starts = jnp.arange(0, x.size, stretch, dtype=jnp.uint32)
    return jax.lax.scan(add, jnp.zeros(stretch, jnp.uint32), (starts, x.reshape(-1, stretch)))[0].sum(dtype=jnp.uint32)


def _digest(x: Array, in_turn: bool) -> UInt[Array, ""]:
    x = _bits(x) if x.dtype.itemsize > 4 else x
    stretch = max((n for n in range(1, min(x.size, STRETCH) + 1) if x.size % n == 0), default=0)
    return _stretch_by_stretch(x, stretch) if in_turn and stretch >= SHORTEST else _whole(x)


def _on_host(x: np.ndarray) -> np.uint32:
    """The digest without a device, which would copy the array, and round 64 bits to 32 where those are switched off."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * min(x.dtype.itemsize, 4)}")
    total = 0
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK].astype(np.uint32)
        places = np.arange(start, start + part.size).astype(np.uint32) * np.uint32(MULTIPLIER)
        total += int(_mixed(part ^ places).sum(dtype=np.uint32))
    return np.uint32(total % 2**32)


@functools.cache
def _program(in_turn: tuple[str, ...], everywhere: Sharding | None):
    def all_of(arrays):
        return {name: _digest(leaf, name in in_turn) for name, leaf in arrays.items()}

    return jax.jit(all_of, **({} if everywhere is None else {"out_shardings": everywhere}))


def _on_one_cpu(leaf: Array) -> bool:
    return [device.platform for device in leaf.sharding.device_set] == ["cpu"]


def begin(tree: Any, everywhere: Sharding | None = None) -> dict[str, Array | np.uint32]:
    """The digest of every array of `tree` by path, still on its way: nothing waits for the device.

    `everywhere` is the replicated sharding of a mesh with several processes.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: _on_host(leaf) for name, leaf in flat.items() if isinstance(leaf, np.ndarray)}
    on_device = {name: leaf for name, leaf in flat.items() if name not in on_host}
    in_turn = tuple(name for name, leaf in on_device.items() if _on_one_cpu(leaf))
    return on_host | (_program(in_turn, everywhere)(on_device) if on_device else {})


def finish(begun: dict[str, Array | np.uint32]) -> dict[str, int]:
    """The digests as numbers."""
    return {name: int(value) for name, value in jax.device_get(begun).items()}


def digests(tree: Any, everywhere: Sharding | None = None) -> dict[str, int]:
    """The digest of every array of `tree` by path."""
    return finish(begin(tree, everywhere))
