"""Whether a probability of 0.8 comes true in 8 of 10: Brier score, expected calibration error, reliability curve.

In: probabilities and labels (1, 0, -1 unknown) of one class. Out: numbers under row weights, or points of a curve.

    Brier = mean (p - y)^2        ECE = sum over bins b of (n_b / n) |mean p in b - mean y in b|

The bins of ECE have equal widths over 0..1 (Guo et al. 2017), p being the probability of the finding, not the
confidence in the answer. ECE is biased upwards on few images: a perfect classifier's is above 0. Scores that are no
probabilities have neither number; logits become probabilities by the sigmoid, which is what their training means them
to be.
"""

import numpy as np
from jaxtyping import Float, Integer
from scipy.special import expit

from cxr_jax.evals.bootstrap import ratio

KINDS = ("logit", "probability", "score")
NO_PROBABILITY = "the scores are no probabilities"


def probabilities(scores: Float[np.ndarray, "*rows"], kind: str) -> Float[np.ndarray, "*rows"] | None:
    """Probabilities of scores of a `kind`: the sigmoid of a `logit`, a `probability` as it is, None for a `score`.

    Raises:
      ValueError: another kind, or probabilities outside 0..1.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: legal are {', '.join(KINDS)}")
    if kind == "score":
        return None
    if kind == "logit":
        return expit(scores.astype(np.float64))
    if np.nanmin(scores, initial=0.0) < 0 or np.nanmax(scores, initial=1.0) > 1:
        raise ValueError("probabilities lie outside 0 to 1; give these scores the kind 'score'")
    return scores


def calibration_metrics(
    probability: Float[np.ndarray, " n"],
    labels: Integer[np.ndarray, " n"],
    weights: Float[np.ndarray, "n r"],
    *,
    bins: int,
) -> dict[str, Float[np.ndarray, " r"]]:
    """`brier` and `ece` over the known labels under `r` sets of row weights."""
    known = np.flatnonzero(labels >= 0)
    p, y, drawn = probability[known], (labels[known] == 1).astype(np.float64), weights[known]
    place = _bin(p, bins)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    # |mean p - mean y| n_b is |sum (p - y)| within the bin.
    gaps = np.abs(np.add.reduceat(drawn[order] * (p - y)[order, None], starts, axis=0))
    rows = drawn.sum(axis=0)
    return {"brier": ratio((p - y) ** 2 @ drawn, rows), "ece": ratio(gaps.sum(axis=0), rows)}


def reliability(
    probability: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], *, bins: int
) -> dict[str, np.ndarray]:
    """Mean `predicted` probability, `observed` share of positives, its Wilson 95 % interval `low`, `high`, and `rows`,
    per bin that holds any known label."""
    known = labels >= 0
    p, y = probability[known], labels[known] == 1
    place = _bin(p, bins)
    rows = np.bincount(place, minlength=bins)
    held = rows > 0
    n, z = rows[held], 1.959963984540054
    observed = np.bincount(place, weights=y, minlength=bins)[held] / n
    centre = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    predicted = np.bincount(place, weights=p, minlength=bins)[held] / n
    return {"predicted": predicted, "observed": observed, "low": centre - half, "high": centre + half, "rows": n}


def _bin(probability, bins: int):
    return np.minimum((probability * bins).astype(int), bins - 1)
