"""The README.md of an exported folder: what the weights are, how to feed them, and code that runs.

In: the run's meta item and the choices of the conversion. Out: Markdown text. What transformers' preprocessor cannot
express is said here, and the exact preprocessing is given as code.
"""

import json
from pathlib import PurePath

from cxr_jax.export.huggingface import Geometry

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
_TARGETS = {
    "pad": "    out = [max(round(side * SIZE / max(height, width)), 1) for side in (height, width)]\n",
    "crop": (
        "    short = min(height, width)\n"
        "    top, left = (height - short) // 2, (width - short) // 2\n"
        "    x, out = x[..., top : top + short, left : left + short], (SIZE, SIZE)\n"
    ),
    "stretch": "    out = (SIZE, SIZE)\n",
}


def example(geometry: Geometry, *, image_size: int, num_channels: int) -> str:
    """Runnable code: exact preprocessing in torch, then the three kinds of tokens."""
    return f'''import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel

SIZE, MEAN, STD = {image_size}, {geometry.mean}, {geometry.std}


def preprocess(image):
    """A PIL image -> normalised pixels [1, {num_channels}, SIZE, SIZE]; fit = {geometry.fit}."""
    x = torch.from_numpy(np.array(image.convert("L"), np.float32))[None, None] / 255
    height, width = x.shape[-2:]
{_TARGETS[geometry.fit]}    x = F.interpolate(x, size=tuple(out), mode="bicubic", antialias=True).clamp(0, 1)
    y0, x0 = (SIZE - out[0]) // 2, (SIZE - out[1]) // 2
    x = F.pad(x, (x0, SIZE - out[1] - x0, y0, SIZE - out[0] - y0))
    return ((x - MEAN) / STD).expand(-1, {num_channels}, -1, -1)


folder = "."  # this folder
image = Image.open("chest_xray.png")
model = AutoModel.from_pretrained(folder).eval()
with torch.no_grad():
    tokens = model(preprocess(image)).last_hidden_state
registers = getattr(model.config, "num_register_tokens", 0)
cls_token, register_tokens, patch_tokens = tokens.split([1, registers, tokens.shape[1] - 1 - registers], dim=1)
'''


def model_card(
    meta: dict, model: dict, geometry: Geometry, *, run: str, network: str, image_size: int, num_channels: int
) -> str:
    """The whole README.md. `run` is the name of the run directory, `network` is `teacher` or `student`."""
    layer_scale = "none" if model["layer_scale"] is None else f"{model['layer_scale']} at the start"
    channels = (
        "The model was trained on one grey channel. Its patch embedding is split into three channels by the shares "
        "(1/2, 1/4, 1/4): a grey picture repeated three times gives the same features. Colour pictures were never seen."
        if num_channels == 3
        else "One grey channel, as trained."
    )
    positions = (
        f"Position embeddings are those of training, for {image_size} px."
        if image_size == model["image_size"]
        else f"Position embeddings were resized from {model['image_size']} px to {image_size} px by the model's own "
        f"rule (`{model['pos_resize']}`)."
    )
    grey = " It takes grey pictures from transformers 5 on." if num_channels == 1 else ""
    config = json.dumps(_without_directories(meta.get("config", {})), indent=2)
    return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [chest-x-ray, self-supervised, vit]
---

# {run}, step {meta.get("step")}, {network}

A Vision Transformer for chest X-rays, trained with cxr_jax and converted from its checkpoint.

| | |
|---|---|
| run | `{run}` |
| step | {meta.get("step")} |
| network | {network} |
| objective | {meta.get("objective", "not recorded")} |
| data fingerprint | `{meta.get("fingerprint", "not recorded")}` |
| architecture | ViT, width {model["width"]}, depth {model["depth"]}, {model["num_heads"]} heads, \
{model["patch_size"]} px patches, {model["num_registers"]} registers, {model["ffn"]} feed-forward, \
LayerScale {layer_scale} |
| input | {image_size} x {image_size} px, fit `{geometry.fit}`, (x / 255 - {geometry.mean}) / {geometry.std} |

Not for clinical use. The weights know only the pictures they were trained on, with the labels and errors of those sets.

## Use

```python
{example(geometry, image_size=image_size, num_channels=num_channels)}```

`last_hidden_state` is CLS, registers, patches (row by row), after the final norm.

## What travels and what does not

- {channels}
- {positions} At any other size transformers resizes them by its own rule, which is not the one of training;
  `conversion.json` holds the difference. For another size, convert again with `--image_size`.
- `preprocess` above is exact. `preprocessor_config.json` is the nearest that transformers has: it resizes in 8 bits.
  {_INEXACT[geometry.fit]}{grey}
- Projection heads, decoders and classifiers have no place in this layout and are not here.
- `conversion.json` says what was mapped and, where PyTorch was at hand, how far this folder's features differ.

## Training configuration

```json
{config}
```
"""


def _without_directories(value):
    """The config with absolute paths cut to their last part: a card is published, a file system is not."""
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_directories(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
