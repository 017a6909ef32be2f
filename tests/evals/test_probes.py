"""Linear probe and nearest neighbours on arrays: what they learn, what they mask out, what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cxr_jax.evals import classification
from cxr_jax.evals.knn import knn_scores
from cxr_jax.evals.linear_probe import FALLBACK_C, fit_linear_probe
from cxr_jax.evals.ranking import auroc


def blobs(rows, *, shift=1.5, width=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=(rows, 2))
    features = rng.normal(size=(rows, width))
    features[:, 0] += shift * labels[:, 0]
    features[:, 1] += shift * labels[:, 1]
    return features * np.array([1000.0, 0.01, *[1.0] * (width - 2)]) + 5.0, labels


TRAIN, VAL, TEST = blobs(300, seed=1), blobs(100, seed=2), blobs(200, seed=3)


def test_probe_matches_scikit_learn_at_the_chosen_c():
    probe = fit_linear_probe(*TRAIN, *VAL, cs=(0.1,))
    mean, deviation = TRAIN[0].mean(0), TRAIN[0].std(0)
    for c in range(2):
        model = LogisticRegression(C=0.1, max_iter=1000).fit((TRAIN[0] - mean) / deviation, TRAIN[1][:, c])
        expected = model.decision_function((TEST[0] - mean) / deviation)
        np.testing.assert_allclose(probe.scores(TEST[0])[:, c], expected, rtol=1e-6, atol=1e-6)
        assert auroc(expected, TEST[1][:, c]) > 0.8


def test_probe_chooses_c_on_validation_rows():
    probe = fit_linear_probe(*TRAIN, *VAL)
    for c, fit in enumerate(probe.fits):
        values = {
            value: auroc(fit_linear_probe(*TRAIN, *VAL, cs=(value,)).scores(VAL[0])[:, c], VAL[1][:, c])
            for value in (1e-6, 1e-3, 1.0)
        }
        assert fit.val_auroc >= max(values.values()) - 1e-12
        assert fit.val_auroc == pytest.approx(auroc(probe.scores(VAL[0])[:, c], VAL[1][:, c]))
        assert fit.note is None


def test_probe_ignores_rows_with_unknown_labels():
    features, labels = TRAIN[0], TRAIN[1].copy()
    labels[::3, 0] = -1
    with_unknown = fit_linear_probe(features, labels, *VAL, cs=(1.0,))
    poisoned = labels.copy()
    poisoned[::3, 0] = 0
    as_negatives = fit_linear_probe(features, poisoned, *VAL, cs=(1.0,))
    everything = fit_linear_probe(*TRAIN, *VAL, cs=(1.0,))
    np.testing.assert_array_equal(with_unknown.kernel[:, 1], everything.kernel[:, 1])
    assert not np.allclose(with_unknown.kernel[:, 0], as_negatives.kernel[:, 0], rtol=1e-3)
    assert as_negatives.bias[0] < with_unknown.bias[0]  # a third of the rows turned negative lowers the odds


def test_probe_says_what_it_could_not_learn_or_choose():
    train_labels, val_labels = TRAIN[1].copy(), VAL[1].copy()
    train_labels[:, 0] = 0
    val_labels[:, 1] = -1
    probe = fit_linear_probe(TRAIN[0], train_labels, VAL[0], val_labels)
    assert probe.fits[0].c is None and "0 positives and 300 negatives" in probe.fits[0].note
    assert probe.fits[1].c == FALLBACK_C and "validation rows lack a label" in probe.fits[1].note
    scores = probe.scores(TEST[0])
    assert np.isnan(scores[:, 0]).all() and np.isfinite(scores[:, 1]).all()
    results = classification.evaluate(scores, TEST[1], np.arange(200), ["a", "b"], resamples=0)
    assert results["per_class"]["a"]["undefined"].startswith("not scored")
    assert results["auroc_macro"] == results["per_class"]["b"]["auroc"]


def test_probe_survives_constant_features():
    train, val, test = (np.concatenate([x, np.full((len(x), 1), 1e6)], axis=1) for x, _ in (TRAIN, VAL, TEST))
    probe = fit_linear_probe(train, TRAIN[1], val, VAL[1])
    assert np.isfinite(probe.scores(test)).all()


def test_probe_refuses_bad_input():
    broken = TRAIN[0].copy()
    broken[7, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 300 train rows"):
        fit_linear_probe(broken, TRAIN[1], *VAL)
    with pytest.raises(ValueError, match="cs="):
        fit_linear_probe(*TRAIN, *VAL, cs=(0.0,))


def directions(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=(rows, 2))
    features = rng.normal(size=(rows, 6)) + 2.0 * np.pad(labels, ((0, 0), (0, 4)))
    return features * rng.uniform(0.1, 10.0, size=(rows, 1)), labels


def test_knn_matches_scikit_learn():
    (train, labels), (test, _) = directions(150, 0), directions(60, 1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = knn_scores(train, labels, test, k=7, temperature=0.1)
    # On the unit sphere |x - y|^2 = 2 - 2 cos, so Euclidean neighbours are cosine neighbours.
    for c in range(2):
        model = KNeighborsClassifier(7, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
        expected = model.fit(unit(train), labels[:, c]).predict_proba(unit(test))[:, 1]
        np.testing.assert_allclose(scores[:, c], expected, rtol=1e-9, atol=1e-12)


def test_knn_looks_only_at_known_labels():
    (train, labels), (test, _) = directions(150, 0), directions(60, 1)
    labels[::2, 0] = -1
    scores = knn_scores(train, labels, test)
    np.testing.assert_allclose(scores[:, 0], knn_scores(train[1::2], labels[1::2], test)[:, 0])
    labels[:, 0] = np.where(labels[:, 0] == 1, -1, labels[:, 0])
    assert np.isnan(knn_scores(train, labels, test)[:, 0]).all()


def test_knn_uses_all_rows_when_there_are_fewer_than_k():
    scores = knn_scores(np.eye(3), np.array([[1], [0], [0]]), np.eye(3), k=20, temperature=1.0)
    expected = np.exp([1.0, 0.0, 0.0]) / np.exp([1.0, 0.0, 0.0]).sum()
    assert scores[0, 0] == pytest.approx(expected[0])
    assert scores[0, 0] > scores[1, 0]


def test_knn_refuses_bad_input():
    with pytest.raises(ValueError, match="k=0"):
        knn_scores(np.eye(3), np.ones((3, 1), int), np.eye(3), k=0)
    with pytest.raises(ValueError, match="1 of 3 test rows have no direction"):
        knn_scores(np.eye(3), np.ones((3, 1), int), np.diag([1.0, 1.0, 0.0]))
