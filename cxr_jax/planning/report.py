"""A plan as a page of text.

In: the dict of `step.plan_step`. Out: lines. Bytes are decimal (GB = 1e9), as chips are sold.
"""

from collections.abc import Iterator
from typing import Any

KINDS = ("params", "optimiser", "teacher", "batch", "padding", "activations", "temporaries", "program")
MEANING = {
    "params": "student and heads",
    "optimiser": "both moments",
    "teacher": "targets: teacher, centres",
    "batch": "canvases",
    "padding": "what the chip's layout adds to the above",
    "activations": "kept by the forward pass for the backward pass",
    "temporaries": "gradients, gathered weights, the rest",
    "program": "the compiled code",
}


def gb(size: int | float) -> str:
    """Bytes in GB, at least two digits."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def millions(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def short(number: float) -> str:
    """Whole from 100 on, three digits below."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def flops(number: float) -> str:
    """FLOPs in GFLOP or MFLOP."""
    return f"{short(number / 1e9)} GFLOP" if number >= 1e8 else f"{short(number / 1e6)} MFLOP"


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """The page, line by line."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    yield f"{plan['topology']}: {plan['devices']} devices, mesh {mesh}"
    yield f"batch {plan['batch_size']}, {plan['images_per_device']:g} images per device; {plan['settings']}"
    counts = ", ".join(f"{name} {millions(count)}" for name, count in plan["parameters"].items() if name != "total")
    yield f"parameters {millions(plan['parameters']['total'])} ({counts})"
    yield ""
    yield from _memory(plan["bytes_per_device"], plan["fits"])
    yield ""
    yield from _flops(plan)
    if "collectives" in plan:
        yield ""
        yield from _collectives(plan)
    if "bounds_secs" in plan:
        yield ""
        yield from _bounds(plan)
    elif plan["fits"]:
        yield ""
        yield "no bounds on time or cost: these devices have no published peaks"


def _memory(sizes: dict[str, Any], fits: bool) -> Iterator[str]:
    yield "memory per device"
    for kind in KINDS:
        if kind in sizes:
            yield f"  {kind:<12} {gb(sizes[kind]):>10}   {MEANING[kind]}"
    capacity = sizes["capacity"]
    yield f"  {'total':<12} {gb(sizes['total']):>10}" + (f"   of {gb(capacity)}" if capacity else "")
    if not fits:
        yield f"  DOES NOT FIT: {gb(sizes['excess'])} too much"


def _flops(plan: dict[str, Any]) -> Iterator[str]:
    counted, images = plan["flops_per_step"], plan["batch_size"]
    yield (
        f"model FLOPs {counted['model']:.3e} per step, {flops(counted['model'] / images)} per image; "
        f"{(counted['executed'] - counted['augmentation']) / counted['model']:.2f} times that are executed, "
        f"and {flops(counted['augmentation'] / images)} per image for the views"
    )


def _collectives(plan: dict[str, Any]) -> Iterator[str]:
    yield "sent by each device per step       count        bytes   between slices or hosts"
    for kind, row in plan["collectives"].items():
        yield f"  {kind:<30} {row['count']:>7,.0f} {gb(row['bytes']):>12}   {gb(row['far_bytes']):>10}"
    total = plan["collective_bytes"]
    ratio = (
        f", {total['total'] / total['least']:.2f} times the least for weights and gradients" if total["least"] else ""
    )
    yield f"  total {gb(total['total'])}{ratio}"


def _bounds(plan: dict[str, Any]) -> Iterator[str]:
    bounds, run = plan["bounds_secs"], plan["run"]
    parts = ", ".join(f"{name} {short(bounds[name] * 1e3)} ms" for name in ("compute", "memory", "network"))
    yield f"a step takes at least {short(bounds['step'] * 1e3)} ms, by {bounds['by']} ({parts})"
    yield f"  so at most {run['images_per_sec']:,.0f} images/s, and at most {bounds['mfu']:.0%} model FLOPs utilisation"
    cost = f", at least {short(run['cost'])} in the currency of the price" if "cost" in run else ""
    yield f"  {run['steps']:,} steps: at least {short(run['hours'])} h, {short(run['chip_hours'])} chip-hours{cost}"
