"""Our side of a conversion: modules rebuilt from their stored arguments, in float32.

In: the arguments of `ViT` and of other modules as a checkpoint keeps them. Out: the shapes of their parameters, or
what they compute.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.export.mapping import flatten
from cxr_jax.heads.kinds import HEADS
from cxr_jax.models.blocks import run_blocks
from cxr_jax.models.layers import IN_PLACE
from cxr_jax.models.mae_decoder import MAEDecoder
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.vit import Features, ViT

_FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32", "reduce_dtype": "float32"}


def arguments_of(constructor: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """What `constructor` takes of `stored`, its defaults filled in."""
    parameters = inspect.signature(constructor.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **{name: value for name, value in stored.items() if name in parameters}}


def _abstract(constructor: Any, stored: dict[str, Any]):
    """Graph definition and abstract state of a module; allocates nothing."""
    given = arguments_of(constructor, stored) | _FLOAT32
    given |= {name: value for name, value in {"drop_path": 0.0, "remat": "none"}.items() if name in given}
    return nnx.split(nnx.eval_shape(lambda: constructor(**given, rngs=nnx.Rngs(params=0))))


def _constructor(part: str, options: dict[str, Any]) -> Any:
    if part == "head":
        return HEADS[options["name"]]
    return {"backbone": ViT, "decoder": MAEDecoder}.get(part, ProjectionHead)


def parameter_shapes(options: dict[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """`{"backbone/cls_token": (d,), ...}` of the modules with these arguments, by part."""
    shapes = {}
    for part, stored in options.items():
        shapes |= _shapes(part, tuple(sorted(stored.items())))
    return shapes


@functools.lru_cache(maxsize=32)
def _shapes(part: str, arguments: tuple[tuple[str, Any], ...]) -> dict[str, tuple[int, ...]]:
    stored = dict(arguments)
    _, state = _abstract(_constructor(part, stored), stored)
    leaves = flatten(nnx.to_pure_dict(state), part)
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


@functools.lru_cache(maxsize=8)
def _programs(arguments: tuple[tuple[str, Any], ...]):
    """Embedding, one block, and the final norm of a ViT, compiled for whoever asks again with the same arguments."""
    graphdef, _ = _abstract(ViT, {**dict(arguments), "depth": 1})

    @jax.jit
    def begin(params, images):
        vit = nnx.merge(graphdef, params)
        return vit._embed(images, None, None), vit._rotation(images, None)

    @jax.jit
    def go_on(params, tokens, rotation):
        options = {"rotations": (rotation,), "keys": None, "num_groups": 1, "layout": IN_PLACE}
        (tokens,), _ = run_blocks(nnx.merge(graphdef, params).blocks, (tokens,), **options, scan=True, remat="none")
        return tokens

    @jax.jit
    def end(params, tokens):
        return nnx.merge(graphdef, params)._split(tokens)

    return begin, go_on, end


def features(model: dict, backbone: dict, images: Float[Array, "b H W"], blocks: int = 1) -> Features:
    """Features of normalised images in full float32, whatever the run's own compute dtype was.

    Layer by layer, each brought to the device for itself: a backbone on the host is not copied as a whole.
    """
    begin, go_on, end = _programs(tuple(sorted(model.items())))

    def with_layer(index):
        return {**backbone, "blocks": jax.tree.map(lambda leaf: leaf[index : index + 1], backbone["blocks"])}

    with jax.default_matmul_precision("highest"):
        first, kept = with_layer(0), []
        tokens, rotation = begin(first, images)
        for index in range(model["depth"]):
            # Waiting lets go of this layer's copy before the next is made.
            tokens = jax.block_until_ready(go_on(with_layer(index), tokens, rotation))
            kept = [*kept, tokens][-blocks:]
        return end(first, jnp.stack(kept))


def logits(options: dict[str, Any], head: dict, tokens: Features) -> Float[Array, "b c"]:
    """Logits of one fine-tuned head (arguments in `options`) in full float32."""
    graphdef, _ = _abstract(_constructor("head", options), options)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))(head, tokens)
