"""How fast a step can be at best, and what a run then takes.

In: what a step computes, reads, writes and sends per device, and a chip's published peaks. Out: `Bounds`.

    step >= max(FLOPs / peak, bytes of HBM / bandwidth, bytes sent / network)       as if all three overlapped wholly
    MFU  <= model FLOPs / (devices * peak * step)

Real steps are slower: no matrix unit reaches its peak, a ring uses some of a chip's links, nothing overlaps wholly.
"""

from dataclasses import asdict, dataclass
from typing import Any

from cxr_jax.planning.chips import Chip


@dataclass(frozen=True)
class Work:
    """Of one device in one step: FLOPs done and needed, bytes of HBM touched, bytes sent within and between slices."""

    flops: float
    model_flops: float
    memory: float
    near: float
    far: float


@dataclass(frozen=True)
class Bounds:
    """Seconds of one step by what limits it, and the highest model FLOPs utilisation that this leaves."""

    compute: float
    memory: float
    network: float
    mfu: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def by(self) -> str:
        """What limits the step."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"step": self.step, "by": self.by}


def bounds_of(work: Work, chip: Chip) -> Bounds | None:
    """The bounds of a step on `chip`, None for a chip without published peaks."""
    if not chip.flops:
        return None
    compute, memory = work.flops / chip.flops, work.memory / chip.memory_bandwidth
    network = max(work.near / chip.network, work.far / chip.far_network)
    step = max(compute, memory, network)
    return Bounds(compute, memory, network, work.model_flops / chip.flops / step)


def run_of(step_secs: float, steps: int, batch_size: int, devices: int, price_per_chip_hour: float) -> dict[str, Any]:
    """Images per second, and hours, chip-hours and cost (0 without a price) of a whole run."""
    hours = steps * step_secs / 3600
    run = {"images_per_sec": batch_size / step_secs, "steps": steps, "hours": hours, "chip_hours": hours * devices}
    return run | ({"cost": run["chip_hours"] * price_per_chip_hour} if price_per_chip_hour else {})
