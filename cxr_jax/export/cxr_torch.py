"""Weights exported by cxr_jax, in PyTorch: backbone, head, and the exact preprocessing. Needs torch and nothing else.

This file stands beside the weights that it opens:

    import cxr_torch
    backbone, head = cxr_torch.load_backbone("."), cxr_torch.load_head(".")
    pixels = cxr_torch.preprocess(grey, ".")                      # uint8 tensor [H, W] -> [1, C, S, S]
    cls, registers, patches = backbone(pixels, blocks=head.blocks)
    probabilities = head(cls, patches).sigmoid()                  # [1, classes], named by head.targets

`load_backbone` opens the layouts whose names are DINOv2's, CheXFound's, timm's or MAE's. A folder in transformers'
layout is opened by `transformers.AutoModel`; `tokens_of` gives its tokens as the head reads them.

All modules are for inference: there is no dropout.
"""

import json
import math
import mmap
import re
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def read_safetensors(path):
    """The tensors of a .safetensors file by name, mapped from the disk, and its metadata (strings)."""
    with Path(path).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        # A private map: what is written to a tensor never reaches the file.
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        count, offset = (end - start) // 4, 8 + length + start
        flat = torch.frombuffer(buffer, dtype=torch.float32, count=count, offset=offset) if count else torch.empty(0)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors, metadata


def remarks(folder):
    """What cxr_jax noted in a folder's config.json."""
    return json.loads((Path(folder) / "config.json").read_text())["cxr_jax"]


def preprocess(grey, folder, size=None):
    """A grey picture, uint8 `[H, W]` -> normalised pixels `[1, C, S, S]`, exactly as in training's evaluation."""
    noted = remarks(folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    if "mean" in noted:
        mean, std = noted["mean"], noted["std"]
    else:
        processor = json.loads((Path(folder) / "preprocessor_config.json").read_text())
        mean, std = processor["image_mean"], processor["image_std"]
    size = size or (noted["model"]["image_size"] if "model" in noted else config["image_size"])
    x = torch.as_tensor(grey, dtype=torch.float32)[None, None] / 255
    height, width = x.shape[-2:]
    out = (size, size)
    if noted["fit"] == "pad":
        out = tuple(max(round(side * size / max(height, width)), 1) for side in (height, width))
    elif noted["fit"] == "crop":
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        x = x[..., top : top + short, left : left + short]
    x = F.interpolate(x, size=out, mode="bicubic", antialias=True).clamp(0, 1)
    y0, x0 = (size - out[0]) // 2, (size - out[1]) // 2
    x = F.pad(x, (x0, size - out[1] - x0, y0, size - out[0] - y0))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (x - mean) / std


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, model):
        super().__init__()
        width, epsilon = model["width"], model["norm_epsilon"]
        scale = (lambda: nn.Identity()) if model["layer_scale"] is None else (lambda: LayerScale(width))
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, epsilon), Attention(width, model["num_heads"]), scale()
        self.norm2, self.ls2 = nn.LayerNorm(width, epsilon), scale()
        self.mlp = SwiGLU(width) if model["ffn"] == "swiglu" else Mlp(width)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Backbone(nn.Module):
    """A Vision Transformer under DINOv2's names; `model` and `num_channels` as config.json notes them."""

    def __init__(self, model, num_channels):
        super().__init__()
        width, patch = model["width"], model["patch_size"]
        self.model, self.grid = model, model["image_size"] // patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(num_channels, width, patch, patch)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, model["num_registers"], width))
        self.blocks = nn.ModuleList(Block(model) for _ in range(model["depth"]))
        self.norm = nn.LayerNorm(width, model["norm_epsilon"])

    def positions(self, grid):
        """Position embeddings of another grid, by the rule of training."""
        if grid == self.grid:
            return self.pos_embed
        rule, old = self.model["pos_resize"], self.pos_embed[:, 1:]
        if self.model["positions"] != "learned":
            raise ValueError(f"the table of fixed positions is for {self.grid} x {self.grid} patches; convert again")
        old = old.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        ratio = (grid + 0.1) / self.grid
        to = {"scale_factor": (ratio, ratio)} if rule == "offset" else {"size": (grid, grid)}
        new = F.interpolate(old, mode="bicubic", antialias=rule == "antialias", **to)
        return torch.cat([self.pos_embed[:, :1], new.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixels, blocks=1):
        """`[b, C, S, S]` -> CLS `[blocks, b, d]`, registers, patches `[blocks, b, n, d]` of the last blocks, normed."""
        grid = pixels.shape[-1] // self.model["patch_size"]
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        positions = self.positions(grid)
        rows = len(x)
        first = (self.cls_token + positions[:, :1]).expand(rows, -1, -1)
        x = torch.cat([first, self.register_tokens.expand(rows, -1, -1), x + positions[:, 1:]], dim=1)
        kept = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - blocks:
                kept.append(self.norm(x))
        return _split(torch.stack(kept), self.model["num_registers"])


def _split(tokens, registers):
    return tokens[:, :, 0], tokens[:, :, 1 : 1 + registers], tokens[:, :, 1 + registers :]


def load_backbone(folder, network=None):
    """The backbone of a folder in DINOv2's, CheXFound's, timm's or MAE's layout, in evaluation mode.

    `network` is `teacher` or `student` where the folder holds both; the teacher unless said.
    """
    tensors, _ = read_safetensors(Path(folder) / "model.safetensors")
    return build_backbone(tensors, remarks(folder), network)


def build_backbone(tensors, noted, network=None):
    """A backbone from tensors of one of these layouts and what config.json notes of them."""
    if len(noted["networks"]) > 1:
        prefix = f"{network or 'teacher'}."
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name.removeprefix("backbone."))
        if noted["format"] == "timm":
            name = name.replace("reg_token", "register_tokens")
            if noted["model"]["ffn"] == "swiglu":
                name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        found[name] = tensor
    with torch.device("meta"):
        backbone = Backbone(noted["model"], len(noted["mean"]))
    if found["pos_embed"].shape[1] < backbone.pos_embed.shape[1]:
        # timm with registers: CLS already holds its position.
        found["pos_embed"] = torch.cat([torch.zeros_like(found["cls_token"]), found["pos_embed"]], dim=1)
    for absent in ("mask_token", "register_tokens"):
        if absent not in found or absent == "mask_token":
            found[absent] = torch.zeros(getattr(backbone, absent).shape)
    own = backbone.state_dict().keys()
    backbone.load_state_dict({name: tensor for name, tensor in found.items() if name in own}, assign=True)
    return backbone.eval()


def tokens_of(model, pixels, blocks=1):
    """CLS, registers and patches of the last blocks of one of transformers' models, each through the final norm."""
    norm = model.layernorm if hasattr(model, "layernorm") else model.norm
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    kept = []

    def keep(module, inputs, output):
        kept.append(norm(output if torch.is_tensor(output) else output[0]))

    hooks = [layer.register_forward_hook(keep) for layer in layers[0][-blocks:]]
    extra = {}
    if model.config.model_type == "vit_mae":
        # No patch is hidden, and none is shuffled.
        model.config.mask_ratio = 0.0
        count = (pixels.shape[-1] // model.config.patch_size) ** 2
        extra["noise"] = torch.arange(count, dtype=torch.float32).expand(len(pixels), -1)
    try:
        model(pixels, **extra)
    finally:
        for hook in hooks:
            hook.remove()
    return _split(torch.stack(kept), getattr(model.config, "num_register_tokens", 0))


class Linear(nn.Module):
    """One affine map on the CLS tokens of the last blocks, and on the mean patch if the head was trained so."""

    def __init__(self, options):
        super().__init__()
        self.blocks, self.mean_patch = options["blocks"], options.get("mean_patch", False)
        self.linear = nn.Linear(options["width"] * (self.blocks + self.mean_patch), options["num_classes"])

    def forward(self, cls, patches):
        x = torch.cat(list(cls[-self.blocks :]), dim=-1)
        return self.linear(torch.cat([x, patches[-1].mean(1)], dim=-1) if self.mean_patch else x)


class GLoRI(nn.Module):
    """Global and local representations integration: a query per class reads the patches of the last blocks."""

    def __init__(self, options):
        super().__init__()
        self.blocks, self.concat_cls = options["blocks"], options["concat_cls"]
        width, classes = options["decoder_width"], options["num_classes"]
        inputs = options["width"] * self.blocks
        layer = nn.Module()
        layer.multihead_attn = nn.MultiheadAttention(width, options["num_heads"], batch_first=True)
        layer.linear1, layer.linear2 = nn.Linear(width, options["ffn_width"]), nn.Linear(options["ffn_width"], width)
        layer.norm1, layer.norm2, layer.norm3 = (nn.LayerNorm(width, 1e-5) for _ in range(3))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList([layer])
        self.decoder.embed_standart = nn.Linear(inputs, width)
        self.decoder.query_embed = nn.Embedding(classes, width)
        self.decoder.duplicate_pooling = nn.Parameter(torch.zeros(classes, inputs * self.concat_cls + width, 1))
        self.decoder.duplicate_pooling_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, cls, patches):
        return self.with_attention(cls, patches)[0]

    def with_attention(self, cls, patches):
        """Logits `[b, c]`, and where every class looks: `[b, heads, c, n]`, summing to 1 over the patches."""
        (layer,) = self.decoder.layers
        memory = F.relu(self.decoder.embed_standart(torch.cat(list(patches[-self.blocks :]), dim=-1)))
        query = self.decoder.query_embed.weight[None].expand(len(memory), -1, -1)
        x = layer.norm1(query + query)
        read, maps = layer.multihead_attn(x, memory, memory, average_attn_weights=False)
        x = layer.norm2(x + read)
        x = layer.norm3(x + layer.linear2(F.relu(layer.linear1(x))))
        if self.concat_cls:
            whole = torch.cat(list(cls[-self.blocks :]), dim=-1)
            x = torch.cat([whole[:, None].expand(-1, x.shape[1], -1), x], dim=-1)
        logits = torch.einsum("bcw,cw->bc", x, self.decoder.duplicate_pooling[..., 0])
        return logits + self.decoder.duplicate_pooling_bias, maps


def load_head(folder, learning_rate=None):
    """The fine-tuned head of a folder, in evaluation mode; `targets` names its classes.

    In CheXFound's layout there is one per learning rate, of which `learning_rate` names one.
    """
    folder, prefix = Path(folder), "head."
    grid = folder / "classifiers.safetensors"
    tensors, metadata = read_safetensors(grid if grid.exists() else folder / "heads.safetensors")
    noted = json.loads(metadata["cxr_jax"])
    if grid.exists():
        rates = {name: float(re.search(r"lr=(\d+_\d+)", name)[1].replace("_", ".")) for name in tensors}
        legal = sorted(set(rates.values()))
        near = [name for name, rate in rates.items() if math.isclose(rate, learning_rate or legal[0], rel_tol=1e-6)]
        if not near or (learning_rate is None and len(legal) > 1):
            raise ValueError(f"learning_rate={learning_rate}: legal are {', '.join(f'{rate:g}' for rate in legal)}")
        prefix = ".".join(near[0].split(".")[:2]) + "."
    options = noted["options"]["head"]
    head = (GLoRI if options["name"] == "glori" else Linear)(options)
    head.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    head.targets = noted.get("targets", [])
    return head.eval()
