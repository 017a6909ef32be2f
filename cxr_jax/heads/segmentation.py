"""Segmentation heads: from patch tokens to a logit at every pixel of the model input.

In: `Features` of a square input of S = g p px. Out: logits `[b, c, S, S]` in the reduce dtype, one independent binary
decision per pixel and class (lungs, ribs, ...).

    linear    z = up([patch_{L-n+1}, ..., patch_L] W + b)           on the g x g grid; DINOv2's linear segmentation
    upernet   l_i = relu(norm(block_i W_i)) at 4, 2, 1, 1/2 times the grid: a pyramid from blocks of one resolution
              p_4 = conv([l_4, up(relu(norm(pool_s(l_4) V_s))) for s in 1, 2, 3, 6])      pyramid pooling
              p_i = l_i + up(p_{i+1}),  q_i = conv(p_i)             i = 3, 2, 1: the feature pyramid, top down
              z = up(conv([q_1, up(q_2), up(q_3), up(p_4)]) W + b)

`up` is bilinear, `conv` a 3 x 3 convolution with norm and ReLU. UPerNet: Xiao et al. 2018 (arXiv 1807.10221), its
pyramid pooling Zhao et al. 2017 (arXiv 1612.01105); the pyramid from a plain Transformer as in BEiT (arXiv 2106.08254).
Three things are simpler here: LayerNorm over channels stands for BatchNorm, tokens are projected to `channels` before
they are enlarged, and there is no auxiliary head and no dropout.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, side_by_side
from cxr_jax.heads.maps import Convolution, Doubling, Map, halve, pool, resize, token_map
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, Linear, layer_norm, linear
from cxr_jax.models.vit import Features

POOL_SIDES = (1, 2, 3, 6)
LEVELS = ("x4", "x2", "x1", "x05")  # of the pyramid, times the patch grid, finest first


def _pixel_logits(x: Map, kernel: Array, bias: Array, side: int, dtypes: Dtypes) -> Float[Array, "b c side side"]:
    """An affine map of every token, enlarged to `side` px."""
    logits = linear(x, kernel, bias, 1, dtypes.reduce_dtype, dtypes.reduce_dtype)
    return resize(logits, side, side).transpose(0, 3, 1, 2)


class LinearSegmenter(nnx.Module):
    """Parameters `classifier/kernel [blocks*d, c]`, `classifier/bias [c]`; N(0, 0.01) and 0 at the start.

    Args:
      width: d of the backbone.
      num_classes: c, the masks.
      patch_size: p, px.
      blocks: how many of the last blocks lend their patch tokens.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        patch_size: int,
        blocks: int = 4,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.width, self.blocks, self.patch_size = width, blocks, patch_size
        self.dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        kernel = 0.01 * jax.random.normal(rngs.params(), (width * blocks, num_classes), param_dtype)
        self.classifier = nnx.Dict(kernel=nnx.Param(kernel), bias=nnx.Param(jnp.zeros((num_classes,), param_dtype)))

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c S S"]:
        """Logits. The head has no dropout: `key` is accepted, as by every head, and changes nothing.

        Raises:
          ValueError: the features hold too few blocks, another width, or no square grid.
        """
        del key
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        x = token_map(layout.rows(side_by_side(features.patches).astype(self.dtypes.compute_dtype)))
        weights = layout.weights({name: self.classifier[name][...] for name in ("kernel", "bias")})
        return _pixel_logits(x, weights["kernel"], weights["bias"], x.shape[1] * self.patch_size, self.dtypes)


class UPerNet(nnx.Module):
    """Parameters, with w for `channels`:

        lateral/<level>     conv [d, w], norm        <level> one of x4, x2, x1, x05
        double/<name>       map [w, 2, 2, w]         a, then double_norm and GELU, then b make x4; c makes x2
        pooled/side<s>      conv [w, w], norm        s = 1, 2, 3, 6
        bottleneck          conv [3, 3, 5w, w], norm
        smooth/<level>      conv [3, 3, w, w], norm  x4, x2, x1
        fuse                conv [3, 3, 4w, w], norm
        classifier          kernel [w, c], bias

    and a bias beside every kernel.

    Args:
      width: d of the backbone.
      num_classes: c, the masks.
      patch_size: p, px.
      blocks: the last blocks that lend their patch tokens, spread over the levels, the earliest to the finest.
      channels: w.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        patch_size: int,
        blocks: int = 4,
        channels: int = 256,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if channels < 1:
            raise ValueError(f"head.channels={channels}: must be at least 1")
        self.width, self.blocks, self.patch_size = width, blocks, patch_size
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes = dtypes
        own = {"dtypes": dtypes, "rngs": rngs}

        def convolution(inputs, side):
            return Convolution(inputs, channels, side=side, **own)

        self.lateral = nnx.Dict({level: convolution(width, 1) for level in LEVELS})
        self.double = nnx.Dict({name: Doubling(channels, **own) for name in ("a", "b", "c")})
        self.double_norm = layer_norm(channels, **own)
        self.pooled = nnx.Dict({f"side{side}": convolution(channels, 1) for side in POOL_SIDES})
        self.bottleneck = convolution((1 + len(POOL_SIDES)) * channels, 3)
        self.smooth = nnx.Dict({level: convolution(channels, 3) for level in LEVELS[:-1]})
        self.fuse = convolution(len(LEVELS) * channels, 3)
        self.classifier = Linear((channels,), (num_classes,), **own)

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c S S"]:
        """Logits. The head has no dropout: `key` is accepted, as by every head, and changes nothing.

        Raises:
          ValueError: the features hold too few blocks, another width, or no square grid.
        """
        del key
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        graphdef, state = nnx.split(self)
        head = nnx.merge(graphdef, layout.weights(nnx.to_pure_dict(state)))
        patches = features.patches.astype(self.dtypes.compute_dtype)
        side = round(patches.shape[2] ** 0.5) * self.patch_size
        fused = layout.rows(head._fused(head._levels(patches)))
        return _pixel_logits(fused, head.classifier.kernel[...], head.classifier.bias[...], side, self.dtypes)

    def _levels(self, patches: Float[Array, "blocks b n d"]) -> dict[str, Map]:
        """The pyramid, finest level first."""
        last = len(LEVELS) - 1
        maps = {}
        for i, level in enumerate(LEVELS):
            block = round(i * (self.blocks - 1) / last)
            maps[level] = self.lateral[level](token_map(patches[block]))
        finer = self.double_norm(self.double["a"](maps["x4"])).astype(patches.dtype)
        maps["x4"] = self.double["b"](jax.nn.gelu(finer, approximate=False))
        maps["x2"] = self.double["c"](maps["x2"])
        return maps | {"x05": halve(maps["x05"])}

    def _fused(self, maps: dict[str, Map]) -> Map:
        """All levels at the resolution of the finest."""
        top = maps["x05"]
        pooled = [resize(self.pooled[f"side{s}"](pool(top, s)), *top.shape[1:3]) for s in POOL_SIDES]
        path = self.bottleneck(jnp.concatenate([top, *pooled], axis=-1))
        levels = [path]
        for level in reversed(LEVELS[:-1]):
            path = maps[level] + resize(path, *maps[level].shape[1:3])
            levels.append(self.smooth[level](path))
        height, width = levels[-1].shape[1:3]
        return self.fuse(jnp.concatenate([resize(x, height, width) for x in reversed(levels)], axis=-1))
