"""DeLong's variance and test against the definition by double sums, its error rate in simulation; the C-index by
pairs."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cxr_jax.evals.concordance import concordance
from cxr_jax.evals.delong import delong, paired_test


def by_definition(scores, labels):
    """AUROCs and covariance from the table of all pairs, as the paper writes them."""
    components = []
    for row in scores:
        x, y = row[labels == 1], row[labels == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        components.append((psi.mean(1), psi.mean(0)))
    m, n = len(components[0][0]), len(components[0][1])
    auroc = np.array([v10.mean() for v10, _ in components])
    covariance = np.array(
        [
            [
                ((a[0] - A) * (b[0] - B)).sum() / (m - 1) / m + ((a[1] - A) * (b[1] - B)).sum() / (n - 1) / n
                for b, B in zip(components, auroc, strict=True)
            ]
            for a, A in zip(components, auroc, strict=True)
        ]
    )
    return auroc, covariance


@pytest.mark.parametrize("distinct", [None, 2], ids=["no_ties", "ties"])
def test_agrees_with_the_definition_and_scikit_learn(distinct):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, size=150)
    scores = labels + rng.normal(size=(3, 150))
    if distinct:
        scores = np.round(scores * distinct)
    known = labels >= 0
    auroc, covariance = by_definition(scores[:, known], labels[known])
    found = delong(scores, labels)
    np.testing.assert_allclose(found.auroc, auroc, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)
    assert found.auroc[0] == pytest.approx(roc_auc_score(labels[known], scores[0, known]), abs=1e-12)
    test = paired_test(scores[0], scores[1], labels)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test["difference"] == pytest.approx(auroc[0] - auroc[1]) and test["standard_error"] == pytest.approx(error)
    assert test["p"] == pytest.approx(2 * (1 - norm.cdf(abs(auroc[0] - auroc[1]) / error)), abs=1e-9)
    assert paired_test(scores[1], scores[0], labels)["p"] == pytest.approx(test["p"])


def test_one_trial_in_twenty_is_significant_where_there_is_no_difference():
    """Independent images: the test holds its level. Two copies of every image: it does not, as its page says."""
    rejected = {"images": 0, "copies": 0}
    for trial in range(600):
        rng = np.random.default_rng(trial)
        labels = np.arange(120) % 2
        shared = rng.normal(size=120)
        scores = labels + shared + rng.normal(size=(2, 120))
        rejected["images"] += paired_test(*scores, labels)["p"] < 0.05
        rejected["copies"] += paired_test(*np.repeat(scores, 2, axis=1), np.repeat(labels, 2))["p"] < 0.05
    # 600 trials: standard error 0.9 %.
    assert 0.02 <= rejected["images"] / 600 <= 0.08
    assert rejected["copies"] / 600 > 0.12


def test_where_there_is_no_test():
    scores, labels = np.arange(6.0), np.array([0, 1, 0, 1, 0, -1])
    assert set(paired_test(scores, scores[::-1].copy(), np.array([0, 0, 0, 1, 0, -1])).values()) == {None}
    assert set(paired_test(scores, np.full(6, np.nan), labels).values()) == {None}
    same = paired_test(scores, 2 * scores, labels)
    assert same["difference"] == 0 and same["p"] is None


def pairs_by_hand(risk, time, event):
    right = possible = 0.0
    for i, j in itertools.permutations(range(len(risk)), 2):
        if event[i] == 1 and event[j] >= 0 and (time[i] < time[j] or (time[i] == time[j] and event[j] == 0)):
            possible += 1
            right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right, possible


def test_c_index_is_the_count_of_pairs():
    rng = np.random.default_rng(3)
    time, event = rng.integers(0, 12, size=60).astype(float), rng.integers(-1, 2, size=60)
    risk = np.round(-time / 4 + rng.normal(size=60), 1)
    found = concordance(risk, time, event, np.arange(60) // 2, resamples=50)
    right, possible = pairs_by_hand(risk, time, event)
    assert found["c_index"] == pytest.approx(right / possible, abs=1e-12)
    assert found["comparable_pairs"] == possible and found["unknown"] == (event < 0).sum()
    low, high = found["c_index_interval"]
    assert low < found["c_index"] < high


def test_c_index_without_censoring_in_between_is_the_auroc():
    rng = np.random.default_rng(4)
    event = rng.integers(0, 2, size=80)
    risk = event + rng.normal(size=80)
    found = concordance(risk, np.where(event == 1, 1.0, 2.0), event, np.arange(80), resamples=0)
    assert found["c_index"] == pytest.approx(roc_auc_score(event, risk), abs=1e-12)
    assert found["c_index_interval"] is None


def test_c_index_undefined_and_bad_input():
    found = concordance(np.zeros(3), np.arange(3.0), np.zeros(3, int), np.arange(3), resamples=10)
    assert found["c_index"] is None and "no event" in found["undefined"]
    with pytest.raises(ValueError, match=r"event holds \[2\]"):
        concordance(np.zeros(3), np.arange(3.0), np.array([0, 1, 2]), np.arange(3))
    with pytest.raises(ValueError, match="1 rows have a risk or a time"):
        concordance(np.array([np.nan, 0.0]), np.arange(2.0), np.array([1, 0]), np.arange(2))
