"""What heads with queries share: dropout, cross-attention, and one post-norm decoder layer without self-attention.

In: patch tokens of the last blocks, side by side. Out: one vector per query. GLoRI and ML-Decoder are built on this
layer (Ridnik et al., arXiv 2111.12933):

    m = relu([patch_{L-n+1}, ..., patch_L] W_e + b_e)                    [b, n, w]
    q = LN(q0 + drop(q0))                                                [b, k, w]
    a = LN(q + drop(attend(q, m, m)))
    z = LN(a + drop(W_2 drop(relu(W_1 a))))

Dropout also acts on the attention weights. It is on when a key is passed and only then, so an evaluation cannot
leave it on by accident.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.heads.inputs import last_blocks, side_by_side
from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, Linear, layer_norm, uniform_fan_in
from cxr_jax.models.vit import Features

LAYER_NORM_EPSILON = 1e-5
Head = TypeVar("Head", bound=nnx.Module)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each entry with probability `rate` and scale the rest by 1/(1 - rate); the identity when `key` is None."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros((), x.dtype))


def dense(in_shape, out_shape, *, dtypes: Dtypes, rngs: nnx.Rngs) -> Linear:
    """Linear map with PyTorch's default init, as in the references: kernel and bias uniform in +-1/sqrt(fan_in)."""
    layer = Linear(in_shape, out_shape, dtypes=dtypes, rngs=rngs)
    fan_in = layer.kernel[...].size // layer.bias[...].size
    for param in (layer.kernel, layer.bias):
        param[...] = uniform_fan_in(rngs.params(), param[...].shape, dtypes.param_dtype, fan_in)
    return layer


def gathered(head: Head, layout: Layout) -> Head:
    """The head with its parameters gathered for use."""
    graphdef, state = nnx.split(head)
    return nnx.merge(graphdef, layout.weights(nnx.to_pure_dict(state)))


class CrossAttention(nnx.Module):
    """Multi-head attention from queries to patches; q kernel `[w, h, w/h]`, k and v `[m, h, w/h]`, proj `[h, w/h, w]`.

    Init as `torch.nn.MultiheadAttention`: where memory and queries are equally wide (m = w), q, k, v Xavier-uniform as
    one `[3w, w]` matrix, else each for itself; biases 0. With `temperatures`, the number of queries, each query has a
    learned temperature per head, `exp(log_temperature [queries, h])`, 1 at the start, that its scores are divided by.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        memory_width: int | None = None,
        temperatures: int = 0,
        dropout_rate: float,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
    ):
        self.dropout_rate, self.dtypes, self.adaptive = dropout_rate, dtypes, bool(temperatures)
        memory_width = memory_width or width
        split = (num_heads, width // num_heads)
        self.q = Linear((width,), split, dtypes=dtypes, rngs=rngs)
        self.k = Linear((memory_width,), split, dtypes=dtypes, rngs=rngs)
        self.v = Linear((memory_width,), split, dtypes=dtypes, rngs=rngs)
        self.proj = dense(split, (width,), dtypes=dtypes, rngs=rngs)
        for layer in (self.q, self.k, self.v):
            shape = layer.kernel[...].shape
            fan_out = 3 * width if memory_width == width else width
            bound = (6.0 / (fan_out + shape[0])) ** 0.5
            layer.kernel[...] = jax.random.uniform(rngs.params(), shape, dtypes.param_dtype, -bound, bound)
        self.proj.bias[...] = jnp.zeros((width,), dtypes.param_dtype)
        if temperatures:
            self.log_temperature = nnx.Param(jnp.zeros((temperatures, num_heads), dtypes.param_dtype))

    def weights(self, queries: Float[Array, "bq k w"], memory: Float[Array, "b n m"]) -> Float[Array, "b h k n"]:
        """Softmax over the memory. `bq` is b, or 1 where all images share their queries."""
        q, k = self.q(queries), self.k(memory)
        q = jnp.broadcast_to(q, (k.shape[0], *q.shape[1:]))
        scores = jnp.einsum("bkhe,bnhe->bhkn", q, k, preferred_element_type=self.dtypes.reduce_dtype)
        scores = scores * q.shape[-1] ** -0.5
        if self.adaptive:
            scores = scores * jnp.exp(-self.log_temperature[...].astype(scores.dtype)).T[None, :, :, None]
        return jax.nn.softmax(scores, axis=-1)

    def __call__(self, queries, memory, *, key: Array | None, layout: Layout) -> Float[Array, "b k w"]:
        weights = dropout(self.weights(queries, memory), self.dropout_rate, key).astype(memory.dtype)
        return self.proj(jnp.einsum("bhkn,bnhe->bkhe", weights, layout.heads(self.v(memory))))


class Mlp(nnx.Module):
    """Feed-forward with ReLU; kernels `[w, f]` and `[f, w]`."""

    def __init__(self, width: int, inner: int, *, dropout_rate: float, dtypes: Dtypes, rngs: nnx.Rngs):
        self.dropout_rate = dropout_rate
        self.w_in = dense((width,), (inner,), dtypes=dtypes, rngs=rngs)
        self.w_out = dense((inner,), (width,), dtypes=dtypes, rngs=rngs)

    def __call__(self, x, *, key: Array | None):
        return self.w_out(dropout(jax.nn.relu(self.w_in(x)), self.dropout_rate, key))


class QueryDecoder(nnx.Module):
    """The decoder layer; a head adds what reads its outputs.

    Parameters: `embed [blocks*d, w]`, `attn/{q,k,v,proj}`, `mlp/{w_in,w_out}`, `norm1`, `norm2`, `norm3`, and
    `queries [k, w]`, N(0, 1) and frozen (no gradient here, and an update of 0 by the optimiser's path table), or with
    `learn_queries` `learned_queries [k, w]` in their place.
    """

    def __init__(
        self,
        *,
        width: int,
        num_queries: int,
        blocks: int,
        decoder_width: int,
        num_heads: int,
        ffn_width: int,
        dropout_rate: float,
        learn_queries: bool = False,
        adaptive_temperature: bool = False,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
    ):
        if decoder_width % num_heads:
            raise ValueError(f"head.decoder_width={decoder_width} must be a multiple of head.num_heads={num_heads}")
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"head.dropout_rate={dropout_rate}: legal are 0 up to, not including, 1")
        self.width, self.blocks, self.dtypes = width, blocks, dtypes
        self.dropout_rate, self.learn_queries = dropout_rate, learn_queries
        common = {"dtypes": dtypes, "rngs": rngs}
        self.embed = dense((blocks * width,), (decoder_width,), **common)
        queries = nnx.Param(jax.random.normal(rngs.params(), (num_queries, decoder_width), dtypes.param_dtype))
        if learn_queries:
            self.learned_queries = queries
        else:
            self.queries = queries
        temperatures = num_queries if adaptive_temperature else 0
        options = {"temperatures": temperatures, "dropout_rate": dropout_rate}
        self.attn = CrossAttention(decoder_width, num_heads, **options, **common)
        self.mlp = Mlp(decoder_width, ffn_width, dropout_rate=dropout_rate, **common)
        self.norm1, self.norm2, self.norm3 = (
            layer_norm(decoder_width, epsilon=LAYER_NORM_EPSILON, **common) for _ in range(3)
        )

    def attention(self, features: Features, *, layout: Layout = IN_PLACE) -> Float[Array, "b h k n"]:
        """How much of each query falls on each patch, per head; sums to 1 over the patches (row-major grid).

        Raises:
          ValueError: the features hold too few blocks or another width.
        """
        features = last_blocks(features, blocks=self.blocks, width=self.width)
        head = gathered(self, layout)
        return head.attn.weights(head._queries(None, 1), head._memory(features, layout))

    def _memory(self, features: Features, layout: Layout) -> Float[Array, "b n w"]:
        patches = layout.rows(side_by_side(features.patches).astype(self.dtypes.compute_dtype))
        return jax.nn.relu(self.embed(patches))

    def _queries(self, key: Array | None, num_images: int) -> Float[Array, "bq k w"]:
        """Normalised queries: one set for all images without a key, `num_images` differently dropped sets with one."""
        stored = self.learned_queries[...] if self.learn_queries else jax.lax.stop_gradient(self.queries[...])
        queries = stored.astype(self.dtypes.reduce_dtype)[None]
        if key is not None:
            queries = jnp.broadcast_to(queries, (num_images, *queries.shape[1:]))
        return self.norm1(queries + dropout(queries, self.dropout_rate, key)).astype(self.dtypes.compute_dtype)

    def _decode(self, features: Features, key: Array | None, layout: Layout) -> Float[Array, "b k w"]:
        keys = (None,) * 5 if key is None else tuple(jax.random.split(key, 5))
        memory = self._memory(features, layout)
        x = self._queries(keys[0], memory.shape[0])
        x = x + dropout(self.attn(x, memory, key=keys[1], layout=layout), self.dropout_rate, keys[2])
        x = layout.rows(self.norm2(x).astype(memory.dtype))
        x = x + dropout(self.mlp(x, key=keys[3]), self.dropout_rate, keys[4])
        return self.norm3(x).astype(memory.dtype)
