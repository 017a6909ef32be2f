"""From scores to decisions: thresholds chosen on selection rows, and what they do on test rows.

In: scores and labels (1, 0, -1 unknown) of one class. Out: a threshold (called positive: score >= threshold), and under
row weights the counts that follow from it:

    F1 = 2 TP / (2 TP + FP + FN)    sensitivity = TP / P    specificity = TN / N    PPV = TP / (TP + FP)

A threshold is never chosen on the rows that it is judged on. The one number that does so, the sensitivity read off the
test rows' own ROC curve, is named for it: it says what the ranking would allow, not what the classifier does.

Thresholds lie midway between two neighbouring scores of the selection rows.
"""

import numpy as np
from jaxtyping import Float, Integer

from cxr_jax.evals.bootstrap import ratio
from cxr_jax.evals.ranking import Ranking, rank


def best_f1_threshold(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> float | None:
    """The threshold with the largest F1, the highest of several; None for a class that lacks a label or scores."""
    ranking = rank(scores, labels)
    if ranking is None:
        return None
    true_positives, called, _ = _called(ranking, np.ones((len(scores), 1)))
    f1 = (2 * true_positives / (called + ranking.positive.sum()))[:, 0]
    return _threshold(ranking, scores, len(f1) - 1 - int(np.argmax(f1[::-1])))


def threshold_at_specificity(
    scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], specificity: float
) -> float | None:
    """The lowest threshold whose specificity is at least the given one; None as `best_f1_threshold`.

    It lies above all scores where nothing else is specific enough.
    """
    ranking = rank(scores, labels)
    if ranking is None:
        return None
    allowed = _specific(ranking, np.ones((len(scores), 1)), specificity)[:, 0]
    return _threshold(ranking, scores, int(np.argmax(allowed)) if allowed.any() else len(allowed))


def sensitivity_of_own_curve(
    ranking: Ranking, weights: Float[np.ndarray, "n r"], specificity: float
) -> Float[np.ndarray, " r"]:
    """Largest sensitivity among the points of these rows' own ROC curve that are specific enough; NaN if undefined."""
    true_positives, _, (positives, negatives) = _called(ranking, weights)
    best = np.where(_specific(ranking, weights, specificity), true_positives, 0.0).max(axis=0)
    return np.where(negatives > 0, ratio(best, positives), np.nan)


def decision_metrics(
    scores: Float[np.ndarray, " n"],
    labels: Integer[np.ndarray, " n"],
    threshold: float,
    weights: Float[np.ndarray, "n r"],
) -> dict[str, Float[np.ndarray, " r"]]:
    """`f1`, `sensitivity`, `specificity`, `ppv`, `npv` under `r` sets of row weights; NaN where there is no such
    number.

    F1 is 0 where positives are there and none was called rightly, and undefined without positives.
    """
    called, positive, negative = scores >= threshold, labels == 1, labels == 0
    cells = np.stack([positive & called, negative & called, positive & ~called, negative & ~called])
    tp, fp, fn, tn = cells.astype(np.float64) @ weights
    return {
        "f1": np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
    }


def confusion(
    scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], threshold: float
) -> dict[str, Integer[np.ndarray, " k"]]:
    """Rows that are `false_positives` and so on, the surest first: those furthest from the threshold."""
    called, known = scores >= threshold, {"positives": labels == 1, "negatives": labels == 0}
    by_distance = np.argsort(-np.abs(scores - threshold), kind="stable")
    rows = {
        "false_positives": called & known["negatives"],
        "false_negatives": ~called & known["positives"],
        "true_positives": called & known["positives"],
        "true_negatives": ~called & known["negatives"],
    }
    return {name: by_distance[chosen[by_distance]] for name, chosen in rows.items()}


def _called(ranking: Ranking, weights):
    """True positives and all called `[groups, r]` if each distinct score were the threshold; positives, negatives."""
    drawn = weights[ranking.rows]
    positive = np.add.reduceat(drawn * ranking.positive[:, None], ranking.starts, axis=0)
    every = np.add.reduceat(drawn, ranking.starts, axis=0)
    from_here = [np.cumsum(part[::-1], axis=0)[::-1] for part in (positive, every)]
    return *from_here, (positive.sum(axis=0), (every - positive).sum(axis=0))


def _specific(ranking: Ranking, weights, specificity):
    """Whether the specificity is reached `[groups, r]` if each distinct score were the threshold."""
    true_positives, called, (_, negatives) = _called(ranking, weights)
    # Counts are whole numbers: a hair's breadth of rounding must not refuse 90 of 100 at 0.9.
    return called - true_positives <= (1.0 - specificity) * negatives + 1e-9


def _threshold(ranking: Ranking, scores, group: int) -> float:
    """Midway below the `group`-th distinct score; itself for the lowest; above all scores past the highest."""
    distinct = scores[ranking.rows[ranking.starts]]
    if group == len(distinct):
        return float(np.nextafter(distinct[-1], np.inf))
    return float(distinct[group] if group == 0 else distinct[group] / 2 + distinct[group - 1] / 2)
