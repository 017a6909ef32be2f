"""Vision Transformer over several streams of crops at once.

In: a tuple of normalised one-channel images, one array per crop size. Out: per stream the final CLS, register and
patch tokens.

Layers are stacked on a leading axis and run by one `lax.scan` whose carry is the tuple of streams (`blocks`).
Registers carry no position embedding and are inserted after it is added (Darcet et al. 2023). Masked patches are
replaced by the mask token before positions are added (iBOT), or, with `visible`, are left out altogether (MAE).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cxr_jax.models.blocks import INITS, REMAT, make_blocks, run_blocks
from cxr_jax.models.layers import (
    ATTENTION,
    IN_PLACE,
    WHOLE,
    Dtypes,
    Layout,
    Part,
    layer_norm,
    linear,
    trunc_normal,
    uniform_fan_in,
    xavier_uniform,
)
from cxr_jax.models.patches import patchify
from cxr_jax.models.positions import POS_RESIZE, POSITIONS, resize_positions, sincos_positions
from cxr_jax.models.rope import make_rotation


class Features(NamedTuple):
    """Tokens after the final norm; the leading axis runs over the last blocks asked for, in rising order."""

    cls: Float[Array, "blocks b d"]
    registers: Float[Array, "blocks b r d"]
    patches: Float[Array, "blocks b n d"]


class ViT(nnx.Module):
    """Vision Transformer on one grey channel.

    Args:
      image_size: side in px for which position embeddings are learned; other sizes resize them by `pos_resize`.
      positions: `learned`, `sincos` (MAE's fixed table, computed for every grid) or `rope` (DINOv3's, `rope`).
      patch_size, width, depth, num_heads: see `variants`.
      ffn: `swiglu` or `mlp`.
      ffn_ratio: inner width of the `mlp` over the width; `swiglu` has 2/3 of that, hence as many parameters.
      num_registers: register tokens, 0 for none.
      layer_scale: initial LayerScale, or None for no LayerScale.
      norm_epsilon: epsilon of every LayerNorm: 1e-6 in DINOv2 and MAE, others in some public weights.
      drop_path: sample-subset drop rate, the same in every block.
      pos_resize: `offset`, `size` or `antialias` (`positions`).
      init: `trunc_normal` (DINOv2's) or `xavier` as MAE's authors: Xavier-uniform linear maps and patch kernel, CLS
        and registers N(0, 0.02).
      scan: run stacked layers by `lax.scan`; False unrolls them for debugging.
      remat: `none`, `full` or `dots`, what the backward pass recomputes.
      attention: `plain` (softmax in the reduce dtype), or `xla` or `cudnn` (flash attention on GPUs, compute dtype
        bfloat16), whose softmax is float32; see `layers.attend`.
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
        ffn_ratio: float = 4.0,
        num_registers: int = 4,
        layer_scale: float | None = 1e-5,
        norm_epsilon: float = 1e-6,
        drop_path: float = 0.0,
        positions: str = "learned",
        pos_resize: str = "offset",
        init: str = "trunc_normal",
        scan: bool = True,
        remat: str = "none",
        attention: str = "plain",
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        for name, value, legal in (
            ("ffn", ffn, ("swiglu", "mlp")),
            ("positions", positions, POSITIONS),
            ("pos_resize", pos_resize, POS_RESIZE),
            ("init", init, INITS),
            ("remat", remat, tuple(REMAT)),
            ("attention", attention, tuple(ATTENTION)),
        ):
            if value not in legal:
                raise ValueError(f"model.{name}={value!r}: legal are {', '.join(legal)}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"model.drop_path={drop_path}: legal are shares of the rows, 0 up to but not 1")
        if image_size % patch_size or width % num_heads:
            raise ValueError(
                f"model.image_size={image_size} must be a multiple of patch_size={patch_size}, "
                f"and width={width} of num_heads={num_heads}"
            )
        self.head_width = width // num_heads
        if (positions == "sincos" and width % 4) or (positions == "rope" and self.head_width % 4):
            raise ValueError(
                f"model.positions={positions!r}: width={width} (sincos) and width / num_heads={self.head_width} (rope) "
                "must be multiples of 4"
            )
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes, self.patch_size, self.grid, self.width = dtypes, patch_size, image_size // patch_size, width
        self.depth, self.num_registers = depth, num_registers
        self.positions, self.pos_resize = positions, pos_resize
        self.scan, self.remat = scan, remat

        pixels, param, xavier = patch_size**2, dtypes.param_dtype, init == "xavier"
        shape = (pixels, width)
        key = rngs.params()
        kernel = xavier_uniform(key, shape, param, *shape) if xavier else uniform_fan_in(key, shape, param, pixels)
        self.patch_embed = nnx.Dict(
            kernel=nnx.Param(kernel),
            bias=nnx.Param(uniform_fan_in(rngs.params(), (width,), param, pixels)),
        )
        token_std = 0.02 if xavier else 1e-6
        self.cls_token = nnx.Param(token_std * jax.random.normal(rngs.params(), (width,), param))
        if num_registers:
            registers = jax.random.normal(rngs.params(), (num_registers, width), param)
            self.register_tokens = nnx.Param(token_std * registers)
        self.mask_token = nnx.Param(jnp.zeros((width,), param))
        if positions == "learned":
            self.pos_embed = nnx.Param(trunc_normal(rngs.params(), (1 + self.grid**2, width), param))
        self.blocks = make_blocks(
            depth,
            width=width,
            num_heads=num_heads,
            ffn=ffn,
            ffn_ratio=ffn_ratio,
            attention=attention,
            layer_scale=layer_scale,
            drop_path=drop_path,
            norm_epsilon=norm_epsilon,
            dtypes=dtypes,
            init=init,
            rngs=rngs,
        )
        self.norm = layer_norm(width, dtypes=dtypes, epsilon=norm_epsilon, rngs=rngs)

    def _position_table(self, grid: int) -> Float[Array, "t d"]:
        """What is added to CLS and to the patches of a grid; rotary positions add nothing."""
        reduce = self.dtypes.reduce_dtype
        if self.positions == "learned":
            return resize_positions(self.pos_embed[...].astype(reduce), self.grid, grid, self.pos_resize)
        if self.positions == "sincos":
            return jnp.asarray(sincos_positions(grid, self.width), reduce)
        return jnp.zeros((1 + grid**2, self.width), reduce)

    def _embed(self, images, mask, visible):
        """`[rows, H, W]` -> `[rows, 1 + r + n, d]`; H = W, a multiple of the patch size."""
        rows, grid = images.shape[0], images.shape[1] // self.patch_size
        compute, reduce = self.dtypes.compute_dtype, self.dtypes.reduce_dtype
        patches, pos = patchify(images, self.patch_size).astype(compute), self._position_table(grid)
        patch_pos = pos[1:]
        if visible is not None:
            patches, patch_pos = jnp.take_along_axis(patches, visible[:, :, None], axis=1), patch_pos[visible]
        x = linear(patches, self.patch_embed.kernel[...], self.patch_embed.bias[...], 1, reduce)
        # Tokens and positions are broadcast over rows: their gradients accumulate in the dtype of this sum.
        x = x.astype(reduce)
        if mask is not None:
            x = jnp.where(mask[:, :, None], self.mask_token[...].astype(reduce), x)

        def spread(tokens):
            return jnp.broadcast_to(tokens.astype(reduce), (rows, *tokens.shape))

        parts = [spread(self.cls_token[...][None] + pos[:1])]
        if self.num_registers:
            parts.append(spread(self.register_tokens[...]))
        return jnp.concatenate([*parts, x + patch_pos], axis=1).astype(compute)

    def _rotation(self, images, visible):
        """The rotary positions of one stream, None unless the model has such."""
        if self.positions != "rope":
            return None
        grid, dtype = images.shape[1] // self.patch_size, self.dtypes.reduce_dtype
        return make_rotation(grid, self.head_width, prefix=1 + self.num_registers, dtype=dtype, visible=visible)

    def _mean_patches(self, streams):
        """Mean patch token `[rows, d]` of each stream, in the reduce dtype."""
        first = 1 + self.num_registers
        return tuple(x[:, first:].astype(self.dtypes.reduce_dtype).mean(1) for x in streams)

    def _split(self, tokens) -> Features:
        x = self.norm(tokens).astype(tokens.dtype)
        first = 1 + self.num_registers
        return Features(x[:, :, 0], x[:, :, 1:first], x[:, :, first:])

    def __call__(
        self,
        images: tuple[Float[Array, "_ _ _"], ...],
        masks: tuple[Bool[Array, "_ _"] | None, ...] | None = None,
        *,
        visible: tuple[Int[Array, "_ _"] | None, ...] | None = None,
        blocks: int = 1,
        pooled_blocks: tuple[int, ...] = (),
        key: Array | None = None,
        num_groups: int = 1,
        part: Part = WHOLE,
        layout: Layout = IN_PLACE,
    ) -> tuple[Features, ...] | tuple[tuple[Features, ...], tuple[Float[Array, "pooled _ d"], ...]]:
        """Encode each stream `[rows, H, W]`; masks (True = hidden) are `[rows, n]` or None per stream.

        `visible`, `[rows, k]` or None per stream, names for every row the k patches to encode, in this order; no
        other patch is computed. `key` switches drop path on, drawn within `num_groups` equal groups of consecutive
        rows, which are those of a `part` of the batch. Returns for each stream the `Features` of the last `blocks`
        blocks. With `pooled_blocks` (numbers from 0) returns a pair: those, and for each stream the mean patch tokens
        after these blocks, before any norm, in the reduce dtype.
        """
        if not all(0 <= block < self.depth for block in pooled_blocks):
            raise ValueError(f"pooled_blocks={pooled_blocks}: legal are 0 .. {self.depth - 1}, the blocks of the model")
        masks, visible = masks or (None,) * len(images), visible or (None,) * len(images)
        streams = tuple(layout.rows(self._embed(x, m, v)) for x, m, v in zip(images, masks, visible, strict=True))
        rotations = tuple(self._rotation(x, v) for x, v in zip(images, visible, strict=True))
        keys = None if key is None else jax.random.split(key, self.depth)
        pool = self._mean_patches if pooled_blocks else lambda streams: None

        options = {"rotations": rotations, "keys": keys, "num_groups": num_groups, "part": part, "layout": layout}
        run = partial(run_blocks, self.blocks, **options, scan=self.scan, remat=self.remat)
        # Only the blocks that are asked for leave all of their tokens behind.
        cut = self.depth if blocks == 1 else self.depth - blocks
        pooled = []
        if cut:
            streams, early = run(streams, layers=slice(cut), summary=pool)
            pooled.append(early)
        if blocks == 1:
            streams = tuple(x[None] for x in streams)
        else:
            _, (streams, late) = run(streams, layers=slice(cut, None), summary=lambda x: (x, pool(x)))
            pooled.append(late)
        features = tuple(self._split(x) for x in streams)
        if not pooled_blocks:
            return features
        return features, jax.tree.map(lambda *parts: jnp.concatenate(parts)[np.asarray(pooled_blocks)], *pooled)

    def features(self, images: Float[Array, "b H W"], *, blocks: int = 1, layout: Layout = IN_PLACE) -> Features:
        """Deterministic features of the last `blocks` blocks, each through the final norm."""
        return self((images,), blocks=blocks, layout=layout)[0]
