"""The attentive probe: one learned query reads the patches, a linear map decides.

In: `Features`. Out: logits `[b, c]` in the reduce dtype; on request the attention map, which all classes share.

    m = LN([patch_{L-n+1}, ..., patch_L])                                [b, n, blocks*d]
    z = LN(attend(q, m, m)),   q learned                                 [b, w]
    logits = z W + b

For masked autoencoding, whose CLS token is not trained, it is the natural probe (attentive probing of Chen et al.,
context autoencoder, arXiv 2202.03026; V-JEPA's has a feed-forward more).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, side_by_side
from cxr_jax.heads.query_decoder import LAYER_NORM_EPSILON, CrossAttention, gathered
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, layer_norm, linear, trunc_normal
from cxr_jax.models.vit import Features


class AttentiveProbe(nnx.Module):
    """Parameters `norm`, `query [1, w]` (trained), `attn/{q,k,v,proj}`, `norm_out`, `classifier/kernel [w, c]`, `bias`.

    Args:
      width: d of the backbone.
      num_classes: c.
      blocks: how many of the last blocks are read.
      decoder_width: w.
      num_heads: of the cross-attention; must divide `decoder_width`.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        blocks: int = 1,
        decoder_width: int = 768,
        num_heads: int = 8,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if decoder_width % num_heads:
            raise ValueError(f"head.decoder_width={decoder_width} must be a multiple of head.num_heads={num_heads}")
        self.width, self.blocks, self.num_classes = width, blocks, num_classes
        self.dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        options = {"dtypes": self.dtypes, "rngs": rngs}
        self.norm = layer_norm(blocks * width, epsilon=LAYER_NORM_EPSILON, **options)
        self.query = nnx.Param(trunc_normal(rngs.params(), (1, decoder_width), param_dtype))
        self.attn = CrossAttention(decoder_width, num_heads, memory_width=blocks * width, dropout_rate=0.0, **options)
        self.norm_out = layer_norm(decoder_width, epsilon=LAYER_NORM_EPSILON, **options)
        self.classifier = nnx.Dict(
            kernel=nnx.Param(0.01 * jax.random.normal(rngs.params(), (decoder_width, num_classes), param_dtype)),
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
        head = gathered(self, layout)
        read = head.attn(head._query(), head._memory(features, layout), key=None, layout=layout)[:, 0]
        x = layout.rows(head.norm_out(read).astype(self.dtypes.compute_dtype))
        kernel, bias = (head.classifier[name][...] for name in ("kernel", "bias"))
        return linear(x, kernel, bias, 1, self.dtypes.reduce_dtype, self.dtypes.reduce_dtype)

    def attention(self, features: Features, *, layout: Layout = IN_PLACE) -> Float[Array, "b h c n"]:
        """How much of the query falls on each patch, per head, the same for every class; sums to 1 over the patches.

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = gathered(self, layout)
        return jnp.repeat(head.attn.weights(head._query(), head._memory(features, layout)), self.num_classes, axis=2)

    def _query(self) -> Float[Array, "1 1 w"]:
        return self.query[...].astype(self.dtypes.compute_dtype)[None]

    def _memory(self, features: Features, layout: Layout) -> Float[Array, "b n m"]:
        patches = layout.rows(side_by_side(features.patches))
        return self.norm(patches).astype(self.dtypes.compute_dtype)
