"""AUROC, average precision and their curves for one class, exact under ties and under row weights.

In: scores `[n]` (any monotone scale; higher means more likely positive) and labels `[n]` (1 positive, 0 negative,
-1 unknown). Out: numbers, or None where the class has no such number.

AUROC is P(score of a positive > score of a negative) + P(tie) / 2. AUPRC is average precision: the sum over
thresholds of (recall gained) x (precision), tied scores sharing one threshold. Both agree with scikit-learn. Row
weights say how often a row was drawn, so that a bootstrap sorts the scores once and not once per draw.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped


class Ranking(NamedTuple):
    """The known rows of one class in rising order of score; rows with equal scores form one group."""

    rows: Integer[np.ndarray, " m"]
    positive: Shaped[np.ndarray, " m"]
    starts: Integer[np.ndarray, " groups"]


def rank(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> Ranking | None:
    """Sort the rows of one class whose label is known; None unless both labels occur and are scored."""
    rows = np.flatnonzero(labels >= 0)
    positive = labels[rows] == 1
    if not positive.any() or positive.all() or np.isnan(scores[rows]).any():
        return None
    order = np.argsort(scores[rows], kind="stable")
    rows = rows[order]
    ordered = scores[rows]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return Ranking(rows, positive[order], starts)


def weighted_metrics(ranking: Ranking, weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "2 r"]:
    """AUROC and average precision under `r` sets of row weights (how often each row was drawn).

    Returns:
      `[2, r]`, NaN where the weights leave out all positives or all negatives.
    """
    drawn = weights[ranking.rows]
    positive = np.add.reduceat(drawn * ranking.positive[:, None], ranking.starts, axis=0)
    negative = np.add.reduceat(drawn * ~ranking.positive[:, None], ranking.starts, axis=0)
    positives, negatives = positive.sum(axis=0), negative.sum(axis=0)
    negatives_below = np.cumsum(negative, axis=0) - negative
    true_positives = positives - np.cumsum(positive, axis=0) + positive  # called at this score or higher
    called_positive = true_positives + negatives - negatives_below
    precision = true_positives / np.maximum(called_positive, 1e-300)
    defined = (positives > 0) & (negatives > 0)
    safe_positives, safe_negatives = np.where(defined, positives, 1.0), np.where(defined, negatives, 1.0)
    auroc = (positive * (negatives_below + 0.5 * negative)).sum(axis=0) / (safe_positives * safe_negatives)
    auprc = (positive * precision).sum(axis=0) / safe_positives
    return np.where(defined, np.stack([auroc, auprc]), np.nan)


def auroc(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve of one class; None if undefined (unknown labels, -1, are masked out)."""
    ranking = rank(scores, labels)
    return None if ranking is None else float(weighted_metrics(ranking, np.ones((len(scores), 1)))[0, 0])


def auprc(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> float | None:
    """Average precision of one class; None if undefined (unknown labels, -1, are masked out)."""
    ranking = rank(scores, labels)
    return None if ranking is None else float(weighted_metrics(ranking, np.ones((len(scores), 1)))[1, 0])


def curves(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> dict[str, np.ndarray] | None:
    """Points of the ROC and precision-recall curves of one class, thresholds falling; None if undefined.

    Returns:
      `fpr`, `tpr` (both start at 0 and end at 1), `recall`, `precision` (one point per distinct score).
    """
    ranking = rank(scores, labels)
    if ranking is None:
        return None
    positive = np.add.reduceat(ranking.positive.astype(float), ranking.starts)[::-1]
    negative = np.add.reduceat((~ranking.positive).astype(float), ranking.starts)[::-1]
    true_positives, false_positives = np.cumsum(positive), np.cumsum(negative)
    recall = true_positives / true_positives[-1]
    return {
        "fpr": np.concatenate([[0.0], false_positives / false_positives[-1]]),
        "tpr": np.concatenate([[0.0], recall]),
        "recall": recall,
        "precision": true_positives / (true_positives + false_positives),
    }
