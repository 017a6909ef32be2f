"""A step of DINO + iBOT + KoLeo written by hand in PyTorch from the published formulas.

In: our parameters as a flat dict of torch tensors (`backbone/blocks/attn/qkv/kernel`, ... in our shapes, so that
gradients come back in our shapes too), crops, masks and the rows that drop path keeps. Out: the loss and its terms.
Everything is the plain way: convolution for patches, loops over crops and pairs, no grouping tricks.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def affine(p, name, x, outputs=None):
    """`x W + b` with our kernel `[in..., out...]`, flattened to `[in, out]`."""
    bias = p[f"{name}/bias"].reshape(-1)
    return F.linear(x, p[f"{name}/kernel"].reshape(x.shape[-1], -1).T, bias)


def layer(p, index):
    """Parameters of block `index` under `backbone/blocks/`."""
    prefix = "backbone/blocks/"
    return {name.removeprefix(prefix): value[index] for name, value in p.items() if name.startswith(prefix)}


def attention(p, x, num_heads):
    rows, tokens, width = x.shape
    qkv = affine(p, "attn/qkv", x).reshape(rows, tokens, 3, num_heads, width // num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // num_heads), -1)
    return affine(p, "attn/proj", (weights @ v).transpose(1, 2).reshape(rows, tokens, width))


def ffn(p, x, kind):
    hidden = affine(p, "mlp/w_in", x)
    if kind == "swiglu":
        gate, value = hidden.chunk(2, -1)
        return affine(p, "mlp/w_out", F.silu(gate) * value)
    return affine(p, "mlp/w_out", F.gelu(hidden))


def norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)


def drop_add(x, branch, kept):
    """`x + branch(x)` on the rows `kept` only, scaled by rows / kept; None keeps all."""
    if kept is None:
        return x + branch(x)
    return x.index_add(0, kept, branch(x[kept]) * (len(x) / len(kept)))


def backbone(p, images, model, mask=None, kept=None):
    """`(cls [b, d], patches [b, n, d])`; `kept[layer][0 or 1]` are the rows of attention and feed-forward."""
    side, width = model["patch_size"], model["width"]
    p_root = {name.removeprefix("backbone/"): value for name, value in p.items()}
    kernel = p_root["patch_embed/kernel"].T.reshape(width, 1, side, side)
    x = F.conv2d(images[:, None], kernel, p_root["patch_embed/bias"], stride=side)
    grid_out, grid_in = x.shape[-1], model["image_size"] // side
    x = x.flatten(2).transpose(1, 2)
    if mask is not None:
        x = torch.where(mask[:, :, None], p_root["mask_token"], x)
    pos = p_root["pos_embed"]
    if grid_in != grid_out:
        grid = pos[1:].reshape(1, grid_in, grid_in, width).permute(0, 3, 1, 2)
        factor = float(grid_out + 0.1) / grid_in
        grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
        assert grid.shape[-1] == grid_out
        pos = torch.cat([pos[:1], grid.permute(0, 2, 3, 1).reshape(-1, width)])
    cls = p_root["cls_token"].expand(len(x), 1, -1)
    x = torch.cat([cls, x], 1) + pos
    registers = p_root["register_tokens"].expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    for i in range(model["depth"]):
        q = layer(p, i)
        rows = (None, None) if kept is None else kept[i]
        x = drop_add(
            x, lambda y, q=q: q["layer_scale1"] * attention(q, norm(q, "norm1", y), model["num_heads"]), rows[0]
        )
        x = drop_add(x, lambda y, q=q: q["layer_scale2"] * ffn(q, norm(q, "norm2", y), model["ffn"]), rows[1])
    x = norm(p_root, "norm", x)
    return x[:, 0], x[:, 1 + model["num_registers"] :]


def head(p, name, x):
    for hidden in ("hidden1", "hidden2"):
        x = F.gelu(affine(p, f"{name}/{hidden}", x))
    x = F.normalize(affine(p, f"{name}/bottleneck", x), dim=-1, eps=1e-12)
    v, g = p[f"{name}/prototypes/v"].T, p[f"{name}/prototypes/g"][:, None]
    return F.linear(x, g * v / v.norm(dim=1, keepdim=True))


def sinkhorn(logits, temperature):
    """DINOv2's `sinkhorn_knopp_teacher` on one process."""
    q = torch.exp(logits / temperature).T
    prototypes, rows = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / rows
    return (q * rows).T


def cross_entropy(target, logits, temperature):
    return -(target * F.log_softmax(logits / temperature, -1)).sum(-1)


def koleo(cls):
    """Kozachenko-Leonenko loss of `[images, d]`."""
    x = F.normalize(cls, dim=-1, eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    distance = torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[nearest])
    return -torch.log(distance + 1e-8).mean()


def loss_terms(student, teacher, views, kept, objective, assign):
    """All terms by loops. `assign(name, logits)` turns teacher logits into probabilities."""
    global_crops, local_crops, mask = views
    model, images = objective.model, len(global_crops) // 2
    num_local = len(local_crops) // images
    with torch.no_grad():
        cls, patches = backbone(teacher, global_crops, model)
        teacher_dino = assign("dino_head", head(teacher, "dino_head", cls)).reshape(images, 2, -1)
        teacher_ibot = assign("ibot_head", head(teacher, "ibot_head", patches[mask]))
    cls, patches = backbone(student, global_crops, model, mask, kept[0])
    cls_local, _ = backbone(student, local_crops, model, None, kept[1])
    student_global = head(student, "dino_head", cls).reshape(images, 2, -1)
    student_local = head(student, "dino_head", cls_local).reshape(images, num_local, -1)
    student_ibot = head(student, "ibot_head", patches[mask])
    temperature, terms = objective.student_temperature, 2 * num_local + 2

    local = sum(
        cross_entropy(teacher_dino[:, t], student_local[:, s], temperature).mean() / terms
        for t in range(2)
        for s in range(num_local)
    )
    crossed = sum(
        cross_entropy(teacher_dino[:, t], student_global[:, s], temperature).mean() / terms
        for t in range(2)
        for s in range(2)
        if t != s
    )
    ibot, start = 0.0, 0
    for hidden in mask.sum(1).tolist():
        rows = slice(start, start + hidden)
        if hidden:
            ibot = ibot + cross_entropy(teacher_ibot[rows], student_ibot[rows], temperature).mean() / len(mask)
        start += hidden
    size = objective.group_size
    by_crop = cls.reshape(images, 2, -1)
    groups = [by_crop[i : i + size, c] for c in range(2) for i in range(0, images, size)]
    spread = sum(koleo(group) for group in groups) / (images // size)
    total = objective.dino_weight * (local + crossed) + objective.ibot_weight * ibot + objective.koleo_weight * spread
    return {
        "loss": total,
        "dino_local_loss": local,
        "dino_global_loss": crossed,
        "ibot_loss": ibot,
        "koleo_loss": spread,
    }


def to_torch(flat, grad=False):
    """Arrays to torch tensors of the same dtype, as leaves."""
    return {name: torch.tensor(np.asarray(value), requires_grad=grad) for name, value in flat.items()}
