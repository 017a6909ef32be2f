"""A Hugging Face folder from a backbone, and a backbone from such a folder.

In: our backbone (nested dict of arrays), the model's arguments, the evaluation geometry. Out: config.json,
preprocessor_config.json and model.safetensors that `transformers.AutoModel.from_pretrained` opens as
Dinov2WithRegistersModel, or as Dinov2Model when there are no registers; and the same way back.
Neither torch nor transformers is needed to write or read.

Two things change on the way. Channels: one grey channel becomes three by `channels.split_channels` (default), or stays
one. Positions: transformers resizes them by a rule of its own (`HF_RULE`), so the grid is resized here by the model's
own rule to the image size asked for, where transformers then has nothing to resize.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cxr_jax.export.channels import GREY_MEAN, GREY_STD, fold_channels, split_channels
from cxr_jax.export.names import Dims, flatten, from_layout, hugging_face, to_layout, unflatten
from cxr_jax.export.ours import parameter_shapes
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.positions import resize_positions

HF_RULE = {"Dinov2WithRegistersModel": "antialias", "Dinov2Model": "size"}
_PATCH = ("backbone/patch_embed/kernel", "backbone/patch_embed/bias")
_PILLOW_BICUBIC = 3


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes an input: `fit`, side in px, and mean and standard deviation of 0..1 grey values."""

    fit: str
    image_size: int
    mean: float = GREY_MEAN
    std: float = GREY_STD


def architecture(model: dict) -> str:
    """The transformers class that holds `model` (arguments of `ViT`)."""
    return "Dinov2WithRegistersModel" if model["num_registers"] else "Dinov2Model"


def dims_of(model: dict) -> Dims:
    return Dims(model["depth"], model["width"], model["num_heads"], model["patch_size"])


def bake_positions(pos_embed: np.ndarray, model: dict, image_size: int) -> np.ndarray:
    """`[1 + n, d]` for the model's image size -> `[1 + m, d]` for `image_size`, by the model's own rule.

    The same size is returned unchanged. Raises ValueError when the patch size does not divide `image_size`.
    """
    patch = model["patch_size"]
    if image_size % patch or image_size <= 0:
        raise ValueError(f"image_size={image_size}: must be a positive multiple of the patch size {patch}")
    if image_size == model["image_size"]:
        return pos_embed
    grids = model["image_size"] // patch, image_size // patch
    return np.asarray(resize_positions(jnp.asarray(pos_embed), *grids, model["pos_resize"]))


def position_difference(pos_embed: np.ndarray, model: dict, image_size: int, other: int) -> float:
    """How far transformers' positions lie from ours at `other` px: rms of the difference over rms of ours.

    transformers resizes the grid baked for `image_size`, by its rule; we resize the trained grid, by ours.
    """
    patch = model["patch_size"]
    ours = bake_positions(pos_embed, model, other)[1:]
    baked = jnp.asarray(bake_positions(pos_embed, model, image_size))
    theirs = resize_positions(baked, image_size // patch, other // patch, HF_RULE[architecture(model)])[1:]
    return float(np.sqrt(np.mean(np.square(theirs - ours)) / np.mean(np.square(ours))))


def to_state_dict(
    backbone: dict, model: dict, *, image_size: int, num_channels: int, geometry: Geometry
) -> dict[str, np.ndarray]:
    """Our backbone -> transformers' tensors, float32.

    The input normalisation stays ours, the same in every channel, so that the split changes no bias.
    Raises LayoutError for a parameter that the layout does not hold, ValueError for an illegal size.
    """
    flat = {f"backbone/{path}": np.asarray(a, np.float32) for path, a in flatten(backbone).items()}
    flat["backbone/pos_embed"] = bake_positions(flat["backbone/pos_embed"], model, image_size)
    kernel, bias = (flat[path] for path in _PATCH)
    flat[_PATCH[0]], flat[_PATCH[1]] = split_channels(
        kernel,
        bias,
        mean=(geometry.mean,) * num_channels,
        std=(geometry.std,) * num_channels,
        our_mean=geometry.mean,
        our_std=geometry.std,
    )
    layout = hugging_face(ffn=model["ffn"], registers=bool(model["num_registers"]))
    return to_layout(flat, layout, dims_of(model))


def config_json(model: dict, *, image_size: int, num_channels: int, geometry: Geometry) -> dict:
    """transformers' config.json. The key `cxr_jax` keeps what transformers has no field for."""
    name = architecture(model)
    config = {
        "architectures": [name],
        "model_type": "dinov2_with_registers" if model["num_registers"] else "dinov2",
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0 if model["layer_scale"] is None else model["layer_scale"],
        "qkv_bias": True,
        "use_swiglu_ffn": model["ffn"] == "swiglu",
        "image_size": image_size,
        "patch_size": model["patch_size"],
        "num_channels": num_channels,
        "dtype": "float32",
        "cxr_jax": {"layer_scale": model["layer_scale"], "pos_resize": model["pos_resize"], "fit": geometry.fit},
    }
    if model["num_registers"]:
        config["num_register_tokens"] = model["num_registers"]
    return config


def preprocessor_json(geometry: Geometry, *, image_size: int, num_channels: int) -> dict:
    """preprocessor_config.json, a BitImageProcessor: the nearest that transformers has to our geometry.

    It resizes in 8 bits, rounds sides down, and cuts after resizing where we cut before; the model card carries
    the exact code.
    """
    side = {"height": image_size, "width": image_size}
    size = {
        "stretch": side,
        "crop": {"shortest_edge": image_size},
        "pad": {"max_height": image_size, "max_width": image_size},
    }[geometry.fit]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": num_channels == 3,
        "do_resize": True,
        "size": size,
        "resample": _PILLOW_BICUBIC,
        # A centre crop of a smaller image pads it with black, before normalisation: our `pad`.
        "do_center_crop": geometry.fit != "stretch",
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [geometry.mean] * num_channels,
        "image_std": [geometry.std] * num_channels,
    }


def write_folder(
    folder: Path, backbone: dict, model: dict, *, image_size: int, num_channels: int, geometry: Geometry
) -> dict[str, np.ndarray]:
    """Write config.json, preprocessor_config.json and model.safetensors into `folder`; returns the tensors."""
    options = {"image_size": image_size, "num_channels": num_channels, "geometry": geometry}
    tensors = to_state_dict(backbone, model, **options)
    _write_json(folder / "config.json", config_json(model, **options))
    preprocessor = preprocessor_json(geometry, image_size=image_size, num_channels=num_channels)
    _write_json(folder / "preprocessor_config.json", preprocessor)
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner only; the weights are to be as readable as the files beside them.
    file.chmod((folder / "config.json").stat().st_mode)
    return tensors


def read_folder(folder: Path) -> tuple[dict, dict]:
    """A Hugging Face folder -> our backbone (nested dict, one grey channel) and the arguments of `ViT`.

    Positions keep the folder's grid. Channels are folded with the folder's image_mean and image_std.
    Raises LayoutError naming the file and what is wrong with it.
    """
    config = _read_json(folder / "config.json")
    preprocessor = _read_json(folder / "preprocessor_config.json")
    model = model_from_config(config, folder / "config.json")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise LayoutError(f"{folder / 'model.safetensors'}: not a readable safetensors file ({error})") from error
    layout = hugging_face(ffn=model["ffn"], registers=bool(model["num_registers"]))
    expected = parameter_shapes(model)
    expected[_PATCH[0]] = (config.get("num_channels", 3), *expected[_PATCH[0]])
    flat = from_layout(tensors, layout, dims_of(model), expected)
    flat[_PATCH[0]], flat[_PATCH[1]] = fold_channels(
        *(flat[path] for path in _PATCH), mean=preprocessor["image_mean"], std=preprocessor["image_std"]
    )
    return unflatten(flat)["backbone"], model


def model_from_config(config: dict, file: Path) -> dict:
    """transformers' config.json -> the arguments of `ViT`. Raises LayoutError naming a key we cannot reproduce."""
    legal = {
        "model_type": ("dinov2", "dinov2_with_registers"),
        "mlp_ratio": (4,),
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-6,),
        "qkv_bias": (True,),
        "use_mask_token": (True,),
    }
    for key, values in legal.items():
        if config.get(key, values[0]) not in values:
            raise LayoutError(f"{file}: {key}={config[key]!r}; legal are {', '.join(map(str, values))}")
    registers = config["model_type"] == "dinov2_with_registers"
    extra = config.get("cxr_jax", {})
    return {
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "ffn": "swiglu" if config.get("use_swiglu_ffn", False) else "mlp",
        "num_registers": config.get("num_register_tokens", 4) if registers else 0,
        "layer_scale": extra.get("layer_scale", config.get("layerscale_value", 1.0)),
        "pos_resize": extra.get("pos_resize", "antialias" if registers else "size"),
    }


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LayoutError(f"{file}: not a readable JSON file ({error})") from error
