"""Weighted nearest-neighbour score on frozen features: no training, no choice of hyper-parameters on labels.

In: feature arrays `[n, d]` of train and test rows, train labels `[n, c]` (1, 0, -1 unknown). Out: scores `[m, c]`, the
weighted share of positives among the k nearest train rows, ready for AUROC.

    score_c(x) = sum_{i in N_k(x)} w_i y_ic / sum_i w_i,   w_i = exp(cos(x, x_i) / temperature)

The DINO protocol (k = 20, temperature 0.07), with neighbours sought per class among the rows whose label is known.
"""

import numpy as np
from jaxtyping import Float, Integer

ROWS_PER_CHUNK = 1024  # bounds the similarity matrix at 1024 x train rows


def knn_scores(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Integer[np.ndarray, "n c"],
    features: Float[np.ndarray, "m d"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "m c"]:
    """Scores in 0..1. A class with fewer than k known train rows uses all of them; one that lacks a label is NaN.

    Raises:
      ValueError: k or temperature is not positive, or a feature vector is zero or not finite.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k}, temperature={temperature}: both must be positive")
    train, rows = _unit(train_features, "train"), _unit(features, "test")
    scores = np.full((len(rows), train_labels.shape[1]), np.nan)
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        similarity = rows[chunk] @ train.T
        for c in range(train_labels.shape[1]):
            known = np.flatnonzero(train_labels[:, c] >= 0)
            labels = train_labels[known, c]
            if len(np.unique(labels)) == 2:
                scores[chunk, c] = _weighted_share(similarity[:, known], labels, min(k, len(known)), temperature)
    return scores


def _weighted_share(similarity, labels, k, temperature):
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
    return (weights * labels[nearest]).sum(axis=1) / weights.sum(axis=1)


def _unit(features, name):
    features = features.astype(np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    bad = int((~np.isfinite(norm) | (norm == 0)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} {name} rows have no direction (zero or not finite)")
    return features / norm
