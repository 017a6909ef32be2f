"""The hand-made floor: what anyone gets without learning a representation.

In: grey images as one array `[n, H, W]` and labels `[n, c]` for train, validation and test rows. Out: test scores
`[m, c]` of a logistic regression on histograms of oriented gradients (Dalal and Triggs 2005) beside a small copy of
the image, both reduced by PCA fitted on the train rows. Components keep their relative sizes: whitening them gives
the last ones, which are noise, the same say as the first (lower validation AUROC in 13 of 16 trials on two tasks).

A pretrained backbone that does not beat this has learned nothing that ten lines of 2005 do not know. A report
therefore shows it as a column.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, Shaped
from sklearn.decomposition import PCA

from cxr_jax.evals.linear_probe import CS, LinearProbe, fit_linear_probe

IMAGES_PER_CHUNK = 64

HogAndPixels = tuple[Float[np.ndarray, "_ a"], Float[np.ndarray, "_ b"]]


def shrink(images: Shaped[np.ndarray, "n H W"], side: int) -> Float[np.ndarray, "n side side"]:
    """Area average to `side` x `side`, exact for any size: every output pixel averages the area it covers.

    Raises:
      ValueError: an image is smaller than `side`.
    """
    height, width = images.shape[1:]
    if min(height, width) < side:
        raise ValueError(f"images are {height} x {width}, smaller than the {side} x {side} asked for")
    rows, columns = _cover(height, side), _cover(width, side)
    return np.concatenate(
        [
            rows @ images[start : start + IMAGES_PER_CHUNK].astype(np.float64) @ columns.T
            for start in range(0, len(images), IMAGES_PER_CHUNK)
        ]
    )


def hog(
    images: Float[np.ndarray, "n S S"], *, cell: int = 8, orientations: int = 9, clip: float = 0.2
) -> Float[np.ndarray, "n features"]:
    """Histograms of oriented gradients: unsigned orientations, 2 x 2 cell blocks, L2-Hys normalisation.

    Each pixel votes with its gradient's length for the two nearest orientations. Length is
    `(S/cell - 1)^2 * 4 * orientations`.
    """
    n, side, _ = images.shape
    gy, gx = np.gradient(images, axis=(1, 2))
    length = np.hypot(gx, gy)
    position = (np.arctan2(gy, gx) % np.pi) * orientations / np.pi
    lower = np.floor(position).astype(int)
    share = position - lower
    cells = side // cell
    histogram = np.empty((n, cells, cells, orientations))
    for o in range(orientations):
        vote = length * ((1 - share) * (lower % orientations == o) + share * ((lower + 1) % orientations == o))
        vote = vote[:, : cells * cell, : cells * cell].reshape(n, cells, cell, cells, cell)
        histogram[..., o] = vote.sum(axis=(2, 4))
    blocks = np.concatenate(
        [histogram[:, y : cells - 1 + y, x : cells - 1 + x] for y in (0, 1) for x in (0, 1)], axis=-1
    )
    for bound in (clip, None):
        blocks = blocks / np.sqrt((blocks**2).sum(axis=-1, keepdims=True) + 1e-10)
        blocks = blocks if bound is None else np.minimum(blocks, bound)
    return blocks.reshape(n, -1)


def floor_features(images: Shaped[np.ndarray, "n H W"], *, side: int = 64, thumbnail: int = 16) -> HogAndPixels:
    """HOG of the image at `side` px, and its standardised pixels at `thumbnail` px. Any grey scale, any size."""
    hogs, pixels = [], []
    for start in range(0, len(images), IMAGES_PER_CHUNK):
        small = shrink(images[start : start + IMAGES_PER_CHUNK], side)
        small = small - small.mean(axis=(1, 2), keepdims=True)
        small = small / np.maximum(small.std(axis=(1, 2), keepdims=True), 1e-6)
        hogs.append(hog(small).astype(np.float32))
        pixels.append(shrink(small, thumbnail).reshape(len(small), -1).astype(np.float32))
    return np.concatenate(hogs), np.concatenate(pixels)


def floor_scores(
    train_images: Shaped[np.ndarray, "n H W"],
    train_labels: Integer[np.ndarray, "n c"],
    val_images: Shaped[np.ndarray, "v H2 W2"],
    val_labels: Integer[np.ndarray, "v c"],
    test_images: Shaped[np.ndarray, "m H3 W3"],
    *,
    components: int = 200,
    cs: Sequence[float] = CS,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "v c"], LinearProbe]:
    """Scores of the test and validation rows, and the probe that made them (its `fits` hold the chosen C and notes).

    Args:
      components: principal components kept of the HOG and of the pixels each (fewer if there are fewer rows).
      seed: of the randomised PCA.
    """
    features = [floor_features(images) for images in (train_images, val_images, test_images)]
    return fit_floor(*features, train_labels, val_labels, components=components, cs=cs, seed=seed)


def fit_floor(
    train: HogAndPixels,
    val: HogAndPixels,
    test: HogAndPixels,
    train_labels: Integer[np.ndarray, "n c"],
    val_labels: Integer[np.ndarray, "v c"],
    *,
    components: int = 200,
    cs: Sequence[float] = CS,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "v c"], LinearProbe]:
    """`floor_scores` from what `floor_features` made of the images, for who fits more than once on the same ones."""
    reduced = [[], [], []]
    for kind in range(2):
        kept = min(components, len(train_labels) - 1, train[kind].shape[1])
        pca = PCA(n_components=kept, random_state=seed).fit(train[kind])
        scale = np.sqrt(pca.explained_variance_[0])
        for parts, features in zip(reduced, (train, val, test), strict=True):
            parts.append(pca.transform(features[kind]) / scale)
    rows = [np.concatenate(parts, axis=1).astype(np.float64) for parts in reduced]
    probe = fit_linear_probe(rows[0], train_labels, rows[1], val_labels, cs=cs, standardise=False)
    return probe.scores(rows[2]), probe.scores(rows[1]), probe


def _cover(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """Share of each of `size` input pixels in each of `side` output pixels; rows sum to 1."""
    edges = np.arange(side + 1) * size / side
    starts = np.arange(size)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.clip(overlap, 0, None) * side / size
