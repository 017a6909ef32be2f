"""The head of a fully fine-tuned MAE: global average pool, LayerNorm, one linear map.

In: `Features`. Out: logits `[b, c]` in the reduce dtype.

    logits = LN(mean over patches of block L) W + b

As MAE's authors fine-tune, and CXRBase after them (arXiv 2111.06377, A.1): no CLS token, weights N(0, 2e-5), bias 0.
Theirs puts this norm in the place of the backbone's last one; here tokens have been through that one before the mean.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks
from cxr_jax.heads.query_decoder import gathered
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, layer_norm, linear
from cxr_jax.models.vit import Features


class PooledHead(nnx.Module):
    """Parameters `norm`, `classifier/kernel [d, c]`, `classifier/bias [c]`.

    Args:
      width: d of the backbone.
      num_classes: c.
      blocks: only the last block is read; more are legal and unused.
      init_std: standard deviation of the first kernel.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        blocks: int = 1,
        init_std: float = 2e-5,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.width, self.blocks = width, blocks
        self.dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.norm = layer_norm(width, dtypes=self.dtypes, rngs=rngs)
        self.classifier = nnx.Dict(
            kernel=nnx.Param(init_std * jax.random.normal(rngs.params(), (width, num_classes), param_dtype)),
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
        head, reduce = gathered(self, layout), self.dtypes.reduce_dtype
        mean = features.patches[-1].astype(reduce).mean(axis=1)
        x = layout.rows(head.norm(mean).astype(self.dtypes.compute_dtype))
        return linear(x, head.classifier["kernel"][...], head.classifier["bias"][...], 1, reduce, reduce)
