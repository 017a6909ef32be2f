"""The parts of a Transformer: linear maps, attention, feed-forward, LayerScale, drop path.

In: token arrays `[rows, t, d]` in the compute dtype. Out: the same shape.

Every module takes three named dtypes. `param_dtype` is what parameters are stored in, `compute_dtype` what matmuls
read and write, `reduce_dtype` what norms, softmax and weight gradients accumulate in. Nothing here says float32.
Modules own no randomness (keys come with the call) and know no mesh (a `Layout` comes with the call).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.models.rope import Rotation, rotate


def _identity(x, *_):
    return x


@dataclass(frozen=True)
class Layout:
    """Where arrays live, as three functions; the default leaves everything where it is.

    `rows(x)` splits the leading axis over the data devices, `weights(tree)` gathers one layer's parameters for use,
    `heads(x)` splits `[rows, t, h, e]` over data and tensor devices. `cxr_jax.sharding` makes the real one.
    """

    rows: Callable = _identity
    weights: Callable = _identity
    heads: Callable = _identity


IN_PLACE = Layout()


class Part(NamedTuple):
    """Which part of how many of a batch the rows at hand are: the groups `index`, `index + of`, ... (`parts`)."""

    index: Any
    of: int


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Dtypes:
    """The three dtypes of a model, by name."""

    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    reduce_dtype: str = "float32"


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def linear(
    x: Array,
    kernel: Array,
    bias: Array | None,
    num_axes: int,
    reduce_dtype: str,
    out_dtype: str | None = None,
) -> Array:
    """`x @ kernel + bias`, contracting the last `num_axes` axes of x with the first of kernel.

    Operands are in x's dtype, the result in `out_dtype` (default: x's dtype).

    The gradient of kernel and bias is accumulated over rows *and devices* in `reduce_dtype`: the compiler inserts
    the cross-device sum at the matmul, so casting its result afterwards would come too late.
    """
    y = jnp.tensordot(x, kernel.astype(x.dtype), num_axes, preferred_element_type=out_dtype or x.dtype)
    return y if bias is None else y + bias.astype(y.dtype)


def _linear_forward(x, kernel, bias, num_axes, reduce_dtype, out_dtype):
    return linear(x, kernel, bias, num_axes, reduce_dtype, out_dtype), (x, kernel, bias)


def _linear_backward(num_axes, reduce_dtype, out_dtype, saved, g):
    x, kernel, bias = saved
    out_axes = kernel.ndim - num_axes
    rows = tuple(range(x.ndim - num_axes))
    operand = g.astype(x.dtype)
    dx = jnp.tensordot(
        operand,
        kernel.astype(x.dtype),
        (tuple(range(g.ndim - out_axes, g.ndim)), tuple(range(num_axes, kernel.ndim))),
    )
    dkernel = jnp.tensordot(x, operand, (rows, rows), preferred_element_type=reduce_dtype).astype(kernel.dtype)
    dbias = None if bias is None else g.astype(reduce_dtype).sum(rows).astype(bias.dtype)
    return dx, dkernel, dbias


linear.defvjp(_linear_forward, _linear_backward)


def trunc_normal(key, shape, dtype):
    """N(0, 0.02): the reference truncates at +-2, a hundred standard deviations, so nothing is ever cut."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def uniform_fan_in(key, shape, dtype, fan_in):
    """Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions and linear maps."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier_uniform(key, shape, dtype, fan_in, fan_out):
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = (6 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nnx.Module):
    """Affine map from `in_shape` axes to `out_shape` axes; kernel `[*in_shape, *out_shape]`."""

    def __init__(self, in_shape, out_shape, *, dtypes: Dtypes, rngs: nnx.Rngs):
        self.num_axes = len(in_shape)
        self.reduce_dtype = dtypes.reduce_dtype
        self.kernel = nnx.Param(trunc_normal(rngs.params(), (*in_shape, *out_shape), dtypes.param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_shape, dtypes.param_dtype))

    def __call__(self, x):
        return linear(x, self.kernel[...], self.bias[...], self.num_axes, self.reduce_dtype)


def layer_norm(width: int, *, dtypes: Dtypes, epsilon: float = 1e-6, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm computed in the reduce dtype; the caller casts its output to the compute dtype."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.dtype(dtypes.reduce_dtype),
        param_dtype=jnp.dtype(dtypes.param_dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


def attend(
    q: Float[Array, "rows q h e"],
    k: Float[Array, "rows t h e"],
    v: Float[Array, "rows t h e"],
    *,
    reduce_dtype: str,
    implementation: str = "plain",
    pad_to: int = 1,
) -> Float[Array, "rows q h e"]:
    """Softmax attention, scale e^-1/2: the one place where an attention kernel is chosen.

    `plain` keeps its softmax in `reduce_dtype`; any other `implementation` is one of `jax.nn.dot_product_attention`'s
    (`xla`, `cudnn`), whose softmax is float32. For those, queries and keys are padded to a multiple of `pad_to` with
    their true lengths passed on, and the padding is dropped again: cuDNN's gradient refuses the odd lengths that CLS
    and registers bring (201, 41, 1,029).
    """
    if implementation == "plain":
        scores = jnp.einsum("bqhe,bthe->bhqt", q, k, preferred_element_type=reduce_dtype)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bhqt,bthe->bqhe", weights, v)
    lengths = [x.shape[1] for x in (q, k)]
    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % pad_to), (0, 0), (0, 0))) for x in (q, k, v))
    queries, keys = (jnp.full((q.shape[0],), length, jnp.int32) for length in lengths)
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation=implementation
    )
    return out[:, : lengths[0]]


# Implementations of `attend`, and the multiple that each wants sequences padded to: cuDNN's gradient refuses odd ones.
ATTENTION = {"plain": 1, "xla": 1, "cudnn": 2}


class Attention(nnx.Module):
    """Multi-head self-attention; qkv kernel `[d, 3, h, d/h]`, projection `[h, d/h, d]`.

    `implementation` is a key of `ATTENTION`.
    """

    def __init__(self, width: int, num_heads: int, *, implementation: str = "plain", dtypes: Dtypes, rngs: nnx.Rngs):
        head_width = width // num_heads
        self.reduce_dtype, self.implementation = dtypes.reduce_dtype, implementation
        self.qkv = Linear((width,), (3, num_heads, head_width), dtypes=dtypes, rngs=rngs)
        self.proj = Linear((num_heads, head_width), (width,), dtypes=dtypes, rngs=rngs)

    def __call__(self, x, layout: Layout = IN_PLACE, rotation: Rotation | None = None):
        qkv = self.qkv(x)
        q, k, v = (layout.heads(qkv[:, :, i]) for i in range(3))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        kernel = {"implementation": self.implementation, "pad_to": ATTENTION[self.implementation]}
        return self.proj(attend(q, k, v, reduce_dtype=self.reduce_dtype, **kernel))


def draw_xavier(module: nnx.Module, rngs: nnx.Rngs) -> None:
    """Draw every `Linear` inside `module` anew, as MAE's authors do: Xavier-uniform, +-sqrt(6 / (fan_in + fan_out)).

    A map to several axes counts as one matrix, so queries, keys and values share a fan-out of 3d.
    """
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear):
            kernel, fan_out = layer.kernel[...], layer.bias[...].size
            fans = kernel.size // fan_out, fan_out
            layer.kernel[...] = xavier_uniform(rngs.params(), kernel.shape, kernel.dtype, *fans)


class SwiGLU(nnx.Module):
    """Gated feed-forward `(silu(x W_0) * x W_1) W_out`; the two input maps are one kernel `[d, 2, f]`, gate first."""

    def __init__(self, width: int, inner: int, *, dtypes: Dtypes, rngs: nnx.Rngs):
        self.w_in = Linear((width,), (2, inner), dtypes=dtypes, rngs=rngs)
        self.w_out = Linear((inner,), (width,), dtypes=dtypes, rngs=rngs)

    def __call__(self, x):
        gated = self.w_in(x)
        return self.w_out(jax.nn.silu(gated[..., 0, :]) * gated[..., 1, :])


class Mlp(nnx.Module):
    """Feed-forward with exact (erf) GELU."""

    def __init__(self, width: int, inner: int, *, dtypes: Dtypes, rngs: nnx.Rngs):
        self.w_in = Linear((width,), (inner,), dtypes=dtypes, rngs=rngs)
        self.w_out = Linear((inner,), (width,), dtypes=dtypes, rngs=rngs)

    def __call__(self, x):
        return self.w_out(jax.nn.gelu(self.w_in(x), approximate=False))


def make_ffn(kind: str, width: int, *, ratio: float = 4.0, dtypes: Dtypes, rngs: nnx.Rngs) -> nnx.Module:
    """`mlp` of inner width `ratio * width`, or `swiglu` with 2/3 of it rounded up to 8 (2,736 for ViT-L)."""
    inner = int(ratio * width)
    if kind == "swiglu":
        return SwiGLU(width, (inner * 2 // 3 + 7) // 8 * 8, dtypes=dtypes, rngs=rngs)
    return Mlp(width, inner, dtypes=dtypes, rngs=rngs)


def kept_rows(rows: int, rate: float) -> int:
    """How many of a group's `rows` rows a residual branch computes at drop-path rate `rate`."""
    return max(1, round(rows * (1 - rate)))


def residual(
    x: Float[Array, "rows t d"],
    branch: Callable[[Float[Array, "kept t d"], Any], Float[Array, "kept t d"]],
    *,
    rate: float,
    num_groups: int,
    key: Array | None,
    beside: Any = None,
    part: Part = WHOLE,
) -> Float[Array, "rows t d"]:
    """`x + branch(x, beside)`, or with sample-subset drop path when a key is given.

    In each of `num_groups` equal groups of rows, `kept_rows` rows are drawn, only those go through the branch, and
    its output is scaled by rows/kept. Gathers are batched over groups, so they never leave a device that holds
    whole groups. Arrays in the tree `beside` lose the same rows, or hold for all of them if their first axis is 1.
    Groups of a `part` of a batch lose the rows that they lose in the whole batch.
    """
    rows = x.shape[0] // num_groups
    kept = kept_rows(rows, rate)
    if key is None or kept == rows:
        return x + branch(x, beside)
    # Named float32: the same rows are drawn whether or not 64-bit mode is on.
    noise = jax.random.uniform(key, (num_groups * part.of, rows), jnp.float32)
    if part.of > 1:
        noise = jax.lax.dynamic_index_in_dim(noise.reshape(num_groups, part.of, rows), part.index, 1, keepdims=False)
    order = jnp.argsort(noise, axis=1)[:, :kept]
    grouped = x.reshape(num_groups, rows, *x.shape[1:])

    def take(leaf):
        leaf = leaf.reshape(num_groups, rows, *leaf.shape[1:])
        return jnp.take_along_axis(leaf, order[:, :, None, None], axis=1).reshape(-1, *leaf.shape[2:])

    beside = jax.tree.map(lambda leaf: leaf if leaf.shape[0] == 1 else take(leaf), beside)
    out = branch(take(x), beside).reshape(num_groups, kept, *x.shape[1:])
    added = jax.vmap(lambda g, rows, o: g.at[rows].add(o))(grouped, order, out * (rows / kept))
    return added.reshape(x.shape)
