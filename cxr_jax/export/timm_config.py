"""timm's config.json: what `timm.create_model("local-dir:FOLDER")` builds, and what such a file says of weights.

In: the arguments of our `ViT` and the target. Out: timm's own words for them. An architecture of timm lends its class;
its sizes are all overridden by `model_args`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cxr_jax.export import checked
from cxr_jax.export.foreign import Hints
from cxr_jax.export.layouts import Target

# Whose defaults differ only in what a JSON file cannot say: the gated feed-forward, registers apart from positions.
_ARCHITECTURES = {
    ("mlp", False): "vit_large_patch14_dinov2",
    ("mlp", True): "vit_large_patch14_reg4_dinov2",
    ("swiglu", False): "vit_giant_patch14_dinov2",
    ("swiglu", True): "vit_giant_patch14_reg4_dinov2",
}


def config_json(model: dict[str, Any], target: Target) -> dict[str, Any]:
    """timm's config.json for a backbone without a classifier."""
    width = model["width"]
    inner = (4 * width * 2 // 3 + 7) // 8 * 8
    return {
        "architecture": _ARCHITECTURES[model["ffn"], bool(model["num_registers"])],
        "num_classes": 0,
        "num_features": width,
        "global_pool": "token",
        "model_args": {
            "img_size": target.image_size,
            "patch_size": model["patch_size"],
            "in_chans": target.num_channels,
            "embed_dim": width,
            "depth": model["depth"],
            "num_heads": model["num_heads"],
            # timm rounds ratio x width down.
            "mlp_ratio": (2 * inner + 0.5) / width if model["ffn"] == "swiglu" else 4.0,
            # timm reads None as its own default; 0 stands for no LayerScale.
            "init_values": model["layer_scale"] or 0,
            **({"reg_tokens": model["num_registers"]} if model["num_registers"] else {}),
        },
        "pretrained_cfg": {
            "input_size": [target.num_channels, target.image_size, target.image_size],
            "mean": list(target.mean),
            "std": list(target.std),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def hints(config: dict[str, Any], given: Hints, file: Path) -> Hints:
    """What a timm folder of somebody else says of its weights, where the user does not say otherwise.

    Raises LayoutError naming `file` and the key of a value that is not what timm writes.
    """
    said = config.get("pretrained_cfg") or {}
    arguments = config.get("model_args") or {}
    checked.mapping(file, "pretrained_cfg", said)
    checked.mapping(file, "model_args", arguments)
    if arguments.get("num_heads") is not None:
        checked.whole(file, "model_args.num_heads", arguments["num_heads"])
    for key, least in (("mean", None), ("std", 0.0)):
        if key in said:
            checked.numbers(file, f"pretrained_cfg.{key}", said[key], least=least)
    return replace(
        given,
        format=given.format or "timm",
        num_heads=given.num_heads or arguments.get("num_heads"),
        mean=given.mean or (tuple(map(float, said["mean"])) if "mean" in said else None),
        std=given.std or (tuple(map(float, said["std"])) if "std" in said else None),
    )
