"""GLoRI: global and local representations integration (CheXFound, arXiv 2502.05142).

In: `Features`. Out: logits `[b, c]` in the reduce dtype; on request the attention map of every class and head.

One frozen random query per class, q0 ~ N(0, 1), reads the patch tokens of the last blocks through one decoder layer
(`query_decoder`); every class then has a linear unit of its own:

    z = decode(q0, relu([patch_{L-n+1}, ..., patch_L] W_e + b_e))        [b, c, w]
    logit_c = <u_c, [CLS_{L-n+1}, ..., CLS_L, z_c]> + bias_c             CLS only with `concat_cls`

The journal version (IEEE TMI 44(12), 2025) adds two options whose code was never released and whose equations could
not be read here. Known is: attention with a temperature that adapts to each query, and a pyramid of merged patches,
8x8, 4x4 and 2x2, beside the fine ones. Our reading of either:

    temperature   scores of class c and attention head h are divided by exp(t_ch), t learned, 0 at the start. Queries
                  are constants, so that anything predicted from a query would be such a constant too.
    pyramid       the embedded patches, averaged over a grid of 8 x 8 cells, of 4 x 4 and of 2 x 2, stand beside them
                  as more keys and values: m = [m; P_8 m; P_4 m; P_2 m], cell i of s covering the rows and columns
                  floor(i g / s) .. ceil((i + 1) g / s) - 1 of a grid of g, as in adaptive average pooling.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, side_by_side
from cxr_jax.heads.query_decoder import QueryDecoder, gathered
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, linear
from cxr_jax.models.vit import Features


def merging(grid: int, sides: Sequence[int]) -> np.ndarray:
    """`[cells, grid^2]`: how the patches of a square grid are averaged into grids of `sides` cells a side.

    Raises ValueError for a side that is larger than the grid.
    """
    rows = []
    for side in sides:
        if not 1 <= side <= grid:
            raise ValueError(
                f"head.pyramid={tuple(sides)}: the backbone gives {grid} x {grid} patches; legal sides are 1 to {grid}"
            )
        one = np.zeros((side, grid))
        for i in range(side):
            cell = slice(i * grid // side, -(-(i + 1) * grid // side))
            one[i, cell] = 1 / (cell.stop - cell.start)
        rows.append(np.kron(one, one))
    return np.concatenate(rows)


class GLoRI(QueryDecoder):
    """The GLoRI head.

    Parameters: those of `QueryDecoder` with one frozen query per class, `attn/log_temperature [c, h]` with
    `adaptive_temperature`, `classifier/kernel [c, (blocks*d) + w]`, `classifier/bias [c]`.

    Args:
      width: d of the backbone.
      num_classes: c, one query and one linear unit each.
      blocks: how many of the last blocks are read.
      decoder_width: w.
      num_heads: of the cross-attention; must divide `decoder_width`.
      ffn_width: f, inner width of the feed-forward.
      dropout_rate: of all five dropouts, used only when a key is passed.
      concat_cls: also give every class the CLS tokens of the last blocks.
      adaptive_temperature: a learned temperature for each class and attention head.
      pyramid: sides of the grids that patches are merged into, `(8, 4, 2)` in the journal version, none: `()`.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        blocks: int = 4,
        decoder_width: int = 768,
        num_heads: int = 8,
        ffn_width: int = 2048,
        dropout_rate: float = 0.1,
        concat_cls: bool = True,
        adaptive_temperature: bool = False,
        pyramid: Sequence[int] = (),
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        super().__init__(
            width=width,
            num_queries=num_classes,
            blocks=blocks,
            decoder_width=decoder_width,
            num_heads=num_heads,
            ffn_width=ffn_width,
            dropout_rate=dropout_rate,
            adaptive_temperature=adaptive_temperature,
            dtypes=Dtypes(param_dtype, compute_dtype, reduce_dtype),
            rngs=rngs,
        )
        self.concat_cls, self.pyramid = concat_cls, tuple(pyramid)
        inputs = decoder_width + blocks * width * concat_cls
        std = (2.0 / (inputs + num_classes)) ** 0.5  # Xavier normal over [classes, inputs, 1]
        self.classifier = nnx.Dict(
            kernel=nnx.Param(std * jax.random.normal(rngs.params(), (num_classes, inputs), param_dtype)),
            bias=nnx.Param(jnp.zeros((num_classes,), param_dtype)),
        )

    def __call__(
        self, features: Features, *, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "b c"]:
        """Logits; `key` switches dropout on.

        Raises:
          ValueError: the features hold too few blocks or another width, or fewer patches than `pyramid` asks for.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = gathered(self, layout)
        return head._classify(features, head._decode(features, key, layout))

    def attention(self, features: Features, *, layout: Layout = IN_PLACE) -> Float[Array, "b h c n"]:
        """How much of each class's query falls on each patch, per head; sums to 1 over the patches (row-major grid).

        What falls on a merged cell is shared out among its patches, as their values are.

        Raises:
          ValueError: as the call.
        """
        weights = super().attention(features, layout=layout)
        if not self.pyramid:
            return weights
        fine = features.patches.shape[2]
        cells = jnp.asarray(self._merging(fine), weights.dtype)
        return weights[..., :fine] + weights[..., fine:] @ cells

    def _merging(self, num_patches: int) -> np.ndarray:
        grid = math.isqrt(num_patches)
        if grid**2 != num_patches:
            raise ValueError(f"head.pyramid={self.pyramid}: {num_patches} patches are no square grid; set it to ()")
        return merging(grid, self.pyramid)

    def _memory(self, features: Features, layout: Layout) -> Float[Array, "b n w"]:
        memory = super()._memory(features, layout)
        if not self.pyramid:
            return memory
        cells = jnp.asarray(self._merging(memory.shape[1]), memory.dtype)
        return jnp.concatenate([memory, jnp.einsum("sn,bnw->bsw", cells, memory)], axis=1)

    def _classify(self, features: Features, decoded: Float[Array, "b c w"]) -> Float[Array, "b c"]:
        reduce, compute = self.dtypes.reduce_dtype, self.dtypes.compute_dtype
        kernel = self.classifier.kernel[...]
        global_inputs = kernel.shape[1] - decoded.shape[-1]
        local_kernel = kernel[:, global_inputs:].astype(compute)
        logits = jnp.einsum("bcw,cw->bc", decoded, local_kernel, preferred_element_type=reduce)
        if self.concat_cls:
            # The CLS tokens are the same for all classes: one matmul instead of [b, c, blocks*d] copies of them.
            cls = side_by_side(features.cls).astype(compute)
            logits = logits + linear(cls, kernel[:, :global_inputs].T, None, 1, reduce, reduce)
        return logits + self.classifier.bias[...].astype(reduce)
