"""The linear head: one affine map on the CLS tokens of the last blocks.

In: `Features`. Out: logits `[b, c]` in the reduce dtype, one independent binary decision per class.

    logits = [CLS_{L-n+1}, ..., CLS_L, (mean patch of block L)] W + b

The probe of DINOv2 and CheXFound (weights N(0, 0.01), bias 0).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, pooled
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, linear
from cxr_jax.models.vit import Features


class LinearHead(nnx.Module):
    """Parameters `classifier/kernel [blocks*d (+ d), c]`, `classifier/bias [c]`.

    Args:
      width: d of the backbone.
      num_classes: c.
      blocks: how many of the last blocks lend their CLS token.
      mean_patch: append the mean patch token of the last block.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        blocks: int = 4,
        mean_patch: bool = False,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.width, self.blocks, self.mean_patch = width, blocks, mean_patch
        self.dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        inputs = width * (blocks + mean_patch)
        self.classifier = nnx.Dict(
            kernel=nnx.Param(0.01 * jax.random.normal(rngs.params(), (inputs, num_classes), param_dtype)),
            bias=nnx.Param(jnp.zeros((num_classes,), param_dtype)),
        )

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c"]:
        """Logits. The head has no dropout: `key` is accepted, as by every head, and changes nothing.

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        x = pooled(features, mean_patch=self.mean_patch, reduce_dtype=self.dtypes.reduce_dtype)
        x = layout.rows(x.astype(self.dtypes.compute_dtype))
        weights = layout.weights({name: self.classifier[name][...] for name in ("kernel", "bias")})
        return linear(x, weights["kernel"], weights["bias"], 1, self.dtypes.reduce_dtype, self.dtypes.reduce_dtype)
