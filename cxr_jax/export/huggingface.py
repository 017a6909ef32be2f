"""transformers' config.json for a backbone of ours, and the arguments of our `ViT` from such a file.

In: the arguments of `ViT`, of a MAE decoder if there is one, and the evaluation geometry. Out: what
`transformers.AutoModel.from_pretrained` opens as

    Dinov2WithRegistersModel, Dinov2Model      learned positions, with and without registers
    DINOv3ViTModel                             rotary positions
    ViTMAEForPreTraining, ViTMAEModel          fixed positions, with and without the decoder

and the same way back. Neither torch nor transformers is needed to write or read.
"""

import json
from pathlib import Path
from typing import Any

from cxr_jax.export import checked
from cxr_jax.export.contents import Geometry
from cxr_jax.export.foreign import Hints
from cxr_jax.export.layouts import architecture
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.rope import BASE

# How transformers resizes learned positions where the size is not the folder's.
HF_RULE = {"Dinov2WithRegistersModel": "antialias"}
_TYPES = {
    "Dinov2WithRegistersModel": "dinov2_with_registers",
    "Dinov2Model": "dinov2",
    "DINOv3ViTModel": "dinov3_vit",
    "ViTMAEForPreTraining": "vit_mae",
    "ViTMAEModel": "vit_mae",
}
# transformers' defaults of keys that a config.json may leave out.
_DEFAULT_EPSILON = {"dinov2": 1e-6, "dinov2_with_registers": 1e-6, "dinov3_vit": 1e-5, "vit_mae": 1e-12}
_PILLOW_BICUBIC = 3
PREPROCESSOR = "preprocessor_config.json"


def inner_width(model: dict[str, Any]) -> int:
    """Width inside the feed-forward: 4d, or two thirds of it rounded up to 8 where it is gated."""
    wide = 4 * model["width"]
    return (wide * 2 // 3 + 7) // 8 * 8 if model["ffn"] == "swiglu" else wide


def config_json(
    model: dict[str, Any],
    *,
    image_size: int,
    num_channels: int,
    geometry: Geometry,
    decoder: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """transformers' config.json. The key `cxr_jax` keeps what transformers has no field for."""
    name = architecture(model, decoder is not None)
    config = {
        "architectures": [name],
        "model_type": _TYPES[name],
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": model["norm_epsilon"],
        "image_size": image_size,
        "patch_size": model["patch_size"],
        "num_channels": num_channels,
        "dtype": "float32",
    }
    scale = 1.0 if model["layer_scale"] is None else model["layer_scale"]
    if name == "DINOv3ViTModel":
        biased = {f"{part}_bias": True for part in ("query", "key", "value", "proj", "mlp")}
        gated = model["ffn"] == "swiglu"
        config |= biased | {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu"}
        config |= {"intermediate_size": inner_width(model), "layerscale_value": scale, "rope_theta": BASE}
        config |= {"num_register_tokens": model["num_registers"], "attention_dropout": 0.0, "drop_path_rate": 0.0}
    else:
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "qkv_bias": True}
    if name.startswith("ViTMAE"):
        config |= {"intermediate_size": inner_width(model), "mask_ratio": 0.75, "norm_pix_loss": True}
        if decoder:
            config |= {
                "decoder_hidden_size": decoder["width"],
                "decoder_num_hidden_layers": decoder["depth"],
                "decoder_num_attention_heads": decoder["num_heads"],
                "decoder_intermediate_size": 4 * decoder["width"],
            }
    if name.startswith("Dinov2"):
        config |= {"mlp_ratio": 4, "drop_path_rate": 0.0, "layerscale_value": scale}
        config["use_swiglu_ffn"] = model["ffn"] == "swiglu"
        if model["num_registers"]:
            config["num_register_tokens"] = model["num_registers"]
    extra = {name: model[name] for name in ("layer_scale", "positions", "pos_resize")}
    return config | {"cxr_jax": {"format": "hf", **extra, "fit": geometry.fit}}


def model_from_config(config: dict[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """transformers' config.json -> the arguments of `ViT`, and those of a decoder by part.

    Raises LayoutError naming a key that is absent, or that we cannot reproduce.
    """
    kind = config.get("model_type")
    gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
    legal: dict[str, tuple] = {
        "model_type": tuple(dict.fromkeys(_TYPES.values())),
        "hidden_act": ("gelu", "silu") if gated else ("gelu",),
    }
    if kind in ("dinov2", "dinov2_with_registers"):
        legal |= {"mlp_ratio": (4,), "qkv_bias": (True,), "use_mask_token": (True,)}
    if kind == "dinov3_vit":
        legal |= {f"{part}_bias": (True,) for part in ("query", "value", "proj", "mlp")}
        legal["rope_theta"] = (BASE,)
    if kind == "vit_mae":
        legal["qkv_bias"] = (True,)
    for key, values in legal.items():
        checked.one_of(file, key, config.get(key, values[0]), values)
    sizes = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }
    absent = [key for key in ("model_type", *sizes.values()) if config.get(key) is None]
    if absent:
        raise LayoutError(f"{file}: {absent[0]} is missing")
    registers = config.get("num_register_tokens", 4 if kind == "dinov2_with_registers" else 0)
    extra = config.get("cxr_jax", {})
    mae = kind == "vit_mae"
    positions = {"dinov3_vit": ("rope",), "vit_mae": ("sincos", "learned")}.get(kind, ("learned", "sincos"))
    model = {ours: config[theirs] for ours, theirs in sizes.items()}
    model |= {
        "ffn": "swiglu" if gated else "mlp",
        "num_registers": registers if kind in ("dinov2_with_registers", "dinov3_vit") else 0,
        "layer_scale": None if mae else extra.get("layer_scale", config.get("layerscale_value", 1.0)),
        "positions": extra.get("positions", positions[0]),
        "pos_resize": extra.get("pos_resize", HF_RULE.get("Dinov2WithRegistersModel") if registers else "size"),
        "norm_epsilon": config.get("layer_norm_eps", _DEFAULT_EPSILON[kind]),
    }
    called = {key: f"cxr_jax.{key}" if key in extra else key for key in ("layer_scale", "positions", "pos_resize")}
    if called["layer_scale"] == "layer_scale":
        called["layer_scale"] = "layerscale_value"
    called |= {"num_registers": "num_register_tokens", "norm_epsilon": "layer_norm_eps"}
    checked.model(file, model, sizes | called)
    checked.one_of(file, called["positions"], model["positions"], positions)
    if mae:
        checked.whole(file, "decoder_hidden_size", config.get("decoder_hidden_size", 512))
    for part in ("hidden_size", "decoder_hidden_size") if mae else ("hidden_size",):
        _check_inner(config, part, inner_width(model) if part == "hidden_size" else 4 * config.get(part, 512), file)
    options = {}
    if not isinstance(config.get("architectures"), list | None):
        raise LayoutError(f"{file}: architectures={config['architectures']!r}; legal are lists of class names")
    if mae and "ViTMAEForPreTraining" in (config.get("architectures") or ["ViTMAEForPreTraining"]):
        options["decoder"] = {
            "encoder_width": model["width"],
            "patch_size": model["patch_size"],
            "width": config.get("decoder_hidden_size", 512),
            "depth": config.get("decoder_num_hidden_layers", 8),
            "num_heads": config.get("decoder_num_attention_heads", 16),
            "norm_epsilon": model["norm_epsilon"],
        }
        names = {"width": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
        checked.decoder(file, options["decoder"], {ours: f"decoder_{theirs}" for ours, theirs in names.items()})
    return model, options


def _check_inner(config: dict[str, Any], part: str, legal: int, file: Path) -> None:
    key = part.replace("hidden_size", "intermediate_size")
    if config.get(key, legal) != legal:
        raise LayoutError(f"{file}: {key}={config[key]!r}; legal is {legal}, which our feed-forward of this width has")


def preprocessor_json(
    geometry: Geometry, *, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """preprocessor_config.json, a BitImageProcessor: the nearest that transformers has to our geometry.

    It resizes in 8 bits, rounds sides down, and cuts after resizing where we cut before; the model card carries
    the exact code. `mean` and `std` have a number per channel.
    """
    side = {"height": image_size, "width": image_size}
    size = {
        "stretch": side,
        "crop": {"shortest_edge": image_size},
        "pad": {"max_height": image_size, "max_width": image_size},
    }[geometry.fit]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "size": size,
        "resample": _PILLOW_BICUBIC,
        # A centre crop of a smaller image pads it with black, before normalisation: our `pad`.
        "do_center_crop": geometry.fit != "stretch",
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def normalisation(folder: Path, config: dict[str, Any], hints: Hints) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of a folder of transformers, from its preprocessor or from the user."""
    file, given = folder / PREPROCESSOR, (hints.mean, hints.std)
    checked.whole(folder / "config.json", "num_channels", config.get("num_channels", 3))
    if not file.exists():
        if not all(given):
            raise LayoutError(
                f"{file}: no such file, so nothing says what pixels the model expects; pass --image_mean and "
                "--image_std, for example --image_mean=0.485,0.456,0.406 --image_std=0.229,0.224,0.225"
            )
        said, where = dict(zip(("image_mean", "image_std"), given, strict=True)), "--input"
    else:
        said, where = read_json(file), file
    for key in ("image_mean", "image_std"):
        count = config.get("num_channels", 3)
        checked.numbers(where, key, said.get(key), count, least=0.0 if key == "image_std" else None)
    return tuple(map(float, said["image_mean"])), tuple(map(float, said["image_std"]))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises LayoutError naming the file."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LayoutError(f"{file}: not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise LayoutError(f"{file}: expected a JSON object")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Indented, with a last newline."""
    file.write_text(json.dumps(content, indent=2) + "\n")
