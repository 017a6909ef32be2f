"""Vision Transformer over several streams of crops at once.

In: a tuple of normalised one-channel images, one array per crop size. Out: per stream the final CLS, register and
patch tokens.

Layers are stacked on a leading axis and run by one `lax.scan` whose carry is the tuple of streams, so that each
layer's weights are gathered once for all crop sizes. Registers carry no position embedding and are inserted after it
is added (Darcet et al. 2023). Masked patches are replaced by the mask token before positions are added (iBOT).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from cxr_jax.models.layers import (
    IN_PLACE,
    Attention,
    Dtypes,
    Layout,
    layer_norm,
    linear,
    make_ffn,
    residual,
    trunc_normal,
    uniform_fan_in,
)
from cxr_jax.models.positions import POS_RESIZE, resize_positions

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Features(NamedTuple):
    """Tokens after the final norm; the leading axis runs over the last blocks asked for, in rising order."""

    cls: Float[Array, "blocks b d"]
    registers: Float[Array, "blocks b r d"]
    patches: Float[Array, "blocks b n d"]


class Block(nnx.Module):
    """Pre-norm Transformer block on a tuple of streams, with LayerScale and sample-subset drop path."""

    def __init__(self, *, width, num_heads, ffn, layer_scale, drop_path, dtypes: Dtypes, rngs: nnx.Rngs):
        self.drop_path, self.dtypes = drop_path, dtypes
        self.norm1 = layer_norm(width, dtypes=dtypes, rngs=rngs)
        self.attn = Attention(width, num_heads, dtypes=dtypes, rngs=rngs)
        self.norm2 = layer_norm(width, dtypes=dtypes, rngs=rngs)
        self.mlp = make_ffn(ffn, width, dtypes=dtypes, rngs=rngs)
        self.has_layer_scale = layer_scale is not None
        if self.has_layer_scale:
            self.layer_scale1 = nnx.Param(jnp.full((width,), layer_scale, dtypes.param_dtype))
            self.layer_scale2 = nnx.Param(jnp.full((width,), layer_scale, dtypes.param_dtype))

    def _scale(self, x, gamma):
        reduce = self.dtypes.reduce_dtype
        return (x.astype(reduce) * gamma[...].astype(reduce)).astype(x.dtype)

    def _attention(self, x, layout):
        x = self.attn(self.norm1(x).astype(x.dtype), layout)
        return self._scale(x, self.layer_scale1) if self.has_layer_scale else x

    def _ffn(self, x):
        x = self.mlp(self.norm2(x).astype(x.dtype))
        return self._scale(x, self.layer_scale2) if self.has_layer_scale else x

    def __call__(self, streams, key, num_groups: int, layout: Layout):
        """One block. `key` None switches drop path off; each stream and residual draws its own rows."""
        out = []
        for i, x in enumerate(streams):
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, i))
            options = {"rate": self.drop_path, "num_groups": num_groups}
            x = residual(x, lambda y: self._attention(y, layout), key=keys[0], **options)
            x = residual(x, self._ffn, key=keys[1], **options)
            out.append(layout.rows(x))
        return tuple(out)


class ViT(nnx.Module):
    """Vision Transformer on one grey channel.

    Args:
      image_size: side in px for which position embeddings are learned; other sizes resize them by `pos_resize`.
      patch_size, width, depth, num_heads: see `variants`.
      ffn: `swiglu` or `mlp`.
      num_registers: register tokens, 0 for none.
      layer_scale: initial LayerScale, or None for no LayerScale.
      drop_path: sample-subset drop rate, the same in every block.
      pos_resize: `offset`, `size` or `antialias` (`positions`).
      scan: run stacked layers by `lax.scan`; False unrolls them for debugging.
      remat: `none`, `full` or `dots`, what the backward pass recomputes.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        ffn: str = "swiglu",
        num_registers: int = 4,
        layer_scale: float | None = 1e-5,
        drop_path: float = 0.0,
        pos_resize: str = "offset",
        scan: bool = True,
        remat: str = "none",
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        for name, value, legal in (
            ("ffn", ffn, ("swiglu", "mlp")),
            ("pos_resize", pos_resize, POS_RESIZE),
            ("remat", remat, tuple(REMAT)),
        ):
            if value not in legal:
                raise ValueError(f"model.{name}={value!r}: legal are {', '.join(legal)}")
        if image_size % patch_size or width % num_heads:
            raise ValueError(
                f"model.image_size={image_size} must be a multiple of patch_size={patch_size}, "
                f"and width={width} of num_heads={num_heads}"
            )
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes, self.patch_size, self.grid = dtypes, patch_size, image_size // patch_size
        self.depth, self.num_registers, self.pos_resize = depth, num_registers, pos_resize
        self.scan, self.remat = scan, remat

        pixels, param = patch_size**2, dtypes.param_dtype
        self.patch_embed = nnx.Dict(
            kernel=nnx.Param(uniform_fan_in(rngs.params(), (pixels, width), param, pixels)),
            bias=nnx.Param(uniform_fan_in(rngs.params(), (width,), param, pixels)),
        )
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (width,), param))
        if num_registers:
            self.register_tokens = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (num_registers, width), param))
        self.mask_token = nnx.Param(jnp.zeros((width,), param))
        self.pos_embed = nnx.Param(trunc_normal(rngs.params(), (1 + self.grid**2, width), param))

        def make_block(rngs):
            return Block(
                width=width,
                num_heads=num_heads,
                ffn=ffn,
                layer_scale=layer_scale,
                drop_path=drop_path,
                dtypes=dtypes,
                rngs=rngs,
            )

        self.blocks = nnx.vmap(make_block)(rngs.split(depth))
        self.norm = layer_norm(width, dtypes=dtypes, rngs=rngs)

    def _embed(self, images, mask):
        """`[rows, H, W]` -> `[rows, 1 + r + n, d]`; H = W, a multiple of the patch size."""
        rows, side = images.shape[0], self.patch_size
        grid = images.shape[1] // side
        compute, reduce = self.dtypes.compute_dtype, self.dtypes.reduce_dtype
        patches = images.reshape(rows, grid, side, grid, side).transpose(0, 1, 3, 2, 4)
        patches = patches.reshape(rows, grid * grid, side * side).astype(compute)
        x = linear(patches, self.patch_embed.kernel[...], self.patch_embed.bias[...], 1, reduce)
        # Tokens and positions are broadcast over rows: their gradients accumulate in the dtype of this sum.
        x = x.astype(reduce)
        if mask is not None:
            x = jnp.where(mask[:, :, None], self.mask_token[...].astype(reduce), x)
        pos = resize_positions(self.pos_embed[...].astype(reduce), self.grid, grid, self.pos_resize)

        def spread(tokens):
            return jnp.broadcast_to(tokens.astype(reduce), (rows, *tokens.shape))

        parts = [spread(self.cls_token[...][None] + pos[:1])]
        if self.num_registers:
            parts.append(spread(self.register_tokens[...]))
        return jnp.concatenate([*parts, x + pos[1:]], axis=1).astype(compute)

    def _run(self, streams, params, graphdef, keys, num_groups, layout, collect):
        """Run stacked layers `params`; with `collect`, also return every layer's streams, stacked."""

        def body(streams, layer):
            weights, key = layer
            block = nnx.merge(graphdef, layout.weights(weights))
            streams = block(streams, key, num_groups, layout)
            return streams, streams if collect else None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat])
        depth = jax.tree.leaves(params)[0].shape[0]
        if self.scan:
            return jax.lax.scan(body, streams, (params, keys))
        collected = []
        for i in range(depth):
            streams, out = body(streams, jax.tree.map(lambda leaf, i=i: leaf[i], (params, keys)))
            collected.append(out)
        return streams, jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected) if collect else None

    def _split(self, tokens) -> Features:
        x = self.norm(tokens).astype(tokens.dtype)
        first = 1 + self.num_registers
        return Features(x[:, :, 0], x[:, :, 1:first], x[:, :, first:])

    def __call__(
        self,
        images: tuple[Float[Array, "_ _ _"], ...],
        masks: tuple[Bool[Array, "_ _"] | None, ...] | None = None,
        *,
        blocks: int = 1,
        key: Array | None = None,
        num_groups: int = 1,
        layout: Layout = IN_PLACE,
    ) -> tuple[Features, ...]:
        """Encode each stream `[rows, H, W]`; masks (True = hidden) are `[rows, n]` or None per stream.

        `key` switches drop path on, drawn within `num_groups` equal groups of consecutive rows. Returns for each
        stream the `Features` of the last `blocks` blocks.
        """
        masks = masks or (None,) * len(images)
        streams = tuple(layout.rows(self._embed(x, m)) for x, m in zip(images, masks, strict=True))
        graphdef, state = nnx.split(self.blocks)
        params = nnx.to_pure_dict(state)
        keys = None if key is None else jax.random.split(key, self.depth)
        run = (graphdef, num_groups, layout)
        if blocks == 1:
            streams, _ = self._run(streams, params, graphdef, keys, num_groups, layout, collect=False)
            return tuple(self._split(x[None]) for x in streams)
        cut = self.depth - blocks
        early, late = (jax.tree.map(lambda leaf, s=s: leaf[s], (params, keys)) for s in (slice(cut), slice(cut, None)))
        if cut:
            streams, _ = self._run(streams, early[0], run[0], early[1], *run[1:], collect=False)
        _, layers = self._run(streams, late[0], run[0], late[1], *run[1:], collect=True)
        return tuple(self._split(x) for x in layers)

    def features(self, images: Float[Array, "b H W"], *, blocks: int = 1, layout: Layout = IN_PLACE) -> Features:
        """Deterministic features of the last `blocks` blocks, each through the final norm."""
        return self((images,), blocks=blocks, layout=layout)[0]
