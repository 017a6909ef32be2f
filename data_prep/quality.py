"""Six simple statistics of a stored picture, and the limits beyond which it is no usable radiograph.

In: decoded pixels. Out: the values of `STATISTICS`, and for values beyond `Limits` the reason in words. They tell blank
and tiny pictures, noise, text pages, line drawings and panoramas from radiographs. They do not tell a photograph of a
smooth scene, or another body part: no statistic of grey levels does.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

# Borders are measured on a picture reduced to about so many pixels a side.
BORDER_PX = 128
# Rows or columns at the edge count as border while the middle 96 % of their pixels span at most so many levels.
BORDER_SPAN = 12
STATISTICS = ("side_px", "aspect", "contrast", "flat", "roughness", "border")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Legal values; the defaults keep all of 7,381 real radiographs, with room (README, "Curation").

    Attributes:
      min_side_px: shorter side.
      max_aspect: longer side over shorter side.
      min_contrast: grey levels between the first and the last percentile.
      max_flat: share of the commonest grey level, borders included.
      max_roughness: mean step between neighbours over the standard deviation, of a 32x32 reduction.
      max_border: share of the area in flat rows and columns at the edges, such as collimation or padding.
    """

    min_side_px: float = 16
    max_aspect: float = 2.5
    min_contrast: float = 16
    max_flat: float = 0.75
    max_roughness: float = 0.6
    max_border: float = 0.6


def measure(pixels: UInt8[np.ndarray, "h w"], thumb: UInt8[np.ndarray, "64 64"]) -> Float32[np.ndarray, "6"]:
    """The values of `STATISTICS`, in order; `thumb` is the picture's 64x64 reduction."""
    height, width = pixels.shape
    share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    low, high = np.searchsorted(np.cumsum(share), (0.01, 0.99))
    coarse = thumb.reshape(32, 2, 32, 2).mean((1, 3))
    step = (np.abs(np.diff(coarse, axis=0)).mean() + np.abs(np.diff(coarse, axis=1)).mean()) / 2
    roughness = step / max(float(coarse.std()), 0.5)
    small = np.asarray(Image.fromarray(pixels).reduce(max(1, min(height, width) // BORDER_PX)))
    border = 1 - _inside(_flat_rows(small)) * _inside(_flat_rows(small.T)) / small.size
    sides = (min(height, width), max(height, width) / min(height, width))
    return np.array([*sides, high - low, share.max(), roughness, border], np.float32)


def judge(values: Float32[np.ndarray, "n 6"], limits: Limits) -> list[tuple[str, Bool[np.ndarray, " n"]]]:
    """For each statistic what is wrong beyond its limit, as "too rough: roughness above 0.6", and where it is."""
    rules = (
        ("too small", "side_px", "below", limits.min_side_px),
        ("too long", "aspect", "above", limits.max_aspect),
        ("blank", "contrast", "below", limits.min_contrast),
        ("one grey level", "flat", "above", limits.max_flat),
        ("too rough for a radiograph", "roughness", "above", limits.max_roughness),
        ("mostly border", "border", "above", limits.max_border),
    )
    judged = []
    for what, name, side, limit in rules:
        column = values[:, STATISTICS.index(name)]
        judged.append((f"{what}: {name} {side} {limit:g}", column < limit if side == "below" else column > limit))
    return judged


def summary(values: Float32[np.ndarray, "n 6"]) -> dict[str, dict[str, float]]:
    """Least, first percentile, median, last percentile and greatest value of each statistic, to 4 digits."""
    if not len(values):
        return {}
    names = ("min", "p1", "median", "p99", "max")
    # Values that occur, not means of two: the same on every machine.
    quantiles = np.quantile(values, (0, 0.01, 0.5, 0.99, 1), axis=0, method="nearest")
    return {
        statistic: {name: float(f"{row[column]:.4g}") for name, row in zip(names, quantiles, strict=True)}
        for column, statistic in enumerate(STATISTICS)
    }


def _flat_rows(pixels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, " h"]:
    """Rows whose pixels span few grey levels, a fiftieth at either end (markers, dust) apart."""
    width = pixels.shape[1]
    cut = width // 50
    ends = np.partition(pixels, (cut, width - 1 - cut), axis=1)
    return ends[:, width - 1 - cut].astype(np.int16) - ends[:, cut] <= BORDER_SPAN


def _inside(flat: Bool[np.ndarray, " h"]) -> int:
    """Number of rows between the flat runs at both ends."""
    inner = np.flatnonzero(~flat)
    return int(inner[-1] - inner[0] + 1) if len(inner) else 0
