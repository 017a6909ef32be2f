"""Dice and IoU of predicted masks, counted at the size in which images are stored.

In: a function from normalised images to logits of several candidates (the learning rates of a grid), a split whose
records carry masks. Out: areas of prediction, truth and what they share, per image and candidate, in px; from them

    Dice = 2 |P & T| / (|P| + |T|),      IoU = |P & T| / |P or T|

Logits go back from the model input to the stored size by bilinear interpolation (`geometry.unfit`) and are cut at 0,
that is at probability 1/2; what `fit=crop` has cut away is not predicted, padding is not counted. The same areas at the
model input, where the mask was shrunk by area, are beside them: they leave out what the input's resolution costs.

A score of an image whose true mask is empty is undefined, whatever is predicted: so the images that count are the same
for every candidate and column. Rows without a mask are not scored at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from cxr_jax.data.augment import blur_matrix
from cxr_jax.data.geometry import denormalise, fit_images, fit_masks, normalise, unfit, visible
from cxr_jax.data.pipeline import eval_batches
from cxr_jax.data.source import Split
from cxr_jax.data.steps import load_rows
from cxr_jax.evals.features import Geometry

# Parameters and normalised images `[b, S, S]` to logits `[b, candidates, S, S]`.
MaskFunction = Callable[[Any, Float[Array, "b S S"]], Float[Array, "b k S S"]]
SCORES = ("dice", "iou", "dice_at_input", "iou_at_input")
AREAS = ("shared", "predicted", "true")


@dataclass(frozen=True)
class Overlaps:
    """Areas in px, `[n, candidates]` each, of the images that have a mask; `rows` says which of the split they are.

    `stored` and `at_input` hold arrays named `shared`, `predicted` and `true`.
    """

    rows: Int[np.ndarray, " n"]
    stored: dict[str, Int[np.ndarray, "n k"]]
    at_input: dict[str, Int[np.ndarray, "n k"]]

    def scores(self, candidate: int) -> Float[np.ndarray, "n 4"]:
        """`SCORES` of one candidate, NaN where the true mask is empty."""
        columns = []
        for areas in (self.stored, self.at_input):
            one = [areas[name][:, candidate] for name in AREAS]
            columns += [dice(*one), iou(*one)]
        return np.stack(columns, axis=1)

    def mean_dice(self) -> Float[np.ndarray, " k"]:
        """Mean Dice at the stored size of every candidate, NaN when no image has a mask that is not empty."""
        values = dice(*(self.stored[name] for name in AREAS))
        there = ~np.isnan(values[:, 0])
        return values[there].mean(0) if there.any() else np.full(values.shape[1], np.nan)


def dice(
    shared: Int[np.ndarray, "*shape"], predicted: Int[np.ndarray, "*shape"], true: Int[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """`2 shared / (predicted + true)`, NaN where the true mask is empty."""
    return np.where(true > 0, 2.0 * shared / np.maximum(predicted + true, 1), np.nan)


def iou(
    shared: Int[np.ndarray, "*shape"], predicted: Int[np.ndarray, "*shape"], true: Int[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """`shared / (predicted + true - shared)`, NaN where the true mask is empty."""
    return np.where(true > 0, shared / np.maximum(predicted + true - shared, 1), np.nan)


def areas(predicted: Bool[Array, "b H W"], true: Bool[Array, "b H W"]) -> dict[str, Int[Array, " b"]]:
    """What prediction and truth cover and share, in px."""
    masks = {"shared": predicted & true, "predicted": predicted, "true": true}
    return {name: mask.sum((1, 2), dtype=jnp.int32) for name, mask in masks.items()}


def stored_prediction(
    logits: Float[Array, "b S S"], sizes: Int[Array, "b 2"], canvas: tuple[int, int], fit: str
) -> Bool[Array, "b H W"]:
    """Logits above 0 at the stored size, on the canvas."""
    return unfit(logits, sizes, canvas, fit) > 0


def make_scorer(
    function: MaskFunction, *, geometry: Geometry, batch_size: int, sharding: NamedSharding, dtype: str = "float32"
) -> Callable[[Split, Any], Overlaps]:
    """`score(split, params)`: the areas of all candidates over a split; compiled once."""
    side, fit = geometry.image_size, geometry.fit

    @jax.jit
    def step(params, image, size, mask):
        logits = function(params, normalise(fit_images(image, size, side, fit, dtype)))
        at_input, shown = fit_masks(mask, size, side, fit, dtype), visible(size, side, fit)
        stored, canvas = mask > 127, image.shape[1:]

        def candidate(z):
            both = areas(stored_prediction(z, size, canvas, fit), stored), areas((z > 0) & shown, at_input)
            return dict(zip(("stored", "at_input"), both, strict=True))

        return jax.lax.map(candidate, logits.swapaxes(0, 1))

    def score(split: Split, params: Any) -> Overlaps:
        params = jax.device_put(params, NamedSharding(sharding.mesh, PartitionSpec()))
        found = []
        for batch in eval_batches(split, batch_size=batch_size, sharding=sharding, masks=True):
            out = step(params, batch["image"], batch["size"], batch["mask"])
            out = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), out)
            out |= {"kept": batch["valid"] & batch["has_mask"]}
            many = jax.process_count() > 1
            found.append(multihost_utils.process_allgather(out, tiled=True) if many else jax.device_get(out))
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        kept = whole.pop("kept")
        # Rows come in order, so the padding of the last batch is at the end.
        return Overlaps(np.flatnonzero(kept), **jax.tree.map(lambda leaf: leaf[kept].astype(np.int64), whole))

    return score


def mean_mask(
    split: Split, *, geometry: Geometry, batch_size: int, sharding: NamedSharding
) -> Float[np.ndarray, "S S"]:
    """The share of a split's masks that cover each pixel of the model input.

    Raises:
      ValueError: no record has a mask.
    """

    @jax.jit
    def step(mask, size, kept):
        return (fit_masks(mask, size, geometry.image_size, geometry.fit) & kept[:, None, None]).sum(0), kept.sum()

    total, count = np.zeros((geometry.image_size,) * 2), 0
    for batch in eval_batches(split, batch_size=batch_size, sharding=sharding, masks=True):
        covered, kept = jax.device_get(step(batch["mask"], batch["size"], batch["valid"] & batch["has_mask"]))
        total, count = total + covered, count + int(kept)
    if not count:
        raise ValueError(f"no record of split {split.name!r} has a mask")
    return total / count


# The candidates of the hand-made floor: how much darkness counts, and how sure one has to be.
FLOOR_DARKNESS = (0.0, 0.5, 1.0, 2.0)
FLOOR_BIAS = (-1.0, -0.5, 0.0, 0.5, 1.0)
FLOOR_BLUR_PX = 1.5


def floor_function(mean: Float[Array, "S S"], images: Float[Array, "b S S"]) -> Float[Array, "b k S S"]:
    """The hand-made floor: where masks lie on average, and that lungs are dark.

        z = log(m / (1 - m)) - a (blur(x) - mean(x)) / std(x) + c

    m is the mean training mask, x the image; a and c are the candidates, a = 0 the mean mask alone. Nothing is learned.
    """
    prior = jnp.clip(mean, 0.01, 0.99)
    prior = jnp.log(prior / (1 - prior)).astype(images.dtype)
    x = denormalise(images)
    matrix = blur_matrix(jnp.asarray(FLOOR_BLUR_PX, x.dtype), x.shape[-1])
    spread = jnp.maximum(x.std((1, 2), keepdims=True), 1e-6)
    dark = (x.mean((1, 2), keepdims=True) - jnp.einsum("ij,bjk,lk->bil", matrix, x, matrix)) / spread
    return jnp.stack([prior + a * dark + c for a in FLOOR_DARKNESS for c in FLOOR_BIAS], axis=1)


def floor_candidates() -> list[str]:
    """What the candidates of `floor_function` are, in its order."""
    return [f"darkness {a:g}, bias {c:g}" for a in FLOOR_DARKNESS for c in FLOOR_BIAS]


def show(
    function: MaskFunction, params: Any, split: Split, rows: Sequence[int], candidate: int, geometry: Geometry
) -> list[dict[str, UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]]]:
    """`{"image", "true", "predicted"}` at the stored size of some rows of a split."""
    loaded = load_rows(split, list(rows), masks=True)
    image, size, side, fit = loaded["image"], loaded["size"], geometry.image_size, geometry.fit

    @jax.jit
    def predict(params, image, size):
        logits = function(params, normalise(fit_images(image, size, side, fit)))[:, candidate]
        return stored_prediction(logits, size, image.shape[1:], fit)

    predicted = np.asarray(predict(params, image, size))
    pictures = []
    for i, (height, width) in enumerate(size):
        cut = slice(height), slice(width)
        pictures.append({"image": image[i][cut], "true": loaded["mask"][i][cut] > 127, "predicted": predicted[i][cut]})
    return pictures
