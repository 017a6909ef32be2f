"""ML-Decoder (Ridnik et al., arXiv 2111.12933), the head of LTCXNet (arXiv 2411.10746) and GLoRI's ancestor.

In: `Features`. Out: logits `[b, c]` in the reduce dtype; on request the attention map of every group and head.

k group queries, fixed random or learned, read the patch tokens through one decoder layer (`query_decoder`). Query j
speaks for the g = ceil(c / k) classes j g .. j g + g - 1, by a linear map of its own (group fully-connected):

    logit_{j g + i} = <u_{j i}, z_j> + bias_{j g + i}
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks
from cxr_jax.heads.query_decoder import QueryDecoder, gathered
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout
from cxr_jax.models.vit import Features


class MLDecoder(QueryDecoder):
    """The ML-Decoder head.

    Parameters: those of `QueryDecoder`, `classifier/kernel [k, w, g]`, `classifier/bias [c]`.

    Args:
      num_groups: k, at most the number of classes; 0 for one query a class.
      learn_queries: train the queries; the paper's are fixed.
      others: as `GLoRI`. The paper reads the last block alone.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        blocks: int = 1,
        num_groups: int = 0,
        learn_queries: bool = False,
        decoder_width: int = 768,
        num_heads: int = 8,
        ffn_width: int = 2048,
        dropout_rate: float = 0.1,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        groups = num_groups or num_classes
        if not 1 <= groups <= num_classes:
            raise ValueError(
                f"head.num_groups={num_groups}: legal are 1 to {num_classes}, the classes, and 0 for one query a class"
            )
        super().__init__(
            width=width,
            num_queries=groups,
            blocks=blocks,
            decoder_width=decoder_width,
            num_heads=num_heads,
            ffn_width=ffn_width,
            dropout_rate=dropout_rate,
            learn_queries=learn_queries,
            dtypes=Dtypes(param_dtype, compute_dtype, reduce_dtype),
            rngs=rngs,
        )
        self.num_classes, self.each = num_classes, -(-num_classes // groups)
        std = (2.0 / ((decoder_width + groups) * self.each)) ** 0.5  # Xavier normal over [groups, w, each]
        shape = (groups, decoder_width, self.each)
        self.classifier = nnx.Dict(
            kernel=nnx.Param(std * jax.random.normal(rngs.params(), shape, param_dtype)),
            bias=nnx.Param(jnp.zeros((num_classes,), param_dtype)),
        )

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c"]:
        """Logits; `key` switches dropout on.

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = gathered(self, layout)
        return head._classify(head._decode(features, key, layout))

    def attention(self, features: Features, *, layout: Layout = IN_PLACE) -> Float[Array, "b h c n"]:
        """How much of each class's query falls on each patch; classes of a group share it. See `QueryDecoder`."""
        return jnp.repeat(super().attention(features, layout=layout), self.each, axis=2)[:, :, : self.num_classes]

    def _classify(self, decoded: Float[Array, "b k w"]) -> Float[Array, "b c"]:
        kernel = self.classifier.kernel[...].astype(decoded.dtype)
        logits = jnp.einsum("bkw,kwg->bkg", decoded, kernel, preferred_element_type=self.dtypes.reduce_dtype)
        # The last group may stand for more classes than there are.
        logits = logits.reshape(decoded.shape[0], -1)[:, : self.num_classes]
        return logits + self.classifier.bias[...].astype(logits.dtype)
