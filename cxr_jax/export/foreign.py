"""What a bare PyTorch file is: its layout and the sizes of its network, told from names and shapes.

In: tensors that carry no configuration, and what their user knows of them. Out: a `Recognised`.

Nothing here decides in silence: everything that names and shapes do not say (number of heads, how positions are
resized, normalisation of the input) is a `Hints` field, and what stood in for a missing one is in the report.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cxr_jax.export import channels
from cxr_jax.export.contents import NETWORKS
from cxr_jax.export.layouts import EPSILON, Target
from cxr_jax.export.mapping import Tensors
from cxr_jax.export.rules import LayoutError

HEAD_WIDTH = 64  # of every published ViT but ViT-H
DECODER_HEADS = 16
# Running means of softmax centring, which are no parameters: they start anew.
BUFFERS = ("dino_loss.center", "ibot_patch_loss.center")
POS_RESIZE = {"chexfound": "offset", "timm": "antialias", "mae": "size"}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(?:(\d+)\.)?")


@dataclass(frozen=True)
class Hints:
    """What a file does not say; None where the user does not say it either."""

    format: str | None = None
    num_heads: int | None = None
    decoder_heads: int | None = None
    pos_resize: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Recognised:
    """A file's layout, the arguments of its modules, and what was assumed."""

    target: Target
    model: dict[str, Any]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


def split_networks(tensors: Tensors) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`{"teacher": tensors, "student": tensors}` without their prefixes, and the names of buffers left out.

    A file that names no network holds one, which is called the teacher.
    """
    left = [name for name in BUFFERS if name in tensors]
    own = {name: tensor for name, tensor in tensors.items() if name not in left}
    found = {n: {k.removeprefix(f"{n}."): t for k, t in own.items() if k.startswith(f"{n}.")} for n in NETWORKS}
    found = {network: part for network, part in found.items() if part}
    if not found:
        return {"teacher": own}, left
    stray = [name for name in own if name.split(".")[0] not in NETWORKS]
    if stray:
        raise LayoutError(f"{stray[0]}: belongs neither to teacher nor to student, which this file holds")
    return found, left


def strip_backbone(tensors: Tensors) -> dict[str, Any]:
    """The tensors of a network with those of its backbone under their plain names."""
    return {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}


def detect(names: Iterable[str]) -> str:
    """The format of plain names. Raises LayoutError when they are of none."""
    names = set(names)
    if any(name.startswith(("embeddings.", "encoder.layer.", "vit.embeddings.")) for name in names):
        raise LayoutError("names are those of transformers; give the folder that holds config.json, not its file")
    if "patch_embed.proj.weight" not in names:
        some = ", ".join(sorted(names)[:3])
        raise LayoutError(
            f"tensors are of no layout known here (patch_embed.proj.weight is missing; found {some}, ...); "
            "legal are those of transformers, DINOv2, CheXFound, timm and MAE"
        )
    if "reg_token" in names:
        return "timm"
    if "decoder_pos_embed" in names or any(name.startswith("decoder_") for name in names):
        return "mae"
    if {"mask_token", "register_tokens"} & names or any(".mlp.w12." in name for name in names):
        return "dinov2"
    return "timm"


def recognise(tensors: Tensors, hints: Hints, source: str) -> Recognised:
    """What one network is made of. Raises LayoutError in one line, naming the file."""
    plain = strip_backbone(tensors)
    try:
        format = hints.format or detect(plain)
    except LayoutError as error:
        raise LayoutError(f"{source}: {error}") from None
    depth, chunk = _blocks(plain, source)
    width, num_channels, patch, _ = _shape(plain, "patch_embed.proj.weight", 4, source)
    registers = {"timm": "reg_token"}.get(format, "register_tokens")
    num_registers = _shape(plain, registers, 3, source)[1] if registers in plain else 0
    no_cls = format == "timm" and num_registers
    grid = _grid(_shape(plain, "pos_embed", 3, source)[1] - (not no_cls), source)
    layer = f"blocks.0.{'0.' if chunk else ''}"
    scaled = f"{layer}ls1.gamma" in plain
    gated = f"{layer}mlp.w12.weight" in plain or (
        format == "timm" and f"{layer}mlp.fc1.weight" in plain and plain[f"{layer}mlp.fc1.weight"].shape[0] != 4 * width
    )
    assumed = []
    num_heads = _heads(hints.num_heads, width, "num_heads", assumed, source)
    default_rule = POS_RESIZE.get(format, "antialias" if num_registers else "offset")
    if not hints.pos_resize:
        assumed.append(f"pos_resize={default_rule}")
    mean, std = _normalisation(hints, num_channels, assumed, source)
    model = {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "ffn": "swiglu" if gated else "mlp",
        "num_registers": num_registers,
        "layer_scale": 1e-5 if scaled else None,
        "positions": "learned" if gated or num_registers or scaled else "sincos",
        "pos_resize": hints.pos_resize or default_rule,
        "norm_epsilon": EPSILON,
    }
    options: dict[str, dict[str, Any]] = {}
    if "decoder_embed.weight" in plain:
        options["decoder"] = _decoder(plain, hints, width, patch, assumed, source)
    elif hints.decoder_heads:
        raise LayoutError(f"{source}: holds no decoder; leave --decoder_heads={hints.decoder_heads} out")
    target = Target(format, grid * patch, mean, std, depth // chunk if chunk else 0)
    return Recognised(target, model, options, tuple(assumed))


def _normalisation(
    hints: Hints, num_channels: int, assumed: list[str], source: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The input's mean and standard deviation per channel: ImageNet's for colour unless told, ours for grey."""
    if hints.mean and hints.std:
        if not len(hints.mean) == len(hints.std) == num_channels:
            found = f"--image_mean has {len(hints.mean)} and --image_std {len(hints.std)} numbers"
            raise LayoutError(f"{source}: {found} for {num_channels} channels")
        return hints.mean, hints.std
    colour = num_channels == 3
    assumed.append("normalisation of ImageNet" if colour else "normalisation (x - 0.5) / 0.25")
    if colour:
        return channels.IMAGENET
    return (channels.GREY_MEAN,) * num_channels, (channels.GREY_STD,) * num_channels


def _heads(given: int | None, width: int, key: str, assumed: list[str], source: str, default: int = 0) -> int:
    heads = given or default or width // HEAD_WIDTH
    if not heads or width % heads:
        raise LayoutError(f"{source}: width {width} does not divide into {heads} heads; pass --{key}")
    if not given:
        assumed.append(f"{key}={heads}")
    return heads


def _decoder(plain: Tensors, hints: Hints, encoder_width: int, patch: int, assumed: list[str], source: str):
    width = _shape(plain, "decoder_embed.weight", 2, source)[0]
    layers = [int(name.split(".")[1]) for name in plain if name.startswith("decoder_blocks.")]
    return {
        "encoder_width": encoder_width,
        "patch_size": patch,
        "width": width,
        "depth": 1 + max(layers, default=0),
        "num_heads": _heads(hints.decoder_heads, width, "decoder_heads", assumed, source, DECODER_HEADS),
        "norm_epsilon": EPSILON,
    }


def _blocks(plain: Tensors, source: str) -> tuple[int, int]:
    """Depth, and layers in a chunk, 0 where blocks are not chunked."""
    found = [match for match in map(_BLOCK.match, plain) if match]
    if not found:
        raise LayoutError(f"{source}: 1 missing: blocks.0.norm1.weight")
    if any(match[2] is None for match in found):
        return 1 + max(int(match[1]) for match in found), 0
    depth = 1 + max(int(match[2]) for match in found)
    return depth, 1 + max((int(match[2]) for match in found if match[1] == "0"), default=0)


def _grid(count: int, source: str) -> int:
    grid = round(max(count, 0) ** 0.5)
    if not grid or grid * grid != count:
        raise LayoutError(f"{source}: pos_embed is for {count} patches; legal are square grids")
    return grid


def _shape(plain: Tensors, name: str, ndim: int, source: str) -> tuple[int, ...]:
    if name not in plain:
        raise LayoutError(f"{source}: 1 missing: {name}")
    shape = tuple(plain[name].shape)
    if len(shape) != ndim or not all(shape):
        raise LayoutError(f"{source}: {name}: found shape {shape}; legal have {ndim} axes")
    return shape
