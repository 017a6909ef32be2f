"""The DINO / iBOT projection head: tokens -> logits over prototypes.

    y = l2_normalise(W3 gelu(W2 gelu(W1 x)));   logits_k = g_k <v_k, y> / |v_k|

In: tokens `[..., d]`. Out: the bottleneck `y [..., e]`, from which `prototype_logits` makes cosine-like logits, for all
prototypes at once or for a chunk of them (Caron et al. 2021; Oquab et al. 2023). `g` starts at 1 and is trained, unlike
in the first DINO.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.models.layers import IN_PLACE, Dtypes, Layout, Linear, linear, uniform_fan_in


class Prototypes(nnx.Module):
    """Weight-normalised last layer: directions `v [bottleneck, k]`, gains `g [k]`."""

    def __init__(self, bottleneck: int, num_prototypes: int, *, dtypes: Dtypes, rngs: nnx.Rngs):
        self.dtypes = dtypes
        shape = (bottleneck, num_prototypes)
        self.v = nnx.Param(uniform_fan_in(rngs.params(), shape, dtypes.param_dtype, bottleneck))
        self.g = nnx.Param(jnp.ones((num_prototypes,), dtypes.param_dtype))


def prototype_logits(
    y: Float[Array, "*rows e"], v: Float[Array, "e k"], g: Float[Array, " k"], reduce_dtype: str
) -> Float[Array, "*rows k"]:
    """Logits of embeddings over the prototypes with directions `v` and gains `g`, in the reduce dtype."""
    v, g = v.astype(reduce_dtype), g.astype(reduce_dtype)
    return linear(y, v * (g * jax.lax.rsqrt(jnp.square(v).sum(0))), None, 1, reduce_dtype, reduce_dtype)


class ProjectionHead(nnx.Module):
    """Three-layer MLP to an L2-normalised bottleneck, then prototypes."""

    def __init__(
        self,
        *,
        width: int,
        hidden: int = 2048,
        bottleneck: int = 384,
        num_prototypes: int = 131_072,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        reduce_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        dtypes = Dtypes(param_dtype, compute_dtype, reduce_dtype)
        self.dtypes = dtypes
        self.hidden1 = Linear((width,), (hidden,), dtypes=dtypes, rngs=rngs)
        self.hidden2 = Linear((hidden,), (hidden,), dtypes=dtypes, rngs=rngs)
        self.bottleneck = Linear((hidden,), (bottleneck,), dtypes=dtypes, rngs=rngs)
        self.prototypes = Prototypes(bottleneck, num_prototypes, dtypes=dtypes, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows d"], layout: Layout = IN_PLACE) -> Float[Array, "*rows e"]:
        """The L2-normalised bottleneck in the compute dtype; the prototypes wait for `prototype_logits`."""
        layers = {name: getattr(self, name) for name in ("hidden1", "hidden2", "bottleneck")}
        graphdef, state = nnx.split(layers)
        layers = nnx.merge(graphdef, layout.weights(nnx.to_pure_dict(state)))
        compute, reduce = self.dtypes.compute_dtype, self.dtypes.reduce_dtype
        x = jax.nn.gelu(layers["hidden1"](layout.rows(x).astype(compute)), approximate=False)
        x = jax.nn.gelu(layers["hidden2"](x), approximate=False)
        x = layers["bottleneck"](x).astype(reduce)
        # max(|x|, 1e-12) as in the reference, taken on the square so that the gradient at 0 is finite.
        norm = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
        return (x / norm).astype(compute)
