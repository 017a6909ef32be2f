"""Running a frozen network over a split, once, in order.

In: a split, a function of normalised images, the geometry. Out: NumPy arrays with one row an image, and who the images
are. All evaluations and probes read images through here, in the geometry that the checkpoint names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
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


def run_over(
    split: Split,
    function: Callable[[Float[Array, "b S S"]], dict[str, Array]],
    *,
    geometry: Geometry,
    batch_size: int,
    sharding: NamedSharding,
    dtype: str = "float32",
) -> dict[str, np.ndarray]:
    """`function(normalised images)`, row by row of the split; its arrays have the image axis first."""

    @jax.jit
    def step(image, size):
        return function(normalise(fit_images(image, size, geometry.image_size, geometry.fit, dtype)))

    rows: list[dict[str, np.ndarray]] = []
    for batch in eval_batches(split, batch_size=batch_size, sharding=sharding):
        out = step(batch["image"], batch["size"]) | {"valid": batch["valid"]}
        out = multihost_utils.process_allgather(out, tiled=True) if jax.process_count() > 1 else jax.device_get(out)
        rows.append({name: value[out["valid"]] for name, value in out.items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0] if name != "valid"}


def backbone_function(
    model: dict[str, Any], params: dict, *, blocks: int, mean_patch: bool
) -> Callable[[Float[Array, "b S S"]], dict[str, Array]]:
    """A function to `run_over`: CLS of the last `blocks` blocks side by side, and the last mean patch on request."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))

    def function(images):
        features = nnx.merge(graphdef, params).features(images, blocks=blocks)
        parts = [*features.cls] + ([features.patches[-1].mean(1)] if mean_patch else [])
        return {"features": jax.numpy.concatenate(parts, axis=-1)}

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
