"""Thresholds and calibration: against scikit-learn, by hand, under weights, where undefined."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, precision_recall_curve, roc_curve

from cxr_jax.evals import calibration, decisions
from cxr_jax.evals.ranking import rank

EXACT = 1e-12
SCORES = np.array([0.1, 0.3, 0.35, 0.4, 0.6, 0.6, 0.7, 0.9])
LABELS = np.array([0, 0, 1, 0, 1, 0, 1, 1])


def draw(rows=400, *, distinct=None, unknown=0.2, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(int)
    scores = 1.5 * labels + rng.normal(size=rows) - 1.0
    if distinct:
        scores = np.round(scores * distinct) / distinct
    labels[rng.random(rows) < unknown] = -1
    return scores, labels


def weights_and_rows(rows, seed=1):
    times = np.random.default_rng(seed).integers(0, 4, size=rows)
    return times[:, None].astype(float), np.repeat(np.arange(rows), times)


@pytest.mark.parametrize("distinct", [None, 3], ids=["no_ties", "ties"])
def test_the_threshold_has_the_best_f1_that_scikit_learn_finds(distinct):
    scores, labels = draw(distinct=distinct)
    known = labels >= 0
    found = f1_score(labels[known], scores[known] >= decisions.best_f1_threshold(scores, labels))
    precision, recall, _ = precision_recall_curve(labels[known], scores[known])
    assert found == pytest.approx((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max(), abs=EXACT)


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("distinct", [None, 3], ids=["no_ties", "ties"])
def test_sensitivity_at_specificity_is_that_of_scikit_learns_curve(specificity, distinct):
    scores, labels = draw(distinct=distinct)
    known = labels >= 0
    fpr, tpr, _ = roc_curve(labels[known], scores[known], drop_intermediate=False)
    expected = tpr[fpr <= 1 - specificity + 1e-12].max()
    weights = np.ones((len(scores), 1))
    own = decisions.sensitivity_of_own_curve(rank(scores, labels), weights, specificity)[0]
    assert own == pytest.approx(expected, abs=EXACT)
    # The threshold chosen on these very rows reaches the same point of the curve.
    threshold = decisions.threshold_at_specificity(scores, labels, specificity)
    metrics = decisions.decision_metrics(scores, labels, threshold, weights)
    assert metrics["sensitivity"][0] == pytest.approx(expected, abs=EXACT)
    assert metrics["specificity"][0] >= specificity


def test_decision_metrics_are_scikit_learns_under_weights():
    scores, labels = draw()
    weights, rows = weights_and_rows(len(scores))
    rows = rows[labels[rows] >= 0]
    found = {k: v[0] for k, v in decisions.decision_metrics(scores, labels, -0.2, weights).items()}
    called = scores[rows] >= -0.2
    tn, fp, fn, tp = confusion_matrix(labels[rows], called).ravel()
    assert found["f1"] == pytest.approx(f1_score(labels[rows], called), abs=EXACT)
    expected = {"sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp)}
    for name, value in (expected | {"npv": tn / (tn + fn)}).items():
        assert found[name] == pytest.approx(value, abs=EXACT)
    own = decisions.sensitivity_of_own_curve(rank(scores, labels), weights, 0.9)[0]
    fpr, tpr, _ = roc_curve(labels[rows], scores[rows], drop_intermediate=False)
    assert own == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max(), abs=EXACT)


def test_thresholds_by_hand():
    # F1 by lowest called score: .1: 8/12, .3: 8/11, .35: 8/10, .4: 6/9, .6: 6/8, .7: 4/6, .9: 2/5.
    assert decisions.best_f1_threshold(SCORES, LABELS) == pytest.approx((0.3 + 0.35) / 2)
    # Specificity by lowest called score: .4: 1/2, .6: 3/4, .7: 1.
    assert decisions.threshold_at_specificity(SCORES, LABELS, 0.75) == pytest.approx(0.5)
    assert decisions.threshold_at_specificity(SCORES, LABELS, 0.76) == pytest.approx(0.65)
    # Equal F1 (2/3) at 0.2 and 0.9: the higher threshold.
    assert decisions.best_f1_threshold(np.array([0.1, 0.2, 0.3, 0.9]), np.array([1, 0, 0, 1])) == pytest.approx(0.6)
    # The highest score is a negative's: only a threshold above it is specific enough, and nothing is called.
    above = decisions.threshold_at_specificity(SCORES, 1 - LABELS, 0.9)
    assert above > 0.9 and not (above <= SCORES).any()
    # The lowest score itself, where everything has to be called.
    assert decisions.best_f1_threshold(np.array([0.2, 0.4]), np.array([1, 0])) == 0.2


def test_unknown_labels_choose_nothing_and_count_nowhere():
    scores = np.concatenate([SCORES, [0.95, 0.01]])
    labels = np.concatenate([LABELS, [-1, -1]])
    assert decisions.best_f1_threshold(scores, labels) == decisions.best_f1_threshold(SCORES, LABELS)
    weights = np.ones((10, 1))
    with_unknown = decisions.decision_metrics(scores, labels, 0.5, weights)
    without = decisions.decision_metrics(SCORES, LABELS, 0.5, weights[:8])
    assert {k: v[0] for k, v in with_unknown.items()} == {k: v[0] for k, v in without.items()}


def test_what_is_undefined():
    zeros, ones = np.zeros(8, int), np.ones((8, 1))
    assert decisions.best_f1_threshold(SCORES, zeros) is None
    assert decisions.threshold_at_specificity(np.full(8, np.nan), LABELS, 0.9) is None
    nothing_called = decisions.decision_metrics(SCORES, LABELS, 2.0, ones)
    assert np.isnan(nothing_called["ppv"][0]) and nothing_called["f1"][0] == 0 and nothing_called["npv"][0] == 0.5
    no_positive = decisions.decision_metrics(SCORES, zeros, 0.5, ones)
    assert np.isnan(no_positive["f1"][0]) and np.isnan(no_positive["sensitivity"][0])
    drawn_without_positives = (LABELS == 0).astype(float)[:, None]
    assert np.isnan(decisions.sensitivity_of_own_curve(rank(SCORES, LABELS), drawn_without_positives, 0.9)[0])


def test_the_surest_errors_come_first():
    rows = decisions.confusion(SCORES, LABELS, 0.5)
    assert rows["false_positives"].tolist() == [5] and rows["false_negatives"].tolist() == [2]
    assert rows["true_positives"].tolist() == [7, 6, 4] and rows["true_negatives"].tolist() == [0, 1, 3]


def expected_ece(p, y, bins):
    """Over scikit-learn's reliability curve, with the bins' sizes counted here."""
    observed, predicted = calibration_curve(y, p, n_bins=bins)
    sizes = np.array([n for n in np.histogram(p, np.linspace(0, 1, bins + 1))[0] if n])
    return (sizes * np.abs(observed - predicted)).sum() / len(p)


@pytest.mark.parametrize("bins", [5, 15])
def test_brier_and_calibration_error_agree_with_scikit_learn(bins):
    scores, labels = draw()
    p, known = expit(scores), labels >= 0
    found = calibration.calibration_metrics(p, labels, np.ones((len(p), 1)), bins=bins)
    assert found["brier"][0] == pytest.approx(brier_score_loss(labels[known], p[known]), abs=EXACT)
    assert found["ece"][0] == pytest.approx(expected_ece(p[known], labels[known], bins), abs=EXACT)
    weights, rows = weights_and_rows(len(p))
    rows = rows[labels[rows] >= 0]
    found = calibration.calibration_metrics(p, labels, weights, bins=bins)
    assert found["brier"][0] == pytest.approx(brier_score_loss(labels[rows], p[rows]), abs=EXACT)
    assert found["ece"][0] == pytest.approx(expected_ece(p[rows], labels[rows], bins), abs=EXACT)


def test_calibration_by_hand():
    p, y = np.array([0.0, 0.2, 0.3, 1.0]), np.array([0, 1, 0, 1])
    found = calibration.calibration_metrics(p, y, np.ones((4, 1)), bins=2)
    # Below 1/2: mean p 1/6, mean y 1/3. From 1/2: 1 and 1.
    assert found["ece"][0] == pytest.approx(3 / 4 * (1 / 3 - 1 / 6))
    assert found["brier"][0] == pytest.approx((0.64 + 0.09) / 4)
    curve = calibration.reliability(p, y, bins=2)
    np.testing.assert_allclose(curve["predicted"], [1 / 6, 1])
    np.testing.assert_allclose(curve["observed"], [1 / 3, 1])
    wilson = binomtest(1, 3).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose([curve["low"][0], curve["high"][0]], [wilson.low, wilson.high], atol=1e-9)


def test_only_probabilities_are_calibrated():
    scores = np.array([[-1.0], [2.0], [np.nan]])
    np.testing.assert_allclose(calibration.probabilities(scores, "logit"), expit(scores))
    assert calibration.probabilities(scores, "score") is None
    with pytest.raises(ValueError, match="outside 0 to 1"):
        calibration.probabilities(scores, "probability")
    with pytest.raises(ValueError, match="kind='odds'"):
        calibration.probabilities(scores, "odds")
