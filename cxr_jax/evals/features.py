"""Running a frozen network over a split, once, in order.

In: a split, a function of normalised images, the geometry. Out: NumPy arrays with one row an image, and who the images
are. All evaluations and probes read images through here, in the geometry that the checkpoint names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from cxr_jax.data.geometry import fit_images, normalise
from cxr_jax.data.pipeline import eval_batches
from cxr_jax.data.source import Split
from cxr_jax.models.vit import ViT


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a model input; stored with every checkpoint."""

    fit: str
    image_size: int


# Parameters and normalised images `[b, S, S]` to arrays with the image axis first.
ImageFunction = Callable[[Any, Float[Array, "b S S"]], dict[str, Array]]


def make_runner(
    function: ImageFunction,
    *,
    geometry: Geometry,
    batch_size: int,
    sharding: NamedSharding,
    dtype: str = "float32",
    mirrored: bool = False,
) -> Callable[[Split, Any], dict[str, np.ndarray]]:
    """`run(split, params)`: the function over every image of a split, one row an image; compiled once.

    `mirrored` shows the function each image left to right.
    """

    @jax.jit
    def step(params, image, size):
        images = normalise(fit_images(image, size, geometry.image_size, geometry.fit, dtype))
        return function(params, images[:, :, ::-1] if mirrored else images)

    def run(split: Split, params: Any) -> dict[str, np.ndarray]:
        params = jax.device_put(params, NamedSharding(sharding.mesh, PartitionSpec()))
        rows: list[dict[str, np.ndarray]] = []
        for batch in eval_batches(split, batch_size=batch_size, sharding=sharding):
            out = step(params, batch["image"], batch["size"]) | {"valid": batch["valid"]}
            many = jax.process_count() > 1
            out = multihost_utils.process_allgather(out, tiled=True) if many else jax.device_get(out)
            rows.append({name: value[out["valid"]] for name, value in out.items()})
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0] if name != "valid"}

    return run


TOKENS = ("cls", "mean_patch", "cls_and_mean_patch")


def backbone_function(model: dict[str, Any], *, blocks: int, tokens: str) -> ImageFunction:
    """Features of a backbone: CLS of the last `blocks` blocks side by side, the mean patch of the last, or both.

    Raises ValueError for other `tokens` than those of `TOKENS`.
    """
    if tokens not in TOKENS:
        raise ValueError(f"probe.tokens={tokens!r}: legal are {', '.join(TOKENS)}")
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))

    def function(params, images):
        features = nnx.merge(graphdef, params).features(images, blocks=blocks)
        parts = [*features.cls] if tokens.startswith("cls") else []
        parts += [features.patches[-1].mean(1)] if tokens.endswith("mean_patch") else []
        return {"features": jnp.concatenate(parts, axis=-1)}

    return function


def random_backbone(model: dict[str, Any], seed: int) -> dict:
    """Parameters of a network that has seen nothing: the column that pretraining has to beat."""

    @jax.jit
    def init(key):
        return nnx.to_pure_dict(nnx.state(ViT(**model, rngs=nnx.Rngs(params=key))))

    return init(jax.random.key(seed))


def identities(split: Split, field: str) -> np.ndarray:
    """`patient_id`, `image_id`, ... of every row."""
    return np.array([split.text(i, field) for i in range(len(split))])
