"""What a conversion says of itself: conversion.json, and the lines that `convert` prints.

In: what was written or read, and the differences that were measured. Out: a dict that goes into JSON, and text.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from cxr_jax.export.layouts import POSITIONS, Target, architecture, bake_positions, fixed_positions
from cxr_jax.models.positions import resize_positions

CLASSES = {
    "dinov2": "DINOv2",
    "chexfound": "CheXFound",
    "timm": "timm",
    "mae": "facebookresearch/mae",
    "cxr_jax": "a run directory",
}


def their_rule(model: dict[str, Any], format: str) -> str:
    """How the layout's own code resizes learned positions unless told otherwise (`models.positions`)."""
    if format == "hf":
        return {"Dinov2WithRegistersModel": "antialias"}.get(architecture(model), "size")
    if format == "dinov2":
        return "antialias" if model["num_registers"] else "offset"
    return {"chexfound": "offset", "timm": "antialias", "mae": "size"}[format]


def position_difference(
    pos_embed: np.ndarray | None, model: dict[str, Any], image_size: int, other: int, format: str = "hf"
) -> float:
    """How far a layout's positions lie from ours at `other` px: rms of the difference over rms of ours.

    Its code resizes the grid written for `image_size`, by its rule; we resize the trained grid, by ours, or compute the
    fixed table anew.
    """
    patch = model["patch_size"]
    if model["positions"] == "sincos":
        ours, baked = (fixed_positions(model, size) for size in (other, image_size))
    else:
        ours, baked = (bake_positions(np.asarray(pos_embed), model, size) for size in (other, image_size))
    grids = image_size // patch, other // patch
    theirs = resize_positions(jnp.asarray(baked), *grids, their_rule(model, format))[1:]
    return float(np.sqrt(np.mean(np.square(theirs - ours[1:])) / np.mean(np.square(ours[1:]))))


def positions_report(flat: dict[str, np.ndarray], model: dict[str, Any], target: Target) -> dict[str, Any]:
    """Where the positions come from, and how far the layout's are from ours at twice the size."""
    kind = model["positions"]
    report = {"kind": kind, "trained_px": model["image_size"], "written_px": target.image_size}
    if kind == "rope":
        return report
    other = 2 * target.image_size
    rms = position_difference(flat.get(POSITIONS), model, target.image_size, other, target.format)
    report["pos_resize"] = model["pos_resize"]
    return report | {
        "their_rule": their_rule(model, target.format),
        "other_px": other,
        "rms_difference_at_other_px": rms,
    }


def _differences(found: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} max {d['max']:.1e} mean {d['mean']:.1e}" for name, d in found.items())


def _unmapped(report: dict[str, Any]) -> str:
    words = [f"{', '.join(names)} of {side}" for side, names in report["unmapped"].items() if names]
    return f"unmapped: {'; '.join(words)} (allowed by --allow)" if words else "unmapped: none of ours, none of theirs"


def describe(report: dict[str, Any], output: Any) -> str:
    """The report as the lines that `convert` prints."""
    tensors, parity = report["tensors"], report["parity"]
    step = "" if report["step"] is None else f", step {report['step']}"
    lines = [f"input: {report['run']}{step}, {report['network']}"]
    if report["assumed"]:
        lines.append(f"assumed: {', '.join(report['assumed'])}; the file does not say (see --help)")
    if report["format"] == "cxr_jax":
        lines.append(f"mapped: {tensors['theirs']} tensors of {report['architecture']} to {tensors['ours']} of ours")
    else:
        lines.append(
            f"mapped: {tensors['ours']} tensors of ours to {tensors['theirs']} of {report['architecture']} "
            f"({report['parameters']:,} parameters, {report['num_channels']} channels)"
        )
    lines.append(_unmapped(report))
    for name, count in report.get("files", {}).items():
        if name == "classifiers.safetensors":
            lines.append(f"classifiers: {name}, {count} tensors, a file of their own as CheXFound has it")
        elif name != "model.safetensors":
            lines.append(
                f"beside: {name}, {count} tensors ({', '.join(report['beside'])}): this layout has no place for them"
            )
    if report["left_out"]:
        lines.append(f"left out: {', '.join(report['left_out'])}; of use to training alone")
    positions = report.get("positions", {})
    if "rms_difference_at_other_px" in positions:
        lines.append(
            f"positions: trained for {positions['trained_px']} px, written for {positions['written_px']} px; "
            f"at {positions['other_px']} px {report['architecture']}'s own resize ({positions['their_rule']}) differs "
            f"by {100 * positions['rms_difference_at_other_px']:.1f} % rms"
        )
    if not parity["checked"]:
        lines.append(f"parity: {parity['reason']}")
    for name, words in (
        ("random", "fixed random input"),
        ("image", "image, same pixels"),
        ("image_through_preprocessor", "image through preprocessor_config.json"),
    ):
        for network, found in parity.get(name, {}).items():
            which = f" ({network})" if len(parity[name]) > 1 else ""
            lines.append(f"parity: {words}{which}: {_differences(found)}")
    return "\n".join([*lines, f"written: {output}"])


def worst(parity: dict[str, Any], name: str) -> tuple[float, str]:
    """The largest difference on one input over all networks, and all of them in words; NaN counts as infinite."""
    found = parity.get(name, {})
    largest = max(
        (d["max"] if np.isfinite(d["max"]) else np.inf for n in found.values() for d in n.values()), default=0.0
    )
    return largest, "; ".join(map(_differences, found.values()))
