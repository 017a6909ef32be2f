"""Transformer blocks, stacked on a leading axis and run over several streams of tokens at once.

In: a tuple of token arrays `[rows, t, d]`, one per crop size. Out: the same shapes, and on request a summary of every
layer. One `lax.scan` carries all streams, so that each layer's weights are gathered once for all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from cxr_jax.models.layers import (
    WHOLE,
    Attention,
    Dtypes,
    Layout,
    Part,
    draw_xavier,
    layer_norm,
    make_ffn,
    residual,
)
from cxr_jax.models.rope import Rotation

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
INITS = ("trunc_normal", "xavier")


class Block(nnx.Module):
    """Pre-norm Transformer block on a tuple of streams, with LayerScale and sample-subset drop path."""

    def __init__(
        self,
        *,
        width,
        num_heads,
        ffn,
        layer_scale,
        drop_path,
        ffn_ratio: float = 4.0,
        norm_epsilon=1e-6,
        attention: str = "plain",
        dtypes: Dtypes,
        rngs: nnx.Rngs,
    ):
        self.drop_path, self.dtypes = drop_path, dtypes
        self.norm1 = layer_norm(width, dtypes=dtypes, epsilon=norm_epsilon, rngs=rngs)
        self.attn = Attention(width, num_heads, implementation=attention, dtypes=dtypes, rngs=rngs)
        self.norm2 = layer_norm(width, dtypes=dtypes, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = make_ffn(ffn, width, ratio=ffn_ratio, dtypes=dtypes, rngs=rngs)
        self.has_layer_scale = layer_scale is not None
        if self.has_layer_scale:
            self.layer_scale1 = nnx.Param(jnp.full((width,), layer_scale, dtypes.param_dtype))
            self.layer_scale2 = nnx.Param(jnp.full((width,), layer_scale, dtypes.param_dtype))

    def _scale(self, x, gamma):
        reduce = self.dtypes.reduce_dtype
        return (x.astype(reduce) * gamma[...].astype(reduce)).astype(x.dtype)

    def _attention(self, x, rotation, layout):
        x = self.attn(self.norm1(x).astype(x.dtype), layout, rotation)
        return self._scale(x, self.layer_scale1) if self.has_layer_scale else x

    def _ffn(self, x):
        x = self.mlp(self.norm2(x).astype(x.dtype))
        return self._scale(x, self.layer_scale2) if self.has_layer_scale else x

    def __call__(self, streams, rotations, key, num_groups: int, layout: Layout, part: Part = WHOLE):
        """One block. `key` None switches drop path off; each stream and residual draws its own rows."""
        out = []
        for i, (x, rotation) in enumerate(zip(streams, rotations, strict=True)):
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, i))
            options = {"rate": self.drop_path, "num_groups": num_groups, "part": part}
            x = residual(x, lambda y, r: self._attention(y, r, layout), key=keys[0], beside=rotation, **options)
            x = residual(x, lambda y, _: self._ffn(y), key=keys[1], **options)
            out.append(layout.rows(x))
        return tuple(out)


def make_blocks(depth: int, *, init: str, rngs: nnx.Rngs, **options) -> Block:
    """`depth` blocks as one `Block` whose parameters have a leading layer axis; `options` go to each.

    `init`: `trunc_normal` (N(0, 0.02), DINOv2's) or `xavier` (MAE's, see `draw_xavier`) for the linear maps.
    """

    def make(rngs):
        block = Block(**options, rngs=rngs)
        if init == "xavier":
            draw_xavier(block, rngs)
        return block

    return nnx.vmap(make)(rngs.split(depth))


def run_blocks(
    blocks: Block,
    streams: tuple[Array, ...],
    *,
    rotations: tuple[Rotation | None, ...],
    keys: Array | None,
    num_groups: int,
    layout: Layout,
    scan: bool,
    remat: str,
    part: Part = WHOLE,
    layers: slice = slice(None),
    summary: Callable[[tuple[Array, ...]], Any] = lambda streams: None,
) -> tuple[tuple[Array, ...], Any]:
    """Run the `layers` of a stack; returns the streams and `summary(streams)` after each layer, stacked.

    `keys` (one per layer of the whole stack) switch drop path on, `rotations` are each stream's rotary positions. The
    rows are the `num_groups` groups of a `part` of the batch.
    `scan` False unrolls the layers; `remat` is a key of `REMAT`.
    """
    graphdef, state = nnx.split(blocks)
    stack = jax.tree.map(lambda leaf: leaf[layers], (nnx.to_pure_dict(state), keys))

    def body(streams, layer):
        weights, key = layer
        block = nnx.merge(graphdef, layout.weights(weights))
        streams = block(streams, rotations, key, num_groups, layout, part)
        return streams, summary(streams)

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT[remat])
    if scan:
        return jax.lax.scan(body, streams, stack)
    summaries = []
    for i in range(jax.tree.leaves(stack)[0].shape[0]):
        streams, out = body(streams, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        summaries.append(out)
    return streams, jax.tree.map(lambda *leaves: jnp.stack(leaves), *summaries)
