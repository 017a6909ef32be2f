"""GLoRI: global and local representations integration (CheXFound, arXiv 2502.05142).

In: `Features`. Out: logits `[b, c]` in the reduce dtype; on request the attention map of every class and head.

One frozen random query per class reads the patch tokens of the last blocks through one post-norm decoder layer
without self-attention; every class then has a linear unit of its own:

    m = relu([patch_{L-n+1}, ..., patch_L] W_e + b_e)                    [b, n, w]
    q = LN(q0 + drop(q0)),   q0 ~ N(0, 1) and never trained              [b, c, w]
    a = LN(q + drop(attend(q, m, m)))
    z = LN(a + drop(W_2 drop(relu(W_1 a))))
    logit_c = <u_c, [CLS_{L-n+1}, ..., CLS_L, z_c]> + bias_c             CLS only with `concat_cls`

Dropout also acts on the attention weights. It is on when a key is passed and only then, so an evaluation cannot
leave it on by accident.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, side_by_side
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, Linear, layer_norm, linear, uniform_fan_in
from cxr_jax.models.vit import Features

LAYER_NORM_EPSILON = 1e-5


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each entry with probability `rate` and scale the rest by 1/(1 - rate); the identity when `key` is None."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros((), x.dtype))


def _dense(in_shape, out_shape, *, dtypes: Dtypes, rngs: nnx.Rngs) -> Linear:
    """Linear map with PyTorch's default init, as in the reference: kernel and bias uniform in +-1/sqrt(fan_in)."""
    layer = Linear(in_shape, out_shape, dtypes=dtypes, rngs=rngs)
    fan_in = layer.kernel[...].size // layer.bias[...].size
    for param in (layer.kernel, layer.bias):
        param[...] = uniform_fan_in(rngs.params(), param[...].shape, dtypes.param_dtype, fan_in)
    return layer


class CrossAttention(nnx.Module):
    """Multi-head attention from class queries to patches; q, k, v kernels `[w, h, w/h]`, proj `[h, w/h, w]`.

    Init as `torch.nn.MultiheadAttention`: q, k, v Xavier-uniform as one `[3w, w]` matrix, biases 0.
    """

    def __init__(self, width: int, num_heads: int, *, dropout_rate: float, dtypes: Dtypes, rngs: nnx.Rngs):
        self.dropout_rate, self.dtypes = dropout_rate, dtypes
        head_width = width // num_heads
        split = (num_heads, head_width)
        self.q = Linear((width,), split, dtypes=dtypes, rngs=rngs)
        self.k = Linear((width,), split, dtypes=dtypes, rngs=rngs)
        self.v = Linear((width,), split, dtypes=dtypes, rngs=rngs)
        self.proj = _dense(split, (width,), dtypes=dtypes, rngs=rngs)
        bound = (6.0 / (3 * width + width)) ** 0.5
        for layer in (self.q, self.k, self.v):
            shape = layer.kernel[...].shape
            layer.kernel[...] = jax.random.uniform(rngs.params(), shape, dtypes.param_dtype, -bound, bound)
        self.proj.bias[...] = jnp.zeros((width,), dtypes.param_dtype)

    def weights(self, queries: Float[Array, "bq c w"], memory: Float[Array, "b n w"]) -> Float[Array, "b h c n"]:
        """Softmax over the patches. `bq` is b, or 1 where all images share their queries."""
        q, k = self.q(queries), self.k(memory)
        q = jnp.broadcast_to(q, (k.shape[0], *q.shape[1:]))
        scores = jnp.einsum("bche,bnhe->bhcn", q, k, preferred_element_type=self.dtypes.reduce_dtype)
        return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)

    def __call__(self, queries, memory, *, key: Array | None, layout: Layout) -> Float[Array, "b c w"]:
        weights = dropout(self.weights(queries, memory), self.dropout_rate, key).astype(memory.dtype)
        return self.proj(jnp.einsum("bhcn,bnhe->bche", weights, layout.heads(self.v(memory))))


class Mlp(nnx.Module):
    """Feed-forward with ReLU; kernels `[w, f]` and `[f, w]`."""

    def __init__(self, width: int, inner: int, *, dropout_rate: float, dtypes: Dtypes, rngs: nnx.Rngs):
        self.dropout_rate = dropout_rate
        self.w_in = _dense((width,), (inner,), dtypes=dtypes, rngs=rngs)
        self.w_out = _dense((inner,), (width,), dtypes=dtypes, rngs=rngs)

    def __call__(self, x, *, key: Array | None):
        return self.w_out(dropout(jax.nn.relu(self.w_in(x)), self.dropout_rate, key))


class GLoRI(nnx.Module):
    """The GLoRI head.

    Parameters: `embed [blocks*d, w]`, `queries [c, w]` (frozen: no gradient here, and an update of 0 by the
    optimiser's path table), `attn/{q,k,v,proj}`, `mlp/{w_in,w_out}`, `norm1`, `norm2`, `norm3`,
    `classifier/kernel [c, (blocks*d) + w]`, `classifier/bias [c]`.

    Args:
      width: d of the backbone.
      num_classes: c, one query and one linear unit each.
      blocks: how many of the last blocks are read.
      decoder_width: w.
      num_heads: of the cross-attention; must divide `decoder_width`.
      ffn_width: f, inner width of the feed-forward.
      dropout_rate: of all five dropouts, used only when a key is passed.
      concat_cls: also give every class the CLS tokens of the last blocks.
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
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if decoder_width % num_heads:
            raise ValueError(f"head.decoder_width={decoder_width} must be a multiple of head.num_heads={num_heads}")
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"head.dropout_rate={dropout_rate}: legal are 0 up to, not including, 1")
        self.width, self.blocks = width, blocks
        self.dropout_rate, self.concat_cls = dropout_rate, concat_cls
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes = dtypes
        self.embed = _dense((blocks * width,), (decoder_width,), dtypes=dtypes, rngs=rngs)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (num_classes, decoder_width), param_dtype))
        self.attn = CrossAttention(decoder_width, num_heads, dropout_rate=dropout_rate, dtypes=dtypes, rngs=rngs)
        self.mlp = Mlp(decoder_width, ffn_width, dropout_rate=dropout_rate, dtypes=dtypes, rngs=rngs)
        norm = {"dtypes": dtypes, "epsilon": LAYER_NORM_EPSILON, "rngs": rngs}
        self.norm1 = layer_norm(decoder_width, **norm)
        self.norm2 = layer_norm(decoder_width, **norm)
        self.norm3 = layer_norm(decoder_width, **norm)
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
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = self._gathered(layout)
        return head._classify(features, head._decode(features, key, layout))

    def attention(self, features: Features, *, layout: Layout = IN_PLACE) -> Float[Array, "b h c n"]:
        """How much of each class's query falls on each patch, per head; sums to 1 over the patches (row-major grid).

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = self._gathered(layout)
        return head.attn.weights(head._queries(None, 1), head._memory(features, layout))

    def _gathered(self, layout: Layout) -> "GLoRI":
        graphdef, state = nnx.split(self)
        return nnx.merge(graphdef, layout.weights(nnx.to_pure_dict(state)))

    def _memory(self, features: Features, layout: Layout) -> Float[Array, "b n w"]:
        patches = layout.rows(side_by_side(features.patches).astype(self.dtypes.compute_dtype))
        return jax.nn.relu(self.embed(patches))

    def _queries(self, key: Array | None, num_images: int) -> Float[Array, "bq c w"]:
        """Normalised queries: one set for all images without a key, `num_images` differently dropped sets with one."""
        queries = jax.lax.stop_gradient(self.queries[...]).astype(self.dtypes.reduce_dtype)[None]
        if key is not None:
            queries = jnp.broadcast_to(queries, (num_images, *queries.shape[1:]))
        return self.norm1(queries + dropout(queries, self.dropout_rate, key)).astype(self.dtypes.compute_dtype)

    def _decode(self, features: Features, key: Array | None, layout: Layout) -> Float[Array, "b c w"]:
        keys = (None,) * 5 if key is None else tuple(jax.random.split(key, 5))
        memory = self._memory(features, layout)
        x = self._queries(keys[0], memory.shape[0])
        x = x + dropout(self.attn(x, memory, key=keys[1], layout=layout), self.dropout_rate, keys[2])
        x = layout.rows(self.norm2(x).astype(memory.dtype))
        x = x + dropout(self.mlp(x, key=keys[3]), self.dropout_rate, keys[4])
        return self.norm3(x).astype(memory.dtype)

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
