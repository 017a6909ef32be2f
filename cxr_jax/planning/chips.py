"""Chips and their published peaks, from `chips.toml`.

In: a chip's name, or what JAX calls a device. Out: a `Chip`.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip, see `chips.toml`; they are 0 where nothing is known (fake devices)."""

    name: str
    platform: str
    device_kinds: tuple[str, ...]
    shapes: tuple[str, ...]
    source: str
    flops: float = 0.0
    memory: float = 0.0
    usable: float = 1.0
    memory_bandwidth: float = 0.0
    network: float = 0.0
    far_network: float = 0.0
    model: dict[str, Any] = field(default_factory=dict, hash=False)


@cache
def chips() -> dict[str, Chip]:
    """All chips by name."""
    table = tomllib.loads((Path(__file__).parent / "chips.toml").read_text())
    tuples = ("device_kinds", "shapes")
    return {
        name: Chip(name, **{key: tuple(value) if key in tuples else value for key, value in row.items()})
        for name, row in table.items()
    }


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, None if it is not in the table."""
    return next((chip for chip in chips().values() if device_kind in chip.device_kinds), None)
