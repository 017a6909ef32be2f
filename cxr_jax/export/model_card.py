"""The README.md of an exported folder: what the weights are, how to feed them, and code that runs.

In: what was converted, and the choices of the conversion. Out: Markdown text. What transformers' preprocessor cannot
express is said here; the code goes through `cxr_torch.py`, which stands beside it and is exact.
"""

import json
from pathlib import PurePath
from typing import Any

from cxr_jax.export.contents import Contents
from cxr_jax.export.folder import Written
from cxr_jax.export.layouts import Target
from cxr_jax.export.report import CLASSES, their_rule

_INEXACT = {
    "pad": (
        "`BitImageProcessor` rounds the shorter side down where we round to the nearest, so padding may be one pixel "
        "off. `max_height` and `max_width` need transformers 5, or `use_fast=True` before."
    ),
    "crop": (
        "`BitImageProcessor` resizes first and cuts the central square afterwards; we cut first. The two differ along "
        "the cut and by a fraction of a pixel inside."
    ),
    "stretch": "`BitImageProcessor` stretches the same way.",
}
_OPENING = {
    "dinov2": (
        "`model.safetensors` holds the names of DINOv2's own code. Of a checkpoint with heads, tensors are called "
        "`backbone.*`, `dino_head.*`, `ibot_head.*`, as under its key `teacher`; alone, a backbone has the plain names "
        "of the published ones (`--parts=backbone`):\n\n"
        "```python\n"
        "from safetensors.torch import load_file\n"
        'state = load_file("model.safetensors")\n'
        "# vit = DinoVisionTransformer(img_size={size}, patch_size={patch}, embed_dim={width}, depth={depth}, "
        'num_heads={heads}, init_values={scale},\n#     ffn_layer="{ffn}", block_chunks={chunks}, num_register_tokens='
        "{registers}, interpolate_antialias={antialias}, interpolate_offset={offset})\n"
        'prefix = "backbone."\n'
        'state = {{name.removeprefix(prefix): t for name, t in state.items() if not name.startswith(("dino_head", '
        '"ibot_head"))}}\n'
        "```\n"
    ),
    "timm": '`timm.create_model("local-dir:FOLDER", pretrained=True)` opens this folder.\n',
    "mae": "`model.safetensors` holds the names of facebookresearch/mae: `MaskedAutoencoderViT.load_state_dict`.\n",
}
_HF = """import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

import cxr_torch  # of this folder

folder = "."  # this folder
grey = np.array(Image.open("chest_xray.png").convert("L"))
model = AutoModel.from_pretrained(folder).eval()
with torch.no_grad():
    pixels = cxr_torch.preprocess(grey, folder)
    cls, registers, patches = cxr_torch.tokens_of(model, pixels, blocks=1)
"""
_OWN = """import numpy as np
import torch
from PIL import Image

import cxr_torch  # of this folder

folder = "."  # this folder
grey = np.array(Image.open("chest_xray.png").convert("L"))
model = cxr_torch.load_backbone(folder)
with torch.no_grad():
    pixels = cxr_torch.preprocess(grey, folder)
    cls, registers, patches = model(pixels, blocks=1)
"""


def example(format: str, rates: list[float] | None = None) -> str:
    """Runnable code: exact preprocessing, tokens, and with `rates` (of a fine-tuned run) probabilities by class."""
    code = _HF if format == "hf" else _OWN
    if rates is None:
        return code + "cls_token, patch_tokens = cls[-1], patches[-1]\n"
    rate = f", learning_rate={rates[0]:g}" if len(rates) > 1 else ""
    code = code.replace("model = ", f"head = cxr_torch.load_head(folder{rate})\nmodel = ").replace(
        "blocks=1", "blocks=head.blocks"
    )
    return code + (
        "    probabilities = head(cls, patches).sigmoid()[0]\n"
        "for name, probability in zip(head.targets, probabilities):\n"
        '    print(f"{name}: {probability:.3f}")\n'
    )


def _opening(model: dict[str, Any], target: Target) -> str:
    """How the layout's own code opens the weights."""
    text = _OPENING.get("dinov2" if target.format == "chexfound" else target.format, "")
    if target.format not in ("dinov2", "chexfound"):
        return text
    rule = model["pos_resize"]
    return text.format(
        size=target.image_size,
        patch=model["patch_size"],
        width=model["width"],
        depth=model["depth"],
        heads=model["num_heads"],
        scale=model["layer_scale"],
        ffn="swiglufused" if model["ffn"] == "swiglu" else "mlp",
        chunks=target.block_chunks,
        registers=model["num_registers"],
        antialias=rule == "antialias",
        offset=0.1 if rule == "offset" else 0.0,
    )


def _channels(target: Target) -> str:
    if target.num_channels == 1:
        return "One grey channel, as trained."
    return (
        "The model was trained on one grey channel. Its patch embedding is split into three channels by the shares "
        "(1/2, 1/4, 1/4): a grey picture repeated three times gives the same features. Colour pictures were never seen."
    )


def _positions(model: dict[str, Any], target: Target) -> str:
    if model["positions"] == "rope":
        return "Positions are rotary: any size that the patch divides."
    size = target.image_size
    if model["positions"] == "sincos":
        return (
            f"Positions are a fixed table of sines and cosines, written for {size} px. For another size convert again."
        )
    written = (
        f"Position embeddings are those of training, for {size} px."
        if size == model["image_size"]
        else f"Position embeddings were resized from {model['image_size']} px to {size} px by the model's own "
        f"rule (`{model['pos_resize']}`)."
    )
    name, rule = CLASSES.get(target.format, "transformers"), their_rule(model, target.format)
    if rule == model["pos_resize"]:
        return f"{written} At any other size {name} resizes them as training does (`{rule}`)."
    return (
        f"{written} At any other size {name} resizes them by its own rule (`{rule}`), which is not the one of "
        "training; `conversion.json` holds the difference. For another size, convert again with `--image_size`."
    )


def _parts(written: Written, target: Target) -> str:
    beside = [name for name in written.files if name != "model.safetensors"]
    if not beside:
        return "Everything that the run kept of this network is in `model.safetensors`."
    words = {
        "classifiers.safetensors": "holds the classifiers, one per learning rate, as CheXFound keeps them",
        "heads.safetensors": f"holds what this layout has no place for: {', '.join(written.beside)}",
    }
    return " ".join(f"`{name}` {words[name]}." for name in beside)


def model_card(contents: Contents, target: Target, kind: str, written: Written) -> str:
    """The whole README.md. `kind` is the class or the project whose names the weights have."""
    model, geometry, facts = contents.model, contents.geometry, contents.facts
    scale = "none" if model["layer_scale"] is None else f"{model['layer_scale']} at the start"
    rates = facts.get("learning_rates") if "head" in contents.options else None
    grey = " It takes grey pictures from transformers 5 on." if target.num_channels == 1 else ""
    near = (
        "\n- `cxr_torch.preprocess` is exact. `preprocessor_config.json` is the nearest that transformers has: it "
        f"resizes in 8 bits.\n  {_INEXACT[geometry.fit]}{grey}"
        if target.format == "hf"
        else "\n- `cxr_torch.preprocess` is exact."
    )
    library = {"hf": "library_name: transformers\n", "timm": "library_name: timm\n"}.get(target.format, "")
    head = ""
    if rates is not None:
        options = contents.options["head"]
        head = f"| head | {options['name']}, classes {', '.join(facts['targets'])} |\n"
    constants = f"(x / 255 - {_constant(target.mean)}) / {_constant(target.std)}"
    config = json.dumps(_without_directories(facts.get("config") or {}), indent=2)
    return f"""---
{library}pipeline_tag: image-feature-extraction
tags: [chest-x-ray, self-supervised, vit]
---

# {facts["run"]}, step {facts["step"]}, {facts["network"]}

A Vision Transformer for chest X-rays, trained with cxr_jax and converted from its checkpoint.

| | |
|---|---|
| run | `{facts["run"]}` |
| step | {facts["step"]} |
| network | {facts["network"]} |
| objective | {facts.get("objective") or "not recorded"} |
| data fingerprint | `{facts.get("fingerprint") or "not recorded"}` |
| architecture | ViT, width {model["width"]}, depth {model["depth"]}, {model["num_heads"]} heads, \
{model["patch_size"]} px patches, {model["num_registers"]} registers, {model["ffn"]} feed-forward, \
LayerScale {scale}, LayerNorm epsilon {model["norm_epsilon"]} |
| weights | as {kind} names them |
| input | {target.image_size} x {target.image_size} px, fit `{geometry.fit}`, {constants} |
{head}
Not for clinical use. The weights know only the pictures they were trained on, with the labels and errors of those sets.

## Use

In this folder, or with it on the path (`cxr_torch.py` needs torch and nothing else):

```python
{example(target.format, rates)}```

Tokens are those after the final norm, with a leading axis of blocks, the last block last; patches go row by row.

{_opening(model, target)}
## What travels and what does not

- {_channels(target)}
- {_positions(model, target)}{near}
- {_parts(written, target)}
- `conversion.json` says what was mapped and, where PyTorch was at hand, how far this folder's features differ.

## Training configuration

```json
{config}
```
"""


def _constant(values: tuple[float, ...]) -> Any:
    """One number where all channels share it."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _without_directories(value):
    """The config with absolute paths cut to their last part: a card is published, a file system is not."""
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_directories(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
