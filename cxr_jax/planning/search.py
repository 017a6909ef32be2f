"""The fastest batch size and remat policy that fit, by planning each.

In: a function that plans a policy and a batch size. Out: the best plan, and a row per candidate.

Memory grows with the batch, so for each policy the batch is doubled from where it stands until it no longer fits, or
halved until it does. Fast is what has the highest bound on images per second; without bounds, the largest batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cxr_jax.planning.report import gb

POLICIES = ("none", "dots", "full")
Plan = dict[str, Any]


def search(
    plan_of: Callable[[str, int], Plan], policies: Sequence[str], start: int, least: int, tell: Callable[[str], None]
) -> tuple[Plan | None, list[Plan]]:
    """The best plan (None if nothing fits) and all candidates; every batch is a multiple of `least`."""
    best, rows = None, []
    for policy in policies:
        for plan in _sizes(plan_of, policy, start, least):
            rows.append(row_of(plan))
            tell(line_of(rows[-1]))
            if plan["fits"] and (best is None or _speed(plan) > _speed(best)):
                best = plan
    return best, rows


def _sizes(plan_of, policy: str, start: int, least: int) -> Iterator[Plan]:
    plan = plan_of(policy, start)
    yield plan
    size, grow = start, plan["fits"]
    while True:
        # Halves are rounded up to a multiple of `least`: 24, 16, 8 where `least` is 8.
        last, size = size, size * 2 if grow else -(-size // (2 * least)) * least
        if size == last:
            return
        plan = plan_of(policy, size)
        yield plan
        if plan["fits"] != grow:
            return


def _speed(plan: Plan) -> float:
    return plan["run"]["images_per_sec"] if "run" in plan else float(plan["batch_size"])


def row_of(plan: Plan) -> Plan:
    """What a table says of a candidate."""
    row = {key: plan[key] for key in ("remat", "batch_size", "images_per_device", "fits")}
    row |= {"total": plan["bytes_per_device"]["total"], "capacity": plan["bytes_per_device"]["capacity"]}
    return row | ({"images_per_sec": plan["run"]["images_per_sec"]} if "run" in plan else {})


def line_of(row: Plan) -> str:
    """The same as a line of text."""
    size = f"remat {row['remat']:<5} batch {row['batch_size']:>7} ({row['images_per_device']:g} per device)"
    speed = f", at most {row['images_per_sec']:,.0f} images/s" if "images_per_sec" in row else ""
    limit = f" of {gb(row['capacity'])}" if row["capacity"] else ""
    return f"{size}: {gb(row['total'])}{limit}, {'fits' if row['fits'] else 'does not fit'}{speed}"
