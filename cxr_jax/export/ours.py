"""Our side of a conversion: the ViT rebuilt from its stored arguments, in float32.

In: the arguments of `ViT` as a checkpoint keeps them. Out: the shapes of its parameters, or its features.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.export.names import flatten
from cxr_jax.models.vit import Features, ViT

_FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32", "reduce_dtype": "float32"}


def _abstract(model: dict):
    """Graph definition and abstract state of the model; allocates nothing."""
    kwargs = {**model, **_FLOAT32, "drop_path": 0.0, "remat": "none"}
    return nnx.split(nnx.eval_shape(lambda: ViT(**kwargs, rngs=nnx.Rngs(params=0))))


def parameter_shapes(model: dict) -> dict[str, tuple[int, ...]]:
    """`{"backbone/cls_token": (d,), ...}` of the ViT with these arguments."""
    _, state = _abstract(model)
    return {f"backbone/{path}": leaf.shape for path, leaf in flatten(nnx.to_pure_dict(state)).items()}


def features(model: dict, backbone: dict, images: Float[Array, "b H W"], blocks: int = 1) -> Features:
    """Features of normalised images in full float32, whatever the run's own compute dtype was."""
    graphdef, _ = _abstract(model)

    @jax.jit
    def run(params, images):
        return nnx.merge(graphdef, params).features(images, blocks=blocks)

    with jax.default_matmul_precision("highest"):
        return run(backbone, images)
