"""Schedules as closed forms of the step, and where a run stands on them.

In: numbers of a config. Out: functions of the train step. As released by DINOv2 and CheXFound, with W steps of warm-up,
T in all and C of cool-down:

    warm-up     lr(t) = peak t / (W - 1)                                        t < W       step 0 has rate 0
    cosine      lr(t) = end + (peak - end) (1 + cos(pi (t - W) / (T - W))) / 2  t >= W      the end is reached at t = T
    constant    lr(t) = peak                                                    W <= t < T - C
    cool-down   lr(t) = peak + (end - peak) (t - T + C) / C                     t >= T - C  the end is reached at t = T

A constant rate knows no end before its cool-down, so that a run can be branched and made longer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


def linear_schedule(start: float, end: float, steps: int) -> Schedule:
    """`start` to `end` over `steps` values, both ends included, then `end`."""

    def value(step):
        return jnp.where(step < steps, start + (end - start) * (step / max(steps - 1, 1)), end)

    return value


def cosine_schedule(start: float, end: float, steps: int) -> Schedule:
    """Half a cosine from `start` towards `end`, which is reached after `steps` steps (as released: t / steps)."""

    def value(step):
        return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / max(steps, 1), 0, 1)))

    return value


def warmup_cosine_schedule(peak: float, end: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear from 0 (step 0 has rate 0) to `peak` at the last warm-up step, then a cosine to `end`."""
    rise = linear_schedule(0.0, peak, warmup_steps)
    fall = cosine_schedule(peak, end, total_steps - warmup_steps)

    def value(step):
        return jnp.where(step < warmup_steps, rise(step), fall(step - warmup_steps))

    return value


def constant_cooldown_schedule(
    peak: float, end: float, warmup_steps: int, cooldown_steps: int, total_steps: int
) -> Schedule:
    """The same warm-up, then `peak`, then over the last `cooldown_steps` linearly towards `end`, reached after them."""
    rise = linear_schedule(0.0, peak, warmup_steps)

    def value(step):
        left = jnp.clip((total_steps - step) / max(cooldown_steps, 1), 0, 1)
        held = jnp.where(step < total_steps - cooldown_steps, peak, end + (peak - end) * left)
        return jnp.where(step < warmup_steps, rise(step), held if cooldown_steps else peak)

    return value


LEARNING_RATES = ("cosine", "constant_cooldown")


def sqrt_scaled(base: float, batch_size: int, reference: int = 1024) -> float:
    """`base * sqrt(batch / reference)`, the rule of DINOv2 and CheXFound."""
    return base * (batch_size / reference) ** 0.5


@dataclass(frozen=True)
class Timeline:
    """Where a run's steps lie on its schedules: step t is position `offset + t`, and the last position is `end`.

    Fractions at the beginning (warm-ups, freezes) are of `opening_steps`, fractions at the end (cool-down) of
    `total_steps`. A run from nothing, or one that restarts its schedules, has offset 0 and opening_steps = total_steps.
    A run that continues the schedules of a source has the source's opening_steps, so that no warm-up comes again, and
    its own end: what the source had still before it is replaced by the new run's length.
    """

    offset: int
    opening_steps: int
    total_steps: int

    @classmethod
    def fresh(cls, total_steps: int) -> "Timeline":
        """Schedules from their beginning to the run's last step."""
        return cls(0, total_steps, total_steps)

    def after(self, step: int, total_steps: int) -> "Timeline":
        """The timeline of a run of `total_steps` whose step 0 follows on step `step` of this one."""
        return Timeline(self.offset + step, self.opening_steps, total_steps)

    @property
    def end(self) -> int:
        """The position after the run's last step: the horizon of every cosine."""
        return self.offset + self.total_steps

    def opening(self, fraction: float) -> int:
        """A fraction of the beginning, in positions."""
        return round(fraction * self.opening_steps)

    def first_steps(self, fraction: float) -> int:
        """How many of this run's own first steps lie within that fraction."""
        return max(0, self.opening(fraction) - self.offset)

    def closing(self, fraction: float) -> int:
        """A fraction of the end, in positions."""
        return round(fraction * self.total_steps)

    def place(self, schedule: Schedule) -> Schedule:
        """A schedule of positions as one of this run's steps."""
        return (lambda step: schedule(step + self.offset)) if self.offset else schedule

    def learning_rate(
        self, name: str, peak: float, end: float, *, warmup_frac: float, cooldown_frac: float = 0.0
    ) -> Schedule:
        """`cosine` or `constant_cooldown` on this timeline.

        Raises ValueError for another name, and for a cool-down that begins within the warm-up.
        """
        warmup, cooldown = self.opening(warmup_frac), self.closing(cooldown_frac)
        if name == "cosine":
            return self.place(warmup_cosine_schedule(peak, end, warmup, self.end))
        if name != "constant_cooldown":
            raise ValueError(f"optim.schedule={name!r}: legal are {', '.join(LEARNING_RATES)}")
        if self.end - cooldown < warmup:
            raise ValueError(
                f"optim.cooldown_frac={cooldown_frac}: the last {cooldown} of {self.end} steps begin within the "
                f"{warmup} steps of warm-up; warmup_frac + cooldown_frac may be at most 1"
            )
        return self.place(constant_cooldown_schedule(peak, end, warmup, cooldown, self.end))

    def cosine(self, start: float, end: float) -> Schedule:
        """Half a cosine over the whole timeline: weight decay, teacher momentum."""
        return self.place(cosine_schedule(start, end, self.end))

    def linear(self, start: float, end: float, fraction: float) -> Schedule:
        """A straight line over an opening fraction, then `end`: the teacher's temperature."""
        return self.place(linear_schedule(start, end, self.opening(fraction)))
