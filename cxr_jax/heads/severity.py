"""A head for severity on one rising scale: one score for an image, one threshold for each step of the scale.

In: `Features`. Out: logits `[b, c]` in the reduce dtype, falling along the classes: logit k says whether level k is
reached, and an image that reaches level k reaches those before it.

    s = <u, [CLS_{L-n+1}, ..., CLS_L, (mean patch of block L)]>
    logit_k = s - theta_k,     theta_1 = t_1,  theta_k = theta_(k-1) + softplus(t_k)

The cumulative-link model (McCullagh 1980). Its likelihood is the label loss `cumulative_link`; binary cross-entropy on
the same logits is CORAL (Cao et al., arXiv 1901.07884). Targets are columns such as `age>=40`, `age>=60`, in rising
order.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, pooled
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, linear
from cxr_jax.models.vit import Features


class OrdinalHead(nnx.Module):
    """Parameters `classifier/kernel [blocks*d (+ d), 1]`, `thresholds [c]` (t; 0 at the start).

    Args:
      width: d of the backbone.
      num_classes: c, the steps of the scale; it has c + 1 levels.
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
        self.classifier = nnx.Dict(kernel=nnx.Param(0.01 * jax.random.normal(rngs.params(), (inputs, 1), param_dtype)))
        self.thresholds = nnx.Param(jnp.zeros((num_classes,), param_dtype))

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c"]:
        """Logits. The head has no dropout: `key` is accepted, as by every head, and changes nothing.

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        reduce = self.dtypes.reduce_dtype
        x = pooled(features, mean_patch=self.mean_patch, reduce_dtype=reduce)
        x = layout.rows(x.astype(self.dtypes.compute_dtype))
        weights = layout.weights({"kernel": self.classifier["kernel"][...], "thresholds": self.thresholds[...]})
        score = linear(x, weights["kernel"], None, 1, reduce, reduce)
        steps = weights["thresholds"].astype(reduce)
        return score - jnp.cumsum(jnp.concatenate([steps[:1], jax.nn.softplus(steps[1:])]))
