"""The decoder of a masked autoencoder (MAE, arXiv 2111.06377): from the tokens of visible patches to pixels.

In: CLS and visible patch tokens of the encoder, after its final norm, and where each patch of the image is. Out: pixels
of every patch.

    y = [CLS, t_1, ..., t_n] + sincos,   t_i = W_e x_i + b_e if patch i is visible, else the mask token
    pixels_i = W_p LN(blocks(y))_i + b_p

Blocks have an MLP and no LayerScale. The initialisation is the published one: linear maps Xavier-uniform with zero
biases (queries, keys and values as one matrix), mask token N(0, 0.02). DINOv2's, which `ViT` takes unless told
`init="xavier"`, draws linear maps from N(0, 0.02), CLS from N(0, 1e-6), and the patch kernel uniform in
+-1/sqrt(fan_in); biases of linear maps are 0 and that of the patch embedding uniform in both.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cxr_jax.models.blocks import make_blocks, run_blocks
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, Linear, draw_xavier, layer_norm, linear
from cxr_jax.models.positions import sincos_positions


class MAEDecoder(nnx.Module):
    """Decoder of MAE.

    Args:
      encoder_width: width of the encoder's tokens.
      patch_size: side of a patch in px.
      width, depth, num_heads: of the decoder's blocks; 512, 8 and 16 in the paper.
      norm_epsilon: of every LayerNorm.
      scan, remat: as in `ViT`.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        norm_epsilon: float = 1e-6,
        scan: bool = True,
        remat: str = "none",
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if min(width, depth, num_heads) < 1 or width % num_heads or width % 4:
            raise ValueError(
                f"decoder.width={width} must be a multiple of decoder.num_heads={num_heads} and of 4 (its positions "
                f"are sines and cosines), and decoder.depth={depth} at least 1"
            )
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes, self.width, self.scan, self.remat = dtypes, width, scan, remat
        self.embed = Linear((encoder_width,), (width,), dtypes=dtypes, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,), param_dtype))
        self.norm = layer_norm(width, dtypes=dtypes, epsilon=norm_epsilon, rngs=rngs)
        self.pred = Linear((width,), (patch_size**2,), dtypes=dtypes, rngs=rngs)
        draw_xavier(self, rngs)
        self.blocks = make_blocks(
            depth,
            width=width,
            num_heads=num_heads,
            ffn="mlp",
            layer_scale=None,
            drop_path=0.0,
            norm_epsilon=norm_epsilon,
            dtypes=dtypes,
            init="xavier",
            rngs=rngs,
        )

    def __call__(
        self,
        cls: Float[Array, "rows d"],
        patches: Float[Array, "rows v d"],
        place: Int[Array, "rows n"],
        layout: Layout = IN_PLACE,
    ) -> Float[Array, "rows n pixels"]:
        """Pixels of all patches, in the reduce dtype; patch i of a row is visible token `place[i]`, or hidden."""
        compute, reduce = self.dtypes.compute_dtype, self.dtypes.reduce_dtype
        rows, num_patches = place.shape
        tokens = self.embed(jnp.concatenate([cls[:, None], patches], axis=1)).astype(reduce)
        # The mask token is broadcast over rows: its gradient accumulates in the dtype of this sum.
        mask_token = self.mask_token[...].astype(reduce)
        hidden = jnp.broadcast_to(mask_token, (rows, num_patches - patches.shape[1], self.width))
        ordered = jnp.concatenate([tokens[:, 1:], hidden], axis=1)
        ordered = jnp.take_along_axis(ordered, place[:, :, None], axis=1)
        positions = jnp.asarray(sincos_positions(round(num_patches**0.5), self.width), reduce)
        x = jnp.concatenate([tokens[:, :1], ordered], axis=1) + positions
        (x,), _ = run_blocks(
            self.blocks,
            (layout.rows(x.astype(compute)),),
            rotations=(None,),
            keys=None,
            num_groups=1,
            layout=layout,
            scan=self.scan,
            remat=self.remat,
        )
        x = self.norm(x[:, 1:]).astype(compute)
        return linear(x, self.pred.kernel[...], self.pred.bias[...], 1, reduce, reduce)
