"""Digests of arrays: by the formula, on the host and on the device, on one device and on eight, and after damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cxr_jax import digest
from cxr_jax.digest import digests
from cxr_jax.sharding import make_mesh, replicated

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.normal(size=(3, 8, 5)).astype(np.float32),
    "bfloat16": RNG.normal(size=(16, 3)).astype(jnp.bfloat16),
    "bool": RNG.random(24) > 0.5,
    "int32": np.asarray(-7, np.int32),
    "empty": np.zeros((3, 0), np.float32),
}


def by_formula(x: np.ndarray) -> int:
    data, size, total = x.tobytes(), min(x.dtype.itemsize, 4), 0
    for i in range(len(data) // size):
        bits = int.from_bytes(data[i * size : (i + 1) * size], "little")
        x = bits ^ (2654435761 * i) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        total += x ^ x >> 16
    return total % 2**32


@pytest.mark.parametrize("name", ARRAYS)
def test_host_and_device_follow_the_formula(name):
    x = ARRAYS[name]
    assert digests({"a": {"b": x}}) == digests({"a": {"b": jnp.asarray(x)}}) == {"a/b": by_formula(x)}


def test_64_bits_are_not_rounded():
    x = RNG.normal(size=9)
    assert digests({"x": x}) == {"x": by_formula(x)}
    with jax.enable_x64(True):
        assert digests({"x": jnp.asarray(x)}) == {"x": by_formula(x)}


@pytest.mark.parametrize(
    "spec",
    [(), ("fsdp",), (None, "fsdp"), (None, None, "fsdp"), ("replica", None, "fsdp"), (None, ("replica", "fsdp"))],
)
def test_shards_do_not_matter(spec):
    mesh = make_mesh(replica=2, fsdp=4)
    x = RNG.normal(size=(4, 16, 12)).astype(np.float32)
    shards = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert digests({"x": shards}, replicated(mesh)) == {"x": by_formula(x)}


def test_long_arrays_are_looked_at_in_stretches(monkeypatch):
    monkeypatch.setattr(digest, "STRETCH", 8)
    monkeypatch.setattr(digest, "SHORTEST", 2)
    x = RNG.normal(size=(2, 9, 35)).astype(np.float32)
    assert digests({"x": jnp.asarray(x)}) == {"x": by_formula(x)}


def test_any_changed_element_and_any_swap_shows():
    x = ARRAYS["float32"]
    whole = digests({"x": x})
    for at in np.ndindex(*x.shape):
        y = x.copy()
        y[at] = np.nextafter(y[at], np.inf)
        assert digests({"x": y}) != whole
    assert digests({"x": x[::-1].copy()}) != whole and digests({"x": np.swapaxes(x, 0, 1).copy()}) != whole


def test_several_changes_do_not_cancel():
    """Signs above all: of two flipped ones the highest bits add up to nothing."""
    x = ARRAYS["float32"]
    found = {tuple(digests({"x": y}).values()) for y in (x, -x, -x[::-1], np.abs(x))}
    for first, second in ((0, 1), (0, 7), (3, 50), (10, 119)):
        y = x.copy()
        y.flat[[first, second]] *= -1
        found.add(tuple(digests({"x": y}).values()))
    assert len(found) == 8
