"""The name table: what every parameter of ours is called in each PyTorch layout. It drives export and import alike.

In: what a module is made of. Out: its entries (`mapping`): our path, their name, the rule between the two arrays.

| layout | names | what stands out |
|---|---|---|
| `hugging_face` | transformers' Dinov2Model, Dinov2WithRegistersModel | query, key, value apart |
| `dinov3` | transformers' DINOv3ViTModel | no positions; the key may lack a bias; the gate of a SwiGLU apart |
| `vit_mae` | transformers' ViTMAEModel and the decoder of ViTMAEForPreTraining | fixed positions are stored |
| `vit` | DINOv2, CheXFound, timm, facebookresearch/mae | qkv in one matrix; blocks in chunks if asked for |
| `projection_head` | DINOHead | weight_g, weight_v of the weight-normalised last layer |
| `glori`, `linear_classifier` | CheXFound's classifiers | |

Our patch kernel comes with its channels in front, `[C, p*p, d]`, and so do the pixels that a decoder paints
(`channels`). GLoRI's query, key and value come as one, as in `torch.nn.MultiheadAttention` (`heads.join_qkv`).
"""

from collections.abc import Mapping
from typing import Any

from cxr_jax.export.mapping import Entry

Entries = tuple[Entry, ...]
PATCH = ("backbone/patch_embed/kernel", "backbone/patch_embed/bias")
PIXELS = ("decoder/pred/kernel", "decoder/pred/bias")
DECODER_POSITIONS = "decoder/pos_embed"
_KERNEL = "c (y x) d -> d c y x"


def _norm(ours: str, theirs: str) -> Entries:
    return (
        Entry(f"{ours}/scale", (f"{theirs}.weight",), "d -> d"),
        Entry(f"{ours}/bias", (f"{theirs}.bias",), "d -> d"),
    )


def _dense(ours: str, theirs: str, rule: str = "a b -> b a", bias: str = "b -> b") -> Entries:
    return (
        Entry(f"{ours}/kernel", (f"{theirs}.weight",), rule),
        Entry(f"{ours}/bias", (f"{theirs}.bias",), bias),
    )


def _split_qkv(ours: str, query: str, key: str, value: str, fill: float | None = None) -> Entries:
    """Query, key and value as three matrices; with `fill` a bias may be absent."""
    names = (query, key, value)
    return (
        Entry(f"{ours}/kernel", tuple(f"{n}.weight" for n in names), "d t h e -> t: (h e) d"),
        Entry(f"{ours}/bias", tuple(f"{n}.bias" for n in names), "t h e -> t: (h e)", fill=fill),
    )


def _fused_qkv(ours: str, theirs: str) -> Entries:
    return _dense(ours, theirs, "d t h e -> (t h e) d", "t h e -> (t h e)")


def _fused_gate(ours: str, theirs: str) -> Entries:
    """The two input maps of a SwiGLU as one matrix, the gate first."""
    return _dense(ours, theirs, "d g f -> (g f) d", "g f -> (g f)")


def _layer_scale(layer: str, name: str, absent: float | None) -> tuple[Entries, Entries]:
    """LayerScale after attention and after the feed-forward."""
    one, two = (
        (Entry(f"backbone/blocks/layer_scale{i}", (f"{layer}.{name.format(n=i)}",), "d -> d", absent=absent),)
        for i in (1, 2)
    )
    return one, two


def hugging_face(*, ffn: str, registers: bool) -> Entries:
    """Names of transformers' Dinov2WithRegistersModel, or of Dinov2Model when there are no registers.

    These are the names of the published checkpoints. transformers 5 renames some inside its modules (q_proj,
    gate_proj) and translates both when it reads and when it writes a folder, so the file keeps these.
    """
    layer = "encoder.layer.{i}"
    attention = f"{layer}.attention"
    if ffn == "swiglu":
        mlp = (
            *_fused_gate("backbone/blocks/mlp/w_in", f"{layer}.mlp.weights_in"),
            *_dense("backbone/blocks/mlp/w_out", f"{layer}.mlp.weights_out"),
        )
    else:
        mlp = (
            *_dense("backbone/blocks/mlp/w_in", f"{layer}.mlp.fc1"),
            *_dense("backbone/blocks/mlp/w_out", f"{layer}.mlp.fc2"),
        )
    register_tokens = (Entry("backbone/register_tokens", ("embeddings.register_tokens",), "r d -> 1 r d"),)
    scale1, scale2 = _layer_scale(layer, "layer_scale{n}.lambda1", absent=1.0)
    parts = (f"{attention}.attention.{part}" for part in ("query", "key", "value"))
    return (
        Entry("backbone/cls_token", ("embeddings.cls_token",), "d -> 1 1 d"),
        Entry("backbone/mask_token", ("embeddings.mask_token",), "d -> 1 d"),
        *(register_tokens if registers else ()),
        Entry("backbone/pos_embed", ("embeddings.position_embeddings",), "n d -> 1 n d"),
        *_dense("backbone/patch_embed", "embeddings.patch_embeddings.projection", _KERNEL),
        *_norm("backbone/blocks/norm1", f"{layer}.norm1"),
        *_split_qkv("backbone/blocks/attn/qkv", *parts),
        *_dense("backbone/blocks/attn/proj", f"{attention}.output.dense", "h e d -> d (h e)"),
        *scale1,
        *_norm("backbone/blocks/norm2", f"{layer}.norm2"),
        *mlp,
        *scale2,
        *_norm("backbone/norm", "layernorm"),
    )


def dinov3(*, ffn: str, registers: bool, prefix: str = "") -> Entries:
    """Names of transformers' DINOv3ViTModel, as published. The published models have no key bias: here it is 0."""
    layer = f"{prefix}layer.{{i}}"
    if ffn == "swiglu":
        w_in = (
            Entry(
                "backbone/blocks/mlp/w_in/kernel",
                (f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"),
                "d g f -> g: f d",
            ),
            Entry(
                "backbone/blocks/mlp/w_in/bias",
                (f"{layer}.mlp.gate_proj.bias", f"{layer}.mlp.up_proj.bias"),
                "g f -> g: f",
            ),
        )
    else:
        w_in = _dense("backbone/blocks/mlp/w_in", f"{layer}.mlp.up_proj")
    register_tokens = (Entry("backbone/register_tokens", ("embeddings.register_tokens",), "r d -> 1 r d"),)
    scale1, scale2 = _layer_scale(layer, "layer_scale{n}.lambda1", absent=1.0)
    parts = (f"{layer}.attention.{part}_proj" for part in "qkv")
    return (
        Entry("backbone/cls_token", ("embeddings.cls_token",), "d -> 1 1 d"),
        Entry("backbone/mask_token", ("embeddings.mask_token",), "d -> 1 1 d"),
        *(register_tokens if registers else ()),
        *_dense("backbone/patch_embed", "embeddings.patch_embeddings", _KERNEL),
        *_norm("backbone/blocks/norm1", f"{layer}.norm1"),
        *_split_qkv("backbone/blocks/attn/qkv", *parts, fill=0.0),
        *_dense("backbone/blocks/attn/proj", f"{layer}.attention.o_proj", "h e d -> d (h e)"),
        *scale1,
        *_norm("backbone/blocks/norm2", f"{layer}.norm2"),
        *w_in,
        *_dense("backbone/blocks/mlp/w_out", f"{layer}.mlp.down_proj"),
        *scale2,
        *_norm("backbone/norm", "norm"),
    )


def _mae_layers(ours: str, layer: str) -> Entries:
    """transformers' ViTMAE blocks, of the encoder or of the decoder."""
    attention = f"{layer}.attention"
    return (
        *_norm(f"{ours}/norm1", f"{layer}.layernorm_before"),
        *_split_qkv(f"{ours}/attn/qkv", *(f"{attention}.attention.{part}" for part in ("query", "key", "value"))),
        *_dense(f"{ours}/attn/proj", f"{attention}.output.dense", "h e d -> d (h e)"),
        *_norm(f"{ours}/norm2", f"{layer}.layernorm_after"),
        *_dense(f"{ours}/mlp/w_in", f"{layer}.intermediate.dense"),
        *_dense(f"{ours}/mlp/w_out", f"{layer}.output.dense"),
    )


def vit_mae(*, prefix: str = "vit.") -> Entries:
    """Names of transformers' ViTMAEModel; `prefix` is `vit.` inside ViTMAEForPreTraining."""
    return (
        Entry("backbone/cls_token", (f"{prefix}embeddings.cls_token",), "d -> 1 1 d"),
        Entry("backbone/pos_embed", (f"{prefix}embeddings.position_embeddings",), "n d -> 1 n d"),
        *_dense("backbone/patch_embed", f"{prefix}embeddings.patch_embeddings.projection", _KERNEL),
        *_mae_layers("backbone/blocks", f"{prefix}encoder.layer.{{i}}"),
        *_norm("backbone/norm", f"{prefix}layernorm"),
    )


def vit_mae_decoder() -> Entries:
    """Names of the decoder of transformers' ViTMAEForPreTraining."""
    return (*_decoder_ends("decoder."), *_mae_layers("decoder/blocks", "decoder.decoder_layers.{i}"))


def old_spelling(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of transformers under the names of this table: 5.23 calls the blocks of a MAE decoder otherwise."""
    new, old = "decoder.decoder_encoder.layer.", "decoder.decoder_layers."
    return {old + name.removeprefix(new) if name.startswith(new) else name: t for name, t in tensors.items()}


def _decoder_ends(prefix: str, positions: bool = True) -> Entries:
    """What MAE's decoder has beside its blocks; its positions are fixed, and stored."""
    table = (Entry(DECODER_POSITIONS, (f"{prefix}decoder_pos_embed",), "n d -> 1 n d"),)
    return (
        *_dense("decoder/embed", f"{prefix}decoder_embed"),
        Entry("decoder/mask_token", (f"{prefix}mask_token",), "d -> 1 1 d"),
        *(table if positions else ()),
        *_norm("decoder/norm", f"{prefix}decoder_norm"),
        Entry(PIXELS[0], (f"{prefix}decoder_pred.weight",), "d c (y x) -> (y x c) d"),
        Entry(PIXELS[1], (f"{prefix}decoder_pred.bias",), "c (y x) -> (y x c)"),
    )


def _fused_layers(ours: str, layer: str, *, inner: tuple[str, str], gated: bool) -> Entries:
    """Pre-norm blocks with one qkv matrix; `inner` names the two maps of the feed-forward."""
    w_in, w_out = (f"{layer}.mlp.{name}" for name in inner)
    return (
        *_norm(f"{ours}/norm1", f"{layer}.norm1"),
        *_fused_qkv(f"{ours}/attn/qkv", f"{layer}.attn.qkv"),
        *_dense(f"{ours}/attn/proj", f"{layer}.attn.proj", "h e d -> d (h e)"),
        *_norm(f"{ours}/norm2", f"{layer}.norm2"),
        *(_fused_gate if gated else _dense)(f"{ours}/mlp/w_in", w_in),
        *_dense(f"{ours}/mlp/w_out", w_out),
    )


def vit(
    *,
    ffn: str,
    registers: str | None,
    layer_scale: bool,
    mask_token: bool,
    positions: bool = True,
    chunked: bool = False,
    inner: tuple[str, str] | None = None,
) -> Entries:
    """Names of the original ViT code that DINOv2, CheXFound, timm and MAE share.

    `registers` is the name of the register tokens: `register_tokens` in DINOv2, `reg_token` in timm. `inner` names the
    two maps of the feed-forward: `w12` and `w3` of DINOv2's SwiGLU unless given, else `fc1` and `fc2`. `chunked` blocks
    are `blocks.<chunk>.<layer>`, as in training checkpoints under FSDP.
    """
    gated = ffn == "swiglu"
    layer = "blocks.{c}.{i}" if chunked else "blocks.{i}"
    scale1, scale2 = _layer_scale(layer, "ls{n}.gamma", absent=None)
    return (
        Entry("backbone/cls_token", ("cls_token",), "d -> 1 1 d"),
        *((Entry("backbone/mask_token", ("mask_token",), "d -> 1 d"),) if mask_token else ()),
        *((Entry("backbone/register_tokens", (registers,), "r d -> 1 r d"),) if registers else ()),
        *((Entry("backbone/pos_embed", ("pos_embed",), "n d -> 1 n d"),) if positions else ()),
        *_dense("backbone/patch_embed", "patch_embed.proj", _KERNEL),
        *_fused_layers(
            "backbone/blocks", layer, inner=inner or (("w12", "w3") if gated else ("fc1", "fc2")), gated=gated
        ),
        *((*scale1, *scale2) if layer_scale else ()),
        *_norm("backbone/norm", "norm"),
    )


def mae_decoder(*, positions: bool = True) -> Entries:
    """Names of the decoder of facebookresearch/mae; without its positions where it is kept beside other weights."""
    layers = _fused_layers("decoder/blocks", "decoder_blocks.{i}", inner=("fc1", "fc2"), gated=False)
    return (*_decoder_ends("", positions), *layers)


def projection_head() -> Entries:
    """DINOHead: three linear maps with GELU between, then prototypes of direction v / |v| and length g."""
    return (
        *_dense("hidden1", "mlp.0"),
        *_dense("hidden2", "mlp.2"),
        *_dense("bottleneck", "mlp.4"),
        Entry("prototypes/v", ("last_layer.weight_v",), "b k -> k b"),
        Entry("prototypes/g", ("last_layer.weight_g",), "k -> k 1"),
    )


def glori() -> Entries:
    """CheXFound's GLoRI; its one decoder layer is torch's, without self-attention."""
    layer = "decoder.layers.0"
    return (
        *_dense("embed", "decoder.embed_standart"),
        Entry("queries", ("decoder.query_embed.weight",), "c d -> c d"),
        Entry("attn/qkv/kernel", (f"{layer}.multihead_attn.in_proj_weight",), "d t h e -> (t h e) d"),
        Entry("attn/qkv/bias", (f"{layer}.multihead_attn.in_proj_bias",), "t h e -> (t h e)"),
        *_dense("attn/proj", f"{layer}.multihead_attn.out_proj", "h e d -> d (h e)"),
        *_dense("mlp/w_in", f"{layer}.linear1"),
        *_dense("mlp/w_out", f"{layer}.linear2"),
        *(entry for i in (1, 2, 3) for entry in _norm(f"norm{i}", f"{layer}.norm{i}")),
        Entry("classifier/kernel", ("decoder.duplicate_pooling",), "c n -> c n 1"),
        Entry("classifier/bias", ("decoder.duplicate_pooling_bias",), "c -> c"),
    )


def linear_classifier() -> Entries:
    """CheXFound's and DINOv2's linear classifier."""
    return _dense("classifier", "linear")
