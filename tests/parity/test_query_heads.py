"""ML-Decoder and the attentive probe against torch.nn modules with the same random weights, float32.

ML-Decoder: a `torch.nn.TransformerDecoderLayer`'s parts without self-attention, and a group fully-connected map. The
attentive probe: `torch.nn.MultiheadAttention` whose memory is wider than its query, between two LayerNorms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.heads.attentive import AttentiveProbe
from cxr_jax.heads.ml_decoder import MLDecoder
from cxr_jax.models.vit import Features

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

WIDTH, BLOCKS, CLASSES, GROUPS, PATCHES, ROWS, DECODER, HEADS, FFN = 32, 2, 7, 3, 9, 3, 48, 4, 64
EACH = 3  # ceil(7 / 3)


class ReferenceDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(BLOCKS * WIDTH, DECODER)
        self.queries = torch.nn.Parameter(torch.empty(GROUPS, DECODER))
        self.attention = torch.nn.MultiheadAttention(DECODER, HEADS, batch_first=True)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(DECODER, eps=1e-5) for _ in range(3))
        self.inner, self.outer = torch.nn.Linear(DECODER, FFN), torch.nn.Linear(FFN, DECODER)
        self.pool = torch.nn.Parameter(torch.empty(GROUPS, DECODER, EACH))
        self.bias = torch.nn.Parameter(torch.empty(CLASSES))

    def forward(self, patches):
        memory = torch.relu(self.embed(torch.cat(list(patches), -1)))
        x = self.norms[0](2 * self.queries).expand(ROWS, -1, -1)
        attended, weights = self.attention(x, memory, memory, average_attn_weights=False)
        x = self.norms[1](x + attended)
        x = self.norms[2](x + self.outer(torch.relu(self.inner(x))))
        logits = torch.cat([x[:, g] @ self.pool[g] for g in range(GROUPS)], -1)[:, :CLASSES] + self.bias
        return logits, torch.stack([weights[:, :, c // EACH] for c in range(CLASSES)], 2)


class ReferenceProbe(torch.nn.Module):
    def __init__(self):
        super().__init__()
        memory = BLOCKS * WIDTH
        self.norm = torch.nn.LayerNorm(memory, eps=1e-5)
        self.query = torch.nn.Parameter(torch.empty(1, DECODER))
        self.attention = torch.nn.MultiheadAttention(DECODER, HEADS, kdim=memory, vdim=memory, batch_first=True)
        self.norm_out = torch.nn.LayerNorm(DECODER, eps=1e-5)
        self.classifier = torch.nn.Linear(DECODER, CLASSES)

    def forward(self, patches):
        memory = self.norm(torch.cat(list(patches), -1))
        query = self.query.expand(ROWS, 1, DECODER)
        x, weights = self.attention(query, memory, memory, average_attn_weights=False)
        return self.classifier(self.norm_out(x[:, 0])), weights.expand(-1, -1, CLASSES, -1)


def affine(named, name):
    return {"kernel": named[f"{name}.weight"].T, "bias": named[f"{name}.bias"]}


def norm(named, name):
    return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}


def attention(named):
    """Of an attention whose q, k and v are one matrix, or three."""
    split = (HEADS, DECODER // HEADS)
    ours = {
        "proj": {
            "kernel": named["attention.out_proj.weight"].T.reshape(*split, DECODER),
            "bias": named["attention.out_proj.bias"],
        }
    }
    for i, name in enumerate("qkv"):
        rows = slice(i * DECODER, (i + 1) * DECODER)
        whole = named.get("attention.in_proj_weight")
        kernel = named[f"attention.{name}_proj_weight"] if whole is None else whole[rows]
        bias = named["attention.in_proj_bias"][rows].reshape(split)
        ours[name] = {"kernel": kernel.T.reshape(-1, *split), "bias": bias}
    return ours


def decoder_params(named):
    return {
        "embed": affine(named, "embed"),
        "learned_queries": named["queries"],
        "attn": attention(named),
        "mlp": {"w_in": affine(named, "inner"), "w_out": affine(named, "outer")},
        **{f"norm{i + 1}": norm(named, f"norms.{i}") for i in range(3)},
        "classifier": {"kernel": named["pool"], "bias": named["bias"]},
    }


def probe_params(named):
    return {
        "norm": norm(named, "norm"),
        "query": named["query"],
        "attn": attention(named),
        "norm_out": norm(named, "norm_out"),
        "classifier": affine(named, "classifier"),
    }


SIZES = {"width": WIDTH, "num_classes": CLASSES, "blocks": BLOCKS, "decoder_width": DECODER, "num_heads": HEADS}
PAIRS = {
    "ml_decoder": (
        ReferenceDecoder,
        decoder_params,
        lambda: MLDecoder(**SIZES, num_groups=GROUPS, learn_queries=True, ffn_width=FFN, rngs=nnx.Rngs(0)),
    ),
    "attentive": (ReferenceProbe, probe_params, lambda: AttentiveProbe(**SIZES, rngs=nnx.Rngs(0))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_logits_attention_and_gradients_match_pytorch(name):
    make_reference, to_ours, make = PAIRS[name]
    torch.manual_seed(0)
    reference = make_reference().eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    patches = torch.randn(BLOCKS, ROWS, PATCHES, WIDTH, requires_grad=True)
    direction = torch.randn(ROWS, CLASSES)
    expected, maps = reference(patches)
    (expected * direction).sum().backward()

    graphdef, state = nnx.split(nnx.eval_shape(make))
    params = to_ours({key: value.detach().numpy() for key, value in reference.named_parameters()})
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state))

    def total(params, patches):
        features = Features(jnp.zeros((BLOCKS, ROWS, WIDTH)), jnp.zeros((BLOCKS, ROWS, 0, WIDTH)), patches)
        head = nnx.merge(graphdef, params)
        logits = head(features)
        return (logits * direction.numpy()).sum(), (logits, head.attention(features))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (by_params, by_patches), (logits, weights) = gradient(params, patches.detach().numpy())
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights, maps.detach(), rtol=1e-5, atol=1e-5)
    wanted = to_ours({key: value.grad.numpy() for key, value in reference.named_parameters()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), by_params, wanted)
    np.testing.assert_allclose(by_patches, patches.grad, rtol=1e-4, atol=1e-4)
