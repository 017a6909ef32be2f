"""GLoRI against a reference built by hand from torch.nn modules, same random weights, float32.

The reference follows the published description: post-norm decoder layer without self-attention, one linear unit per
class on [CLS of the last blocks, decoded query]. The journal version's options are compared in our reading of them
(`cxr_jax.heads.glori`): temperatures in an attention written out, merged patches by torch's adaptive pooling.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.heads.glori import GLoRI
from cxr_jax.models.vit import Features

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

WIDTH, BLOCKS, CLASSES, PATCHES, ROWS, DECODER, HEADS, FFN = 32, 4, 6, 25, 3, 48, 8, 64
PYRAMID = (4, 2)


class Reference(torch.nn.Module):
    def __init__(self, concat_cls: bool, journal: bool = False):
        super().__init__()
        self.concat_cls = concat_cls
        self.embed = torch.nn.Linear(BLOCKS * WIDTH, DECODER)
        self.queries = torch.nn.Embedding(CLASSES, DECODER)
        self.attention = torch.nn.MultiheadAttention(DECODER, HEADS, dropout=0.1)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(DECODER, eps=1e-5) for _ in range(3))
        self.inner, self.outer = torch.nn.Linear(DECODER, FFN), torch.nn.Linear(FFN, DECODER)
        self.drop = torch.nn.Dropout(0.1)
        self.units = torch.nn.Parameter(torch.empty(CLASSES, BLOCKS * WIDTH * concat_cls + DECODER, 1))
        self.bias = torch.nn.Parameter(torch.zeros(CLASSES))
        self.pools = [torch.nn.AdaptiveAvgPool2d(side) for side in PYRAMID * journal]
        self.log_temperature = torch.nn.Parameter(torch.empty(CLASSES, HEADS)) if journal else None
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        self.queries.weight.requires_grad_(False)

    def forward(self, cls, patches):
        memory = self.merged(torch.relu(self.embed(torch.cat(list(patches), -1)))).transpose(0, 1)
        x = self.queries.weight[:, None].expand(-1, memory.shape[1], -1)
        x = self.norms[0](x + self.drop(x))
        if self.log_temperature is None:
            attended, weights = self.attention(x, memory, memory, average_attn_weights=False)
        else:
            attended, weights = self.attend_by_hand(x, memory)
        x = self.norms[1](x + self.drop(attended))
        x = self.norms[2](x + self.drop(self.outer(self.drop(torch.relu(self.inner(x))))))
        x = x.transpose(0, 1)
        if self.concat_cls:
            cls = torch.cat(list(cls), -1)
            x = torch.cat([cls[:, None].expand(-1, CLASSES, -1), x], -1)
        return torch.stack([x[:, c] @ self.units[c, :, 0] for c in range(CLASSES)], -1) + self.bias, weights

    def merged(self, memory):
        """`[b, n, w]`, and after it the averages over cells of each pool."""
        side = int(PATCHES**0.5)
        grid = memory.transpose(1, 2).reshape(ROWS, DECODER, side, side)
        return torch.cat([memory, *(pool(grid).flatten(2).transpose(1, 2) for pool in self.pools)], 1)

    def attend_by_hand(self, x, memory):
        """MultiheadAttention in evaluation, each score over exp(log_temperature) of its query and head."""
        split = []
        for i, tokens in enumerate((x, memory, memory)):
            rows = slice(i * DECODER, (i + 1) * DECODER)
            y = tokens @ self.attention.in_proj_weight[rows].T + self.attention.in_proj_bias[rows]
            split.append(y.unflatten(-1, (HEADS, DECODER // HEADS)))
        q, k, v = split
        scores = torch.einsum("cbhe,nbhe->bhcn", q, k) / (DECODER // HEADS) ** 0.5
        weights = (scores / self.log_temperature.exp().T[None, :, :, None]).softmax(-1)
        return self.attention.out_proj(torch.einsum("bhcn,nbhe->cbhe", weights, v).flatten(2)), weights


def to_ours(named: dict[str, np.ndarray]) -> dict:
    """Arrays of the reference (weights, or gradients under the same names) in the layout of our parameters."""
    split = (HEADS, DECODER // HEADS)
    affine = lambda name: {"kernel": named[f"{name}.weight"].T, "bias": named[f"{name}.bias"]}
    attn = {
        "proj": {
            "kernel": named["attention.out_proj.weight"].T.reshape(*split, DECODER),
            "bias": named["attention.out_proj.bias"],
        }
    }
    for i, name in enumerate("qkv"):
        rows = slice(i * DECODER, (i + 1) * DECODER)
        attn[name] = {
            "kernel": named["attention.in_proj_weight"][rows].T.reshape(DECODER, *split),
            "bias": named["attention.in_proj_bias"][rows].reshape(split),
        }
    if "log_temperature" in named:
        attn["log_temperature"] = named["log_temperature"]
    norms = {f"norm{i + 1}": {"scale": named[f"norms.{i}.weight"], "bias": named[f"norms.{i}.bias"]} for i in range(3)}
    return {
        "embed": affine("embed"),
        "queries": named["queries.weight"],
        "attn": attn,
        "mlp": {"w_in": affine("inner"), "w_out": affine("outer")},
        **norms,
        "classifier": {"kernel": named["units"][..., 0], "bias": named["bias"]},
    }


def over_patches(maps):
    """Weights of merged cells shared out among their patches, cell by cell."""
    side, found = int(PATCHES**0.5), maps[..., :PATCHES].clone()
    grid, at = found.unflatten(-1, (side, side)), PATCHES
    for cells in PYRAMID:
        for i in range(cells**2):
            rows, columns = (range(n * side // cells, -(-(n + 1) * side // cells)) for n in (i // cells, i % cells))
            for row in rows:
                for column in columns:
                    grid[..., row, column] += maps[..., at + i] / (len(rows) * len(columns))
        at += cells**2
    return found


@pytest.mark.parametrize(
    ("concat_cls", "journal"), [(True, False), (False, False), (True, True)], ids=["with_cls", "without_cls", "journal"]
)
def test_logits_attention_and_gradients_match_pytorch(concat_cls, journal):
    torch.manual_seed(0)
    reference = Reference(concat_cls, journal).eval()
    cls = torch.randn(BLOCKS, ROWS, WIDTH, requires_grad=True)
    patches = torch.randn(BLOCKS, ROWS, PATCHES, WIDTH, requires_grad=True)
    direction = torch.randn(ROWS, CLASSES)
    expected, maps = reference(cls, patches)
    (expected * direction).sum().backward()

    def make():
        options = {"decoder_width": DECODER, "num_heads": HEADS, "ffn_width": FFN, "concat_cls": concat_cls}
        options |= {"adaptive_temperature": True, "pyramid": PYRAMID} if journal else {}
        return GLoRI(width=WIDTH, num_classes=CLASSES, blocks=BLOCKS, **options, rngs=nnx.Rngs(0))

    graphdef, state = nnx.split(nnx.eval_shape(make))
    params = to_ours({name: value.detach().numpy() for name, value in reference.named_parameters()})
    shapes = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes

    def total(params, cls, patches):
        features = Features(cls, jnp.zeros((BLOCKS, ROWS, 0, WIDTH)), patches)
        head = nnx.merge(graphdef, params)
        logits = head(features)
        return (logits * direction.numpy()).sum(), (logits, head.attention(features))

    inputs = (params, cls.detach().numpy(), patches.detach().numpy())
    gradients, (logits, attention) = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*inputs)
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    maps = maps.detach()
    np.testing.assert_allclose(attention, over_patches(maps) if journal else maps, rtol=1e-5, atol=1e-5)

    zeros = torch.zeros_like(reference.queries.weight)
    named = {name: (zeros if p.grad is None else p.grad).numpy() for name, p in reference.named_parameters()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients[0], to_ours(named))
    np.testing.assert_allclose(gradients[2], patches.grad, rtol=1e-4, atol=1e-4)
    if concat_cls:
        np.testing.assert_allclose(gradients[1], cls.grad, rtol=1e-4, atol=1e-4)


def test_leaving_dropout_on_would_be_seen():
    """The released evaluation code never switches its heads to evaluation; the same forward then differs."""
    torch.manual_seed(0)
    reference = Reference(True)
    inputs = torch.randn(BLOCKS, ROWS, WIDTH), torch.randn(BLOCKS, ROWS, PATCHES, WIDTH)
    trained_mode = [reference.train()(*inputs)[0] for _ in range(2)]
    assert (trained_mode[0] - trained_mode[1]).abs().max() > 0.1
    evaluated = [reference.eval()(*inputs)[0] for _ in range(2)]
    assert torch.equal(*evaluated)
