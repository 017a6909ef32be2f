"""Linear probe on frozen features: one L2-regularised logistic regression per class.

In: feature arrays `[n, d]` and labels `[n, c]` (1, 0, -1 unknown) of the train and validation rows. Out: a
`LinearProbe`, whose `scores(features)` are logits `[n, c]`.

Features are standardised with the mean and deviation of the train rows. C, the inverse of the penalty, is chosen per
class by AUROC on the validation rows; test rows are never seen here. Unknown labels are left out class by class. The
objective is convex, so the result does not depend on a seed.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cxr_jax.evals.ranking import auroc

CS = tuple(10.0**power for power in range(-6, 3))
FALLBACK_C = 1e-2  # where the validation rows cannot rank the candidates


@dataclass(frozen=True)
class ClassFit:
    """How one class was fitted.

    `c` is the chosen C, None if the class was not fitted. `val_auroc` is its validation AUROC. `note` is None, or says
    why the class was not fitted, why C could not be chosen, or that the solver stopped early.
    """

    c: float | None
    val_auroc: float | None
    note: str | None


@dataclass(frozen=True)
class LinearProbe:
    """Fitted probe. Columns of `kernel` are NaN for classes that had nothing to learn from."""

    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]
    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]
    fits: tuple[ClassFit, ...]

    def scores(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """Logits; a column is NaN where the class was not fitted, which `classification.evaluate` reports as null."""
        return (features - self.mean) / self.deviation @ self.kernel + self.bias


def fit_linear_probe(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Integer[np.ndarray, "n c"],
    val_features: Float[np.ndarray, "v d"],
    val_labels: Integer[np.ndarray, "v c"],
    *,
    cs: Sequence[float] = CS,
    standardise: bool = True,
    max_iter: int = 1000,
) -> LinearProbe:
    """Fit one logistic regression per class for every C and keep the one that ranks the validation rows best.

    Ties in validation AUROC go to the smaller C (the simpler model). A class that lacks a label among the train rows is
    not fitted. A class that lacks a label among the validation rows uses C = 0.01 and says so. `standardise=False` only
    centres, for features whose relative scales carry meaning (principal components).

    Raises:
      ValueError: a feature is not finite, or `cs` is empty or not positive.
    """
    if not cs or min(cs) <= 0:
        raise ValueError(f"cs={tuple(cs)}: give one or more positive values")
    for name, features in (("train", train_features), ("validation", val_features)):
        if not np.isfinite(features).all():
            bad = int((~np.isfinite(features).all(axis=1)).sum())
            raise ValueError(f"{bad} of {len(features)} {name} rows hold features that are not finite")
    mean, deviation = train_features.mean(axis=0, dtype=np.float64), np.ones(train_features.shape[1])
    if standardise:
        spread = train_features.std(axis=0, dtype=np.float64)
        constant = spread <= 1e-6 * np.abs(mean)
        deviation = np.where(constant, 1.0, spread)
    train, val = (train_features - mean) / deviation, (val_features - mean) / deviation
    columns = [
        _fit_class(train, train_labels[:, c], val, val_labels[:, c], sorted(cs), max_iter)
        for c in range(train_labels.shape[1])
    ]
    kernel = np.stack([column[0] for column in columns], axis=1)
    return LinearProbe(
        mean, deviation, kernel, np.array([column[1] for column in columns]), tuple(c[2] for c in columns)
    )


def _fit_class(train, train_labels, val, val_labels, cs, max_iter):
    """Kernel `[d]`, bias and `ClassFit` of one class."""
    known = train_labels >= 0
    if len(np.unique(train_labels[known])) < 2:
        reason = f"not fitted: the train rows hold {int((train_labels == 1).sum())} positives and "
        reason += f"{int((train_labels == 0).sum())} negatives"
        return np.full(train.shape[1], np.nan), np.nan, ClassFit(None, None, reason)
    can_choose = (val_labels == 1).any() and (val_labels == 0).any()
    best = None
    for c in cs if can_choose else [FALLBACK_C]:
        model = LogisticRegression(C=c, max_iter=max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(train[known], train_labels[known])
        kernel, bias = model.coef_[0], float(model.intercept_[0])
        value = auroc(val @ kernel + bias, val_labels)
        if best is None or (value is not None and value > best[2].val_auroc):
            note = f"stopped at max_iter={max_iter}" if caught else None
            best = kernel, bias, ClassFit(c, value, note)
    if can_choose:
        return best
    return (
        best[0],
        best[1],
        ClassFit(FALLBACK_C, None, f"C={FALLBACK_C}: the validation rows lack a label to choose by"),
    )
