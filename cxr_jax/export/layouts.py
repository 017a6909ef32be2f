"""The layouts: which parts of a network each one holds, under which names, and in which geometry.

In: one network of ours as flat parameters. Out: the tensors of a layout, and those which it cannot hold and which go
beside them; and the same way back. `names` says what tensors are called; here is what is not a mere name:

    channels      one grey channel becomes C (`channels`), in the patch embedding and in what a MAE decoder paints
    positions     a learned grid is resized by the model's own rule to the image size asked for; a fixed one
                  (`positions="sincos"`), which we compute, is written as a table, and a table that is that very one is
                  not read as learned
    timm          with registers, CLS and its position are one tensor
    MAE, timm     have no mask token
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from cxr_jax.export import names
from cxr_jax.export.channels import GREY_MEAN, GREY_STD, fold_channels, fold_pixels, split_channels, split_pixels
from cxr_jax.export.contents import PROJECTION_HEADS
from cxr_jax.export.heads import projection_tables
from cxr_jax.export.mapping import Dims, Flat, Table
from cxr_jax.export.ours import parameter_shapes
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.positions import resize_positions, sincos_positions

HOLDS = {
    "hf": ("backbone", "decoder"),
    "dinov2": ("backbone", *PROJECTION_HEADS),
    "chexfound": ("backbone", *PROJECTION_HEADS),
    "timm": ("backbone",),
    "mae": ("backbone", "decoder"),
}
FORMATS = tuple(HOLDS)
# Layouts whose own code has an epsilon of its own, and can be told none.
EPSILON = 1e-6
FIXED_EPSILON = ("dinov2", "chexfound", "timm", "mae")
MASK_TOKEN, CLS, POSITIONS = "backbone/mask_token", "backbone/cls_token", "backbone/pos_embed"
REGISTERS = "backbone/register_tokens"


@dataclass(frozen=True)
class Target:
    """The layout to write or to read: `format`, channels and their normalisation, and the size of positions in px."""

    format: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    block_chunks: int = 0

    @property
    def num_channels(self) -> int:
        return len(self.mean)


def is_mae(model: dict[str, Any]) -> bool:
    """Whether `model` is the plain ViT of MAE, which has an MLP and neither registers nor LayerScale."""
    return model["ffn"] == "mlp" and not model["num_registers"] and model["layer_scale"] is None


def architecture(model: dict[str, Any], decoder: bool = False) -> str:
    """The transformers class that holds `model` (arguments of `ViT`), with or without a MAE decoder."""
    if model["positions"] == "rope":
        return "DINOv3ViTModel"
    if decoder or (model["positions"] == "sincos" and is_mae(model)):
        return "ViTMAEForPreTraining" if decoder else "ViTMAEModel"
    return "Dinov2WithRegistersModel" if model["num_registers"] else "Dinov2Model"


def check_model(model: dict[str, Any], format: str) -> None:
    """Raise LayoutError naming the argument of `ViT` that a layout cannot express."""
    found = {name: model[name] for name in ("positions", "ffn", "num_registers", "layer_scale", "norm_epsilon")}
    legal: dict[str, tuple] = {}
    if format != "hf":
        legal["positions"] = ("learned", "sincos")
    if format == "mae":
        legal |= {"ffn": ("mlp",), "num_registers": (0,), "layer_scale": (None,)}
    if format in FIXED_EPSILON:
        legal["norm_epsilon"] = (EPSILON,)
    for name, values in legal.items():
        if found[name] not in values:
            words = ", ".join(map(repr, values))
            raise LayoutError(
                f"model.{name}={found[name]!r} cannot be written as --format={format}; it holds {words}"
                + ("; positions='rope' can be written as --format=hf" if found[name] == "rope" else "")
            )


def dims_of(model: dict[str, Any], chunk: int = 0) -> Dims:
    """The sizes of a backbone; `chunk` layers in a chunk."""
    return Dims(model["depth"], model["width"], model["num_heads"], model["patch_size"], chunk)


def decoder_dims(options: dict[str, Any]) -> Dims:
    """The sizes of a MAE decoder."""
    return Dims(options["depth"], options["width"], options["num_heads"], options["patch_size"])


def backbone_table(model: dict[str, Any], target: Target, decoder: bool) -> Table:
    """The names of the backbone in a layout."""
    ffn, registers, scaled = model["ffn"], bool(model["num_registers"]), model["layer_scale"] is not None
    chunk = 0
    if target.format == "hf":
        name = architecture(model, decoder)
        if name == "DINOv3ViTModel":
            entries = names.dinov3(ffn=ffn, registers=True)
        elif name.startswith("ViTMAE"):
            entries = names.vit_mae(prefix="vit." if decoder else "")
        else:
            entries = names.hugging_face(ffn=ffn, registers=registers)
    elif target.format == "timm":
        reg = "reg_token" if registers else None
        entries = names.vit(ffn=ffn, registers=reg, layer_scale=scaled, mask_token=False, inner=("fc1", "fc2"))
    elif target.format == "mae":
        entries = names.vit(ffn="mlp", registers=None, layer_scale=False, mask_token=False)
    else:
        chunk = _chunk(model["depth"], target.block_chunks)
        reg = "register_tokens" if registers else None
        entries = names.vit(ffn=ffn, registers=reg, layer_scale=scaled, mask_token=True, chunked=bool(chunk))
    return Table(entries, dims_of(model, chunk))


def _chunk(depth: int, block_chunks: int) -> int:
    """Layers in a chunk; DINOv2 cuts its blocks into chunks of `depth // block_chunks`."""
    if block_chunks < 0 or block_chunks > depth:
        raise LayoutError(f"--block_chunks={block_chunks}: legal are 0, for none, up to the depth {depth}")
    return depth // block_chunks if block_chunks else 0


def tables(parts: list[str], model: dict[str, Any], options: dict[str, Any], target: Target) -> tuple[Table, ...]:
    """The tables of `parts` that a layout holds."""
    decoder = "decoder" in parts
    found = [backbone_table(model, target, decoder)] if "backbone" in parts else []
    if decoder:
        entries = names.vit_mae_decoder() if target.format == "hf" else names.mae_decoder()
        found.append(Table(entries, decoder_dims(options["decoder"])))
    prefix = "backbone." if _in_modules(parts, target.format) else ""
    found = [table.under(theirs=prefix) for table in found]
    return (*found, *projection_tables([part for part in PROJECTION_HEADS if part in parts]))


def _in_modules(parts: list[str], format: str) -> bool:
    """Whether DINOv2 calls the backbone `backbone.`: in a checkpoint with heads, but not where it is alone."""
    return format in ("dinov2", "chexfound") and any(part in parts for part in PROJECTION_HEADS)


def bake_positions(pos_embed: np.ndarray, model: dict[str, Any], image_size: int) -> np.ndarray:
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


def fixed_positions(model: dict[str, Any], image_size: int, width: int | None = None) -> np.ndarray:
    """The sine-cosine table of `image_size`, float32."""
    return sincos_positions(image_size // model["patch_size"], width or model["width"]).astype(np.float32)


def dress(
    flat: Flat,
    model: dict[str, Any],
    options: dict[str, Any],
    target: Target,
    *,
    our_mean: float = GREY_MEAN,
    our_std: float = GREY_STD,
) -> tuple[Flat, Flat]:
    """Our network in the geometry of a layout, and what the layout has no place for.

    Parts that the layout does not hold are among the latter.
    """
    beside = {path: leaf for path, leaf in flat.items() if path.split("/")[0] not in HOLDS[target.format]}
    flat = {path: leaf for path, leaf in flat.items() if path not in beside}
    if model["positions"] == "learned":
        flat[POSITIONS] = bake_positions(flat[POSITIONS], model, target.image_size)
    elif model["positions"] == "sincos":
        flat[POSITIONS] = fixed_positions(model, target.image_size)
    normalised = {"mean": target.mean, "std": target.std, "our_mean": our_mean, "our_std": our_std}
    flat.update(zip(names.PATCH, split_channels(*(flat[p] for p in names.PATCH), **normalised), strict=True))
    if names.PIXELS[0] in flat:
        for path in names.PIXELS:
            flat[path] = split_pixels(flat[path], target.num_channels)
        flat[names.DECODER_POSITIONS] = fixed_positions(model, target.image_size, options["decoder"]["width"])
    name = architecture(model, names.PIXELS[0] in flat) if target.format == "hf" else ""
    if target.format in ("timm", "mae") or name.startswith("ViTMAE"):
        beside[MASK_TOKEN] = flat.pop(MASK_TOKEN)
    if target.format == "timm" and REGISTERS in flat:
        positions = flat[POSITIONS]
        flat[CLS], flat[POSITIONS] = flat[CLS] + positions[0], positions[1:]
    if name == "DINOv3ViTModel" and REGISTERS not in flat:
        flat[REGISTERS] = np.zeros((0, model["width"]), np.float32)
    return flat, beside


def undress(
    flat: Flat, model: dict[str, Any], options: dict[str, Any], target: Target, source: str
) -> tuple[Flat, dict[str, Any]]:
    """A layout's network as ours, and the arguments of `ViT` as they turned out to be."""
    flat, model = dict(flat), dict(model)
    if target.format == "timm" and REGISTERS in flat:
        # Their CLS token already holds its position.
        flat[POSITIONS] = np.concatenate([np.zeros((1, model["width"]), np.float32), flat[POSITIONS]])
    if REGISTERS in flat and not len(flat[REGISTERS]):
        del flat[REGISTERS]
    folded = fold_channels(*(flat[path] for path in names.PATCH), mean=target.mean, std=target.std)
    flat.update(zip(names.PATCH, folded, strict=True))
    if model["positions"] == "sincos":
        table = flat.pop(POSITIONS)
        if not _same_table(table, fixed_positions(model, model["image_size"])):
            flat[POSITIONS], model["positions"] = table, "learned"
    if names.PIXELS[0] in flat:
        for path in names.PIXELS:
            flat[path] = fold_pixels(flat[path])
        table = flat.pop(names.DECODER_POSITIONS)
        if not _same_table(table, fixed_positions(model, model["image_size"], options["decoder"]["width"])):
            raise LayoutError(f"{source}: decoder_pos_embed is not the fixed table of MAE, which our decoder computes")
    if MASK_TOKEN not in flat:
        flat[MASK_TOKEN] = np.zeros((model["width"],), np.float32)
    return flat, model


def _same_table(found: np.ndarray, fixed: np.ndarray) -> bool:
    # Float32 tables of different makers differ in the last bits of sines of large angles.
    return found.shape == fixed.shape and bool(np.allclose(found, fixed, rtol=0, atol=1e-4))


def expected_shapes(
    parts: tuple[str, ...], model: dict[str, Any], options: dict[str, Any], target: Target
) -> dict[str, tuple[int, ...]]:
    """The shapes of `parts` as they lie in a layout, channels and positions included."""
    shapes = parameter_shapes({part: model if part == "backbone" else options[part] for part in parts})
    width, channels = model["width"], target.num_channels
    shapes[names.PATCH[0]] = (channels, *shapes[names.PATCH[0]])
    grid = (target.image_size // model["patch_size"]) ** 2
    if model["positions"] != "rope":
        shapes[POSITIONS] = (grid + (not (target.format == "timm" and model["num_registers"])), width)
    elif not model["num_registers"]:
        shapes[REGISTERS] = (0, width)
    if "decoder" in parts:
        pixels = model["patch_size"] ** 2
        shapes[names.PIXELS[0]] = (options["decoder"]["width"], channels, pixels)
        shapes[names.PIXELS[1]] = (channels, pixels)
        shapes[names.DECODER_POSITIONS] = (grid + 1, options["decoder"]["width"])
    name = architecture(model, "decoder" in parts) if target.format == "hf" else ""
    if target.format in ("timm", "mae") or name.startswith("ViTMAE"):
        del shapes[MASK_TOKEN]
    return shapes
