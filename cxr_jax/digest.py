"""A number per array that tells whether its bytes are still what they were, on whatever topology they lie.

In: a tree of arrays. Out: `{"backbone/cls_token": 2868043521}`.

    digest = sum_i mix(bits_i xor 2654435761 i)   mod 2^32

over the array's elements as unsigned integers, i their index in the whole array; `mix` is the finaliser of MurmurHash3
(Appleby). Sums of integers do not depend on their order, so one device and a pod agree. `mix` is one to one, so that
any change of one element shows, and scrambles all bits, so that changes of several (signs, say) do not cancel, but for
one chance in 2^32. It guards against damage, not against malice.

Every device looks at its own part of an array. A CPU does so stretch by stretch of neighbouring elements, of which XLA
makes vector code; one sum over the array takes it nine times as long.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
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


def _places(sharding: Sharding) -> tuple[tuple[str, ...], ...]:
    """By axis of an array, the mesh axes that it is split over."""
    spec = sharding.spec if isinstance(sharding, NamedSharding) else ()
    return tuple(() if names is None else (names,) if isinstance(names, str) else tuple(names) for names in spec)


def _of_part(x: Array, whole: tuple[int, ...], places: tuple[tuple[str, ...], ...], in_turn: bool) -> UInt[Array, ""]:
    """What a device's part adds to the digest of an array of shape `whole`; stretch after stretch if `in_turn`."""
    strides = [math.prod(whole[axis + 1 :]) % 2**32 for axis in range(x.ndim)]
    split = [axis for axis, names in enumerate(places) if names]
    start = jnp.zeros((), jnp.uint32)
    for axis in split:
        part = jax.lax.axis_index(places[axis]).astype(jnp.uint32)
        start = start + part * jnp.uint32(x.shape[axis] * strides[axis] % 2**32)
    # From the last axis that is split on, elements that follow each other here do so in the whole array.
    first = split[-1] if split else 0
    for axis in range(first):
        steps = jnp.arange(x.shape[axis], dtype=jnp.uint32) * jnp.uint32(strides[axis])
        start = (start[..., None] + steps).reshape(-1)
    run = math.prod(x.shape[first:])
    stretch = max(n for n in range(1, min(run, STRETCH) + 1) if run % n == 0)
    starts = (start.reshape(-1, 1) + jnp.arange(0, run, stretch, dtype=jnp.uint32)).reshape(-1, 1)
    within = jnp.arange(stretch, dtype=jnp.uint32)

    def terms(start_and_elements):
        # Bits are taken here rather than of the array before, which would be written and read again.
        start, elements = start_and_elements
        return _mixed(_bits(elements).astype(jnp.uint32) ^ ((start + within) * jnp.uint32(MULTIPLIER)))

    stretches = starts, x.reshape(-1, stretch)
    if not in_turn or stretch < SHORTEST:
        return terms(stretches).sum(dtype=jnp.uint32)
    total, _ = jax.lax.scan(lambda total, one: (total + terms(one), None), jnp.zeros(stretch, jnp.uint32), stretches)
    return total.sum(dtype=jnp.uint32)


def _digest(x: Array, sharding: Sharding) -> UInt[Array, ""]:
    if not x.size:
        return jnp.zeros((), jnp.uint32)
    x, places = _bits(x) if x.dtype.itemsize > 4 else x, _places(sharding)
    names = tuple(name for several in places for name in several)
    in_turn = all(device.platform == "cpu" for device in sharding.device_set)
    if not names:
        return _of_part(x, x.shape, (), in_turn)

    def here(part):
        return jax.lax.psum(_of_part(part, x.shape, places, in_turn), names)

    specs = {"in_specs": sharding.spec, "out_specs": PartitionSpec()}
    return jax.shard_map(here, mesh=sharding.mesh, check_vma=False, **specs)(x)


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
def _program(shardings: tuple[tuple[str, Sharding], ...], everywhere: Sharding | None):
    def all_of(arrays):
        return {name: _digest(arrays[name], sharding) for name, sharding in shardings}

    return jax.jit(all_of, **({} if everywhere is None else {"out_shardings": everywhere}))


def begin(tree: Any, everywhere: Sharding | None = None) -> dict[str, Array | np.uint32]:
    """The digest of every array of `tree` by path, still on its way: nothing waits for the device.

    `everywhere` is the replicated sharding of a mesh with several processes.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: _on_host(leaf) for name, leaf in flat.items() if isinstance(leaf, np.ndarray)}
    on_device = {name: leaf for name, leaf in flat.items() if name not in on_host}
    if not on_device:
        return on_host
    shardings = tuple((name, leaf.sharding) for name, leaf in sorted(on_device.items()))
    return on_host | _program(shardings, everywhere)(on_device)


def finish(begun: dict[str, Array | np.uint32]) -> dict[str, int]:
    """The digests as numbers."""
    return {name: int(value) for name, value in jax.device_get(begun).items()}


def digests(tree: Any, everywhere: Sharding | None = None) -> dict[str, int]:
    """The digest of every array of `tree` by path."""
    return finish(begin(tree, everywhere))
