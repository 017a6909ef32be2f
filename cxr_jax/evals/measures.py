"""All numbers of one column of a report, in the layout of results.json.

In: a column's `Scores` and the labels and patients of the selection and test rows. Out: what `classification.evaluate`
says, and per class and as macro means

    f1, sensitivity, specificity, ppv, npv                   at the threshold with the best F1 on the selection rows
    sensitivity_at_specificity, specificity_reached          at the threshold that is specific enough there
    sensitivity_at_specificity_test_curve                    read off the test rows' own ROC curve
    brier, ece                                               of probabilities

each with an interval from the same draws of patients. `not_measured` says which of them a class lacks and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals import classification
from cxr_jax.evals.bootstrap import bootstrap, macro_means, with_interval
from cxr_jax.evals.calibration import NO_PROBABILITY, calibration_metrics, probabilities
from cxr_jax.evals.decisions import (
    best_f1_threshold,
    decision_metrics,
    sensitivity_of_own_curve,
    threshold_at_specificity,
)
from cxr_jax.evals.delong import paired_test
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.ranking import rank

DECISIONS = ("f1", "sensitivity", "specificity", "ppv", "npv")
AT_SPECIFICITY = ("sensitivity_at_specificity", "specificity_reached")
OWN_CURVE = ("sensitivity_at_specificity_test_curve",)
CALIBRATION = ("brier", "ece")
MEASURES = (*DECISIONS, *AT_SPECIFICITY, *OWN_CURVE, *CALIBRATION)
NO_THRESHOLD = "the selection rows lack a label or a score to choose a threshold by"


@dataclass(frozen=True)
class Options:
    """How the numbers are made; the bootstrap's as in `classification.evaluate`.

    `specificity` is the one that `sensitivity_at_specificity` is measured at, `calibration_bins` the number of bins of
    ECE. Raises ValueError for numbers that make no sense.
    """

    resamples: int
    confidence: float
    seed: int
    specificity: float
    calibration_bins: int

    def __post_init__(self):
        if not 0.0 < self.specificity < 1.0:
            raise ValueError(f"metrics.specificity={self.specificity}: legal are numbers between 0 and 1")
        if self.calibration_bins < 2:
            raise ValueError(f"metrics.calibration_bins={self.calibration_bins} must be at least 2")

    @property
    def bootstrap(self) -> dict[str, Any]:
        """What `classification.evaluate` and `compare` take."""
        return {"resamples": self.resamples, "confidence": self.confidence, "seed": self.seed}


def measure(
    scores: Scores,
    labels: Mapping[str, Integer[np.ndarray, "_n _c"]],
    patient_ids: Shaped[np.ndarray, " _n"],
    class_names: Sequence[str],
    options: Options,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """Every number of a column.

    Args:
      labels: of the `select` and the `test` rows.
      patient_ids: of the test rows.
      groups: as `classification.evaluate`.

    Raises:
      ValueError: as `classification.evaluate`; a `kind` that there is not.
    """
    results = classification.evaluate(
        scores.test, labels["test"], patient_ids, class_names, **options.bootstrap, groups=groups
    )
    probability = probabilities(scores.test, scores.kind)
    functions, thresholds = [], []
    for c, name in enumerate(class_names):
        defined = results["per_class"][name]["undefined"] is None
        thresholds.append(_thresholds(scores.select, labels["select"], c, options.specificity))
        functions.append(
            partial(
                _measures,
                scores.test[:, c].astype(np.float64),
                labels["test"][:, c],
                thresholds[-1],
                None if probability is None else probability[:, c],
                options,
            )
            if defined
            else None
        )
    drawn = {"resamples": options.resamples, "seed": options.seed}
    points, samples = bootstrap(functions, MEASURES, patient_ids, **drawn)
    for c, name in enumerate(class_names):
        entry = results["per_class"][name]
        for metric in MEASURES:
            entry |= with_interval(metric, points[metric][c], samples[metric][c], options.confidence)
        entry["thresholds"] = {**thresholds[c], "specificity_wanted": options.specificity}
        entry["not_measured"] = _reasons(entry, thresholds[c], scores.kind)
    return results | macro_means(points, samples, MEASURES, options.confidence)


def difference(
    scores: Scores,
    baseline: Scores,
    labels: Integer[np.ndarray, "_n _c"],
    patient_ids: Shaped[np.ndarray, " _n"],
    class_names: Sequence[str],
    options: Options,
) -> dict:
    """`classification.compare` of the test scores, and per class `delong`: `standard_error`, `z` and `p`.

    Raises:
      ValueError: as `classification.compare`.
    """
    known = (labels, patient_ids, class_names)
    found = classification.compare(scores.test, baseline.test, *known, **options.bootstrap)
    for c, name in enumerate(class_names):
        test = paired_test(scores.test[:, c], baseline.test[:, c], labels[:, c])
        found["per_class"][name]["delong"] = {key: test[key] for key in ("standard_error", "z", "p")}
    return found


def _thresholds(select: Float[np.ndarray, "v c"] | None, labels, c: int, specificity: float) -> dict[str, float | None]:
    """Thresholds of one class, chosen on the selection rows."""
    if select is None:
        return {"f1": None, "specificity": None}
    rows = select[:, c].astype(np.float64), labels[:, c]
    return {"f1": best_f1_threshold(*rows), "specificity": threshold_at_specificity(*rows, specificity)}


def _measures(scores, labels, thresholds, probability, options, weights):
    """Every measure of one class that there is, under row weights."""
    values = {OWN_CURVE[0]: sensitivity_of_own_curve(rank(scores, labels), weights, options.specificity)}
    if thresholds["f1"] is not None:
        values |= decision_metrics(scores, labels, thresholds["f1"], weights)
        at = decision_metrics(scores, labels, thresholds["specificity"], weights)
        values |= dict(zip(AT_SPECIFICITY, (at["sensitivity"], at["specificity"]), strict=True))
    if probability is not None:
        values |= calibration_metrics(probability, labels, weights, bins=options.calibration_bins)
    return values


def _reasons(entry, thresholds, kind) -> dict[str, str]:
    """Why a class lacks some of the measures."""
    if entry["undefined"]:
        return dict.fromkeys(MEASURES, entry["undefined"])
    reasons = {}
    if thresholds["f1"] is None:
        reasons |= dict.fromkeys((*DECISIONS, *AT_SPECIFICITY), NO_THRESHOLD)
    if kind == "score":
        reasons |= dict.fromkeys(CALIBRATION, NO_PROBABILITY)
    for metric, why in (("ppv", "nothing was called positive"), ("npv", "nothing was called negative")):
        if entry[metric] is None and metric not in reasons:
            reasons[metric] = why
    return reasons
