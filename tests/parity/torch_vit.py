"""The reference of the layouts whose own code cannot be installed here: DINOv2, CheXFound and MAE, in plain PyTorch.

Written from the published architectures, with the parameter names of their code: a pre-norm ViT, blocks in chunks or
not, registers after the positions are added; DINOHead with torch's own weight norm; CheXFound's classifiers on torch's
MultiheadAttention; MAE's encoder and decoder.
"""

import torch
import torch.nn.functional as F
from torch import nn


def block(width, heads, *, gated=False, scaled=False):
    module = nn.Module()
    module.norm1, module.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    module.attn, module.mlp = nn.Module(), nn.Module()
    module.attn.qkv, module.attn.proj, module.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
    if gated:
        inner = (int(4 * width * 2 / 3) + 7) // 8 * 8
        module.mlp.w12, module.mlp.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
    else:
        module.mlp.fc1, module.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    for name in ("ls1", "ls2") if scaled else ():
        setattr(module, name, nn.Module())
        getattr(module, name).gamma = nn.Parameter(torch.ones(width))
    return module


def apply_block(module, x):
    rows, tokens, width = x.shape
    q, k, v = module.attn.qkv(module.norm1(x)).chunk(3, dim=-1)
    q, k, v = (part.view(rows, tokens, module.heads, -1).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    y = module.attn.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, width))
    x = x + (module.ls1.gamma * y if hasattr(module, "ls1") else y)
    if hasattr(module.mlp, "w12"):
        a, b = module.mlp.w12(module.norm2(x)).chunk(2, dim=-1)
        y = module.mlp.w3(F.silu(a) * b)
    else:
        y = module.mlp.fc2(F.gelu(module.mlp.fc1(module.norm2(x))))
    return x + (module.ls2.gamma * y if hasattr(module, "ls2") else y)


class DinoVisionTransformer(nn.Module):
    """DINOv2's backbone; `offset` 0 resizes positions to a size, with or without antialiasing."""

    def __init__(self, model, channels=3, chunks=0, offset=0.1, antialias=False):
        super().__init__()
        width, patch, depth = model["width"], model["patch_size"], model["depth"]
        self.patch, self.offset, self.antialias = patch, offset, antialias
        self.registers = model["num_registers"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (model["image_size"] // patch) ** 2, width))
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, self.registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, stride=patch)
        options = {"gated": model["ffn"] == "swiglu", "scaled": model["layer_scale"] is not None}
        blocks = [block(width, model["num_heads"], **options) for _ in range(depth)]
        if chunks:
            # A chunk keeps the places of the layers before it with modules that have no parameters.
            size = depth // chunks
            places = [[nn.Identity()] * i + blocks[i : i + size] for i in range(0, depth, size)]
            self.blocks = nn.ModuleList(nn.ModuleList(chunk) for chunk in places)
        else:
            self.blocks = nn.ModuleList(blocks)
        self.layers = lambda: blocks
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, grid):
        old = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if grid == old:
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        to = {"scale_factor": ((grid + self.offset) / old,) * 2} if self.offset else {"size": (grid, grid)}
        table = F.interpolate(table, mode="bicubic", antialias=self.antialias, **to)
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)

    def forward(self, x, count=1):
        """CLS, registers and patches of the last `count` blocks, each through the norm."""
        grid, rows = x.shape[-1] // self.patch, len(x)
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(rows, -1, -1), x], dim=1) + self.positions(grid)
        if self.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(rows, -1, -1), x[:, 1:]], dim=1)
        outputs = []
        for layer in self.layers():
            x = apply_block(layer, x)
            outputs.append(self.norm(x))
        tokens = torch.stack(outputs[-count:])
        first = 1 + self.registers
        return tokens[:, :, 0], tokens[:, :, 1:first], tokens[:, :, first:]


class DINOHead(nn.Module):
    def __init__(self, width, hidden, bottleneck, num_prototypes):
        super().__init__()
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = torch.nn.utils.weight_norm(nn.Linear(bottleneck, num_prototypes, bias=False))

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


class GLoRI(nn.Module):
    """CheXFound's classifier with a query per class."""

    def __init__(self, inputs, classes, width, heads, ffn, concat_cls):
        super().__init__()
        self.concat_cls, self.decoder = concat_cls, nn.Module()
        layer = nn.Module()
        layer.multihead_attn = nn.MultiheadAttention(width, heads, dropout=0.1)
        layer.linear1, layer.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        layer.norm1, layer.norm2, layer.norm3 = (nn.LayerNorm(width, eps=1e-5) for _ in range(3))
        self.decoder.layers = nn.ModuleList([layer])
        self.decoder.embed_standart = nn.Linear(inputs, width)
        self.decoder.query_embed = nn.Embedding(classes, width)
        self.decoder.duplicate_pooling = nn.Parameter(torch.zeros(classes, width + inputs * concat_cls, 1))
        self.decoder.duplicate_pooling_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, cls, patches):
        (layer,) = self.decoder.layers
        memory = self.decoder.embed_standart(torch.cat(tuple(patches), -1)).relu().transpose(0, 1)
        x = self.decoder.query_embed.weight[:, None].expand(-1, memory.shape[1], -1)
        x = layer.norm1(2 * x)
        x = layer.norm2(x + layer.multihead_attn(x, memory, memory)[0])
        x = layer.norm3(x + layer.linear2(layer.linear1(x).relu())).transpose(0, 1)
        if self.concat_cls:
            x = torch.cat([torch.cat(tuple(cls), -1)[:, None].expand(-1, x.shape[1], -1), x], -1)
        units = [x[:, i] @ self.decoder.duplicate_pooling[i] for i in range(x.shape[1])]
        return torch.cat(units, -1) + self.decoder.duplicate_pooling_bias


class MaskedAutoencoderViT(nn.Module):
    """facebookresearch/mae: encoder of visible patches, decoder of all."""

    def __init__(self, model, decoder, channels=3):
        super().__init__()
        width, patch, grid = model["width"], model["patch_size"], model["image_size"] // model["patch_size"]
        inner = decoder["width"]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.blocks = nn.ModuleList(block(width, model["num_heads"]) for _ in range(model["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed, self.mask_token = nn.Linear(width, inner), nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, inner))
        self.decoder_blocks = nn.ModuleList(block(inner, decoder["num_heads"]) for _ in range(decoder["depth"]))
        self.decoder_norm = nn.LayerNorm(inner, eps=1e-6)
        self.decoder_pred = nn.Linear(inner, patch**2 * channels)

    def encode(self, x, keep):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.gather(x, 1, keep[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for layer in self.blocks:
            x = apply_block(layer, x)
        return self.norm(x)

    def decode(self, x, restore):
        """`restore[i]` is where patch i stands among the visible ones followed by the hidden ones."""
        x = self.decoder_embed(x)
        hidden = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = torch.gather(patches, 1, restore[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for layer in self.decoder_blocks:
            x = apply_block(layer, x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]
