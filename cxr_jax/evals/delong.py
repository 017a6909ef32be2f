"""DeLong's test: do two score sets rank the same images equally well?

In: scores `[n]` of one or two classifiers and labels (1, 0, -1 unknown) of one class. Out: AUROCs, their covariance,
and a two-sided p-value for their difference (DeLong, DeLong and Clarke-Pearson 1988):

    V10_i = mean over negatives j of psi(x_i, y_j),  V01_j = mean over positives i of psi(x_i, y_j)
    psi = 1 if x > y, 1/2 if x = y, else 0;  AUROC = mean V10 = mean V01
    cov = cov(V10) / positives + cov(V01) / negatives;  z = (A_1 - A_2) / sqrt(var_1 + var_2 - 2 cov_12)

The components come from midranks (Sun and Xu 2014), so that n log n steps suffice. The test takes images as
independent. Images of one patient are not, so its p-value is too small where patients have several; the interval of the
paired bootstrap, which draws patients, does not have this fault and stands beside it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import norm, rankdata


class DeLong(NamedTuple):
    """AUROC of each of k score sets, and their covariance."""

    auroc: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]


def delong(scores: Float[np.ndarray, "k n"], labels: Integer[np.ndarray, " n"]) -> DeLong | None:
    """AUROCs of k score sets of one class and their covariance; None unless all are scored and each label occurs twice.

    With a single positive or negative the variance between them is unknown.
    """
    known = labels >= 0
    scores, positive = scores[:, known].astype(np.float64), labels[known] == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2 or not np.isfinite(scores).all():
        return None
    every = rankdata(scores, axis=1)
    of_positives = (every[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    of_negatives = 1.0 - (every[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    covariance = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return DeLong(of_positives.mean(axis=1), covariance)


def paired_test(
    scores: Float[np.ndarray, " n"], baseline: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]
) -> dict[str, float | None]:
    """`difference` in AUROC, its `standard_error`, `z` and two-sided `p`; all None where there is no such test.

    `z` and `p` are also None where the difference has no variance, as between a classifier and itself.
    """
    result = delong(np.stack([scores, baseline]), labels)
    if result is None:
        return dict.fromkeys(("difference", "standard_error", "z", "p"))
    difference = float(result.auroc[0] - result.auroc[1])
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(max(contrast @ result.covariance @ contrast, 0.0)))
    if error < 1e-12:
        return {"difference": difference, "standard_error": 0.0, "z": None, "p": None}
    z = difference / error
    return {"difference": difference, "standard_error": error, "z": z, "p": float(2 * norm.sf(abs(z)))}
