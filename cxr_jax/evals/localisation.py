"""Weak localisation: do maps that were trained on labels alone, such as GLoRI's attention, fall on a finding's boxes?

In: per image a map on the patch grid, and the boxes of one finding in px of the stored image. Out: per image

    hit        the map's highest pixel lies in a box (the pointing game, Zhang et al. 2016, arXiv 1608.00507;
               no tolerance around the box)
    mass       the share of the map that falls into the boxes
    iou_<t>    IoU of the boxes with the pixels that reach t times the map's highest value
    chance     the share of the picture that the boxes cover: what `hit` and `mass` are for a map that knows nothing

All in px of the model input: the map is enlarged bilinearly, boxes take the geometry of the image, padding is left out.
Several boxes of one finding in one image count as their union, so every image counts once. A map that always looks at
the same place may hit often, since findings have their places: `centre_map` and the mean of the training boxes
(`mean_boxes`) go through the same scores, and attention has shown something only where it is above them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cxr_jax.data.geometry import placements
from cxr_jax.data.source import Split
from cxr_jax.evals.features import Geometry
from cxr_jax.heads.maps import bilinear_matrix

THRESHOLDS = (0.25, 0.5, 0.75)
SCORES = ("hit", "mass", *(f"iou_{threshold:g}" for threshold in THRESHOLDS), "chance")
CENTRE_SPREAD = 0.25  # standard deviation of `centre_map`, of the input's side


@dataclass(frozen=True)
class Boxed:
    """An image of a split (`row`) with boxes of a finding.

    `inside` is where they lie, `shown` where the picture lies in the model input.
    """

    row: int
    finding: str
    inside: Bool[np.ndarray, "S S"]
    shown: Bool[np.ndarray, "S S"]


def boxed_images(split: Split, findings: Sequence[str], geometry: Geometry) -> tuple[list[Boxed], dict[str, int]]:
    """Every pair of an image and one of `findings` that has boxes, and how many boxes there are of other findings.

    A box of which the geometry shows nothing (`fit=crop`) is no box.
    """
    found, others = [], {}
    for row in range(len(split)):
        record = split[row]
        boxes = record["boxes"]
        labels = [label.decode() if isinstance(label, bytes) else str(label) for label in boxes["label"]]
        size = np.array([record["height"], record["width"]], np.int32)
        for finding in dict.fromkeys(labels):
            if finding not in findings:
                others[finding] = others.get(finding, 0) + labels.count(finding)
                continue
            corners = [[float(boxes[name][i]) for name in "xywh"] for i, label in enumerate(labels) if label == finding]
            inside, shown = at_input(np.array(corners), size, geometry)
            if inside.any():
                found.append(Boxed(row, finding, inside, shown))
    return found, others


def at_input(
    boxes: Float[np.ndarray, "m 4"], size: np.ndarray, geometry: Geometry
) -> tuple[Bool[np.ndarray, "S S"], Bool[np.ndarray, "S S"]]:
    """Which pixels of the model input have their centre in a box (x, y, w, h), and which show the picture."""
    side = geometry.image_size
    rows, columns = (
        {name: int(value) for name, value in place._asdict().items()}
        for place in placements(jnp.asarray(size), side, geometry.fit)
    )
    centre = np.arange(side) + 0.5

    def stored(place):
        """Pixel centres in px of the stored image, NaN beyond the picture."""
        position = (centre - place["before"]) * place["length"] / place["out"] + place["start"]
        within = (centre > place["before"]) & (centre < place["before"] + place["out"])
        return np.where(within, position, np.nan)

    down, right = stored(rows), stored(columns)
    inside = np.zeros((side, side), bool)
    for x, y, w, h in boxes:
        inside |= ((down >= y) & (down < y + h))[:, None] & ((right >= x) & (right < x + w))[None, :]
    return inside, ~np.isnan(down)[:, None] & ~np.isnan(right)[None, :]


def enlarge(grid: Float[np.ndarray, "g g"], side: int) -> Float[np.ndarray, "S S"]:
    """A map on the patch grid at `side` px, bilinear."""
    matrix = bilinear_matrix(len(grid), side)
    return matrix @ grid.astype(np.float64) @ matrix.T


def score_map(weights: Float[np.ndarray, "S S"], boxed: Boxed) -> Float[np.ndarray, " k"]:
    """`SCORES` of one map at the model input, which must not be negative."""
    weights = np.where(boxed.shown, weights, 0.0)
    inside, shown = boxed.inside, boxed.shown
    peak, total = weights.max(), weights.sum()
    # Equal peaks, as of a flat map, count by the share of them that hits.
    highest = shown & (weights >= peak)
    values = [inside[highest].mean(), weights[inside].sum() / total if total else inside.sum() / shown.sum()]
    for threshold in THRESHOLDS:
        region = shown & (weights >= threshold * peak)
        values.append((region & inside).sum() / (region | inside).sum())
    return np.array([*values, inside.sum() / shown.sum()])


def centre_map(boxed: Boxed) -> Float[np.ndarray, "S S"]:
    """A Gaussian about the middle of the picture."""
    side = len(boxed.shown)
    rows, columns = (np.flatnonzero(boxed.shown.any(axis)) for axis in (1, 0))
    down, right = ((np.arange(side) - (there[0] + there[-1]) / 2) / (CENTRE_SPREAD * side) for there in (rows, columns))
    return np.exp(-0.5 * (down[:, None] ** 2 + right[None, :] ** 2))


def mean_boxes(training: Sequence[Boxed], finding: str) -> Float[np.ndarray, "S S"] | None:
    """How often a pixel lies in a box of the finding, over the training images that have one; None if none has."""
    inside = [boxed.inside for boxed in training if boxed.finding == finding]
    return np.mean(inside, axis=0) if inside else None
