"""AUROC, average precision and their patient-level intervals: against scikit-learn, by hand, simulated."""

import json
import time

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_jax.evals import classification as cls
from cxr_jax.evals import ranking


def draw(rows=300, classes=3, *, distinct=None, unknown=0.2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=(rows, classes))
    scores = labels + rng.normal(size=(rows, classes))
    if distinct:
        scores = np.round(scores * distinct) / distinct
    labels[rng.random(labels.shape) < unknown] = -1
    patients = np.array([f"p{i // 2}" for i in range(rows)])
    return scores, labels, patients, [f"class_{c}" for c in range(classes)]


@pytest.mark.parametrize("distinct", [None, 8, 1], ids=["no_ties", "some_ties", "heavy_ties"])
def test_matches_scikit_learn(distinct):
    scores, labels, patients, names = draw(distinct=distinct)
    results = cls.evaluate(scores, labels, patients, names, resamples=0)
    for c, name in enumerate(names):
        known = labels[:, c] >= 0
        expected = roc_auc_score(labels[known, c], scores[known, c])
        assert results["per_class"][name]["auroc"] == pytest.approx(expected, abs=1e-12)
        expected = average_precision_score(labels[known, c], scores[known, c])
        assert results["per_class"][name]["auprc"] == pytest.approx(expected, abs=1e-12)
    per_class = [entry["auroc"] for entry in results["per_class"].values()]
    assert results["auroc_macro"] == pytest.approx(np.mean(per_class), abs=1e-12)


def test_weights_equal_repeated_rows():
    scores, labels, _, _ = draw(rows=80, classes=1, distinct=4)
    times = np.random.default_rng(1).integers(0, 4, size=80)
    ordered = ranking.rank(scores[:, 0], labels[:, 0])
    found = ranking.weighted_metrics(ordered, times[:, None].astype(float))[:, 0]
    repeated_scores, repeated_labels = np.repeat(scores[:, 0], times), np.repeat(labels[:, 0], times)
    known = repeated_labels >= 0
    assert found[0] == pytest.approx(roc_auc_score(repeated_labels[known], repeated_scores[known]), abs=1e-12)
    expected = average_precision_score(repeated_labels[known], repeated_scores[known])
    assert found[1] == pytest.approx(expected, abs=1e-12)


def test_analytic_cases():
    labels = np.array([0, 0, 1, 1])
    assert ranking.auroc(np.array([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert ranking.auroc(np.array([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert ranking.auroc(np.zeros(4), labels) == 0.5
    assert ranking.auroc(np.array([0.1, 0.3, 0.3, 0.4]), labels) == 0.875
    assert ranking.auprc(np.zeros(4), labels) == 0.5
    # Thresholds 0.4 (precision 1, recall 1/2) and 0.3 (precision 2/3, recall 1).
    assert ranking.auprc(np.array([0.1, 0.3, 0.3, 0.4]), labels) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)


def test_unknown_labels_are_not_negatives():
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert ranking.auroc(scores, np.array([-1, 1, -1, 0])) == 1.0
    assert ranking.auroc(scores, np.array([0, 1, 0, 0])) == pytest.approx(2 / 3)


def test_undefined_classes_are_null_with_the_reason_and_outside_the_macro():
    scores, labels, patients, _ = draw(classes=5)
    labels[:, 1], labels[:, 2], labels[:, 3] = -1, 0, 1
    scores[:, 4] = np.nan
    names = ["good", "unknown", "all_negative", "all_positive", "unscored"]
    results = cls.evaluate(scores, labels, patients, names, resamples=50)
    reasons = {name: entry["undefined"] for name, entry in results["per_class"].items()}
    assert reasons["good"] is None
    assert reasons["unknown"] == "every label is unknown"
    assert reasons["all_negative"] == "no positive label"
    assert reasons["all_positive"] == "no negative label"
    assert reasons["unscored"].startswith("not scored")
    for name in names[1:]:
        entry = results["per_class"][name]
        assert entry["auroc"] is None and entry["auprc"] is None and entry["auroc_interval"] is None
    assert results["classes_in_macro"] == ["good"]
    assert results["auroc_macro"] == results["per_class"]["good"]["auroc"]
    assert results["bootstrap"]["resamples_with_a_class_left_out"] == 0
    json.dumps(results, allow_nan=False)


def test_no_defined_class_gives_null_macro():
    results = cls.evaluate(np.zeros((4, 1)), -np.ones((4, 1), int), np.arange(4), ["a"], resamples=10)
    assert results["auroc_macro"] is None and results["auroc_macro_interval"] is None


def test_counts():
    labels = np.array([[1], [1], [0], [-1], [0]])
    patients = np.array(["a", "a", "a", "b", "c"])
    results = cls.evaluate(np.arange(5.0)[:, None], labels, patients, ["x"], resamples=200)
    entry = results["per_class"]["x"]
    assert entry["counts"] == {
        "positives": 2,
        "negatives": 2,
        "unknown": 1,
        "images": 4,
        "patients": 2,
        "positive_patients": 1,
    }
    assert entry["prevalence"] == 0.5
    assert results["counts"] == {"images": 5, "patients": 3, "classes": 1}
    # Patient a holds all positives: it is missing from (2/3)^3 of the draws.
    assert entry["resamples_left_out"] == pytest.approx(200 * (2 / 3) ** 3, abs=25)
    assert results["bootstrap"]["resamples_with_a_class_left_out"] == entry["resamples_left_out"]


def test_interval_is_withheld_when_most_draws_lack_a_label():
    labels = np.array([[1], *([[0]] * 9)])
    patients = np.array(["a", *["b"] * 9])
    entry = cls.evaluate(np.arange(10.0)[:, None], labels, patients, ["x"], resamples=200)["per_class"]["x"]
    assert entry["auroc"] == 0.0
    assert entry["resamples_left_out"] > 80
    patients = np.array(["a", *["b"] * 3, *["c"] * 3, *["d"] * 3])
    labels[1:7] = -1
    entry = cls.evaluate(np.arange(10.0)[:, None], labels, patients, ["x"], resamples=400)["per_class"]["x"]
    assert entry["resamples_left_out"] > 200 and entry["auroc_interval"] is None


def test_intervals_are_seeded_and_cover_the_point():
    scores, labels, patients, names = draw()
    first = cls.evaluate(scores, labels, patients, names, resamples=300, seed=3)
    assert first == cls.evaluate(scores, labels, patients, names, resamples=300, seed=3)
    assert first != cls.evaluate(scores, labels, patients, names, resamples=300, seed=4)
    low, high = first["auroc_macro_interval"]
    assert low < first["auroc_macro"] < high
    assert first["bootstrap"]["resamples"] == 300


def test_resampling_is_by_patient():
    scores, labels, _, names = draw(rows=200, unknown=0.0)
    copies = 10
    scores, labels = np.repeat(scores, copies, axis=0), np.repeat(labels, copies, axis=0)
    by_patient = cls.evaluate(scores, labels, np.repeat(np.arange(200), copies), names, resamples=300)
    by_row = cls.evaluate(scores, labels, np.arange(200 * copies), names, resamples=300)
    width = [np.ptp(result["auroc_macro_interval"]) for result in (by_patient, by_row)]
    assert width[0] > 2.5 * width[1]  # ten copies carry no new information: sqrt(10) wider than by row


def test_coverage_of_the_interval():
    """Two images per patient that share most of their noise; the true AUROC is Phi(shift / sqrt 2)."""
    shift, shared, trials = 1.0, 0.8, 250
    truth = norm.cdf(shift / np.sqrt(2))
    patients = np.repeat(np.arange(80), 2)
    hits = {"patient": 0, "row": 0}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        labels = np.repeat(rng.permutation(np.arange(80) % 2), 2)[:, None]
        of_patient, of_image = np.repeat(rng.normal(size=80), 2), rng.normal(size=160)
        noise = np.sqrt(shared) * of_patient + np.sqrt(1 - shared) * of_image
        scores = shift * labels + noise[:, None]
        for unit, ids in (("patient", patients), ("row", np.arange(160))):
            results = cls.evaluate(scores, labels, ids, ["x"], resamples=200, seed=trial)
            low, high = results["auroc_macro_interval"]
            hits[unit] += low <= truth <= high
    # 250 trials: standard error 1.6 %. Over 1,000 trials: 93 % by patient, 85 % by row.
    assert 0.90 <= hits["patient"] / trials <= 0.98
    assert hits["row"] / trials < 0.88


def test_paired_difference():
    scores, labels, patients, names = draw(seed=5)
    rng = np.random.default_rng(6)
    slightly_worse = scores + 0.5 * rng.normal(size=scores.shape)
    difference = cls.compare(scores, slightly_worse, labels, patients, names, resamples=400)
    both = [cls.evaluate(s, labels, patients, names, resamples=400) for s in (scores, slightly_worse)]
    expected = both[0]["auroc_macro"] - both[1]["auroc_macro"]
    assert difference["auroc_macro"] == pytest.approx(expected, abs=1e-12)
    paired_width = np.ptp(difference["auroc_macro_interval"])
    unpaired_width = np.hypot(*[np.ptp(result["auroc_macro_interval"]) for result in both])
    assert paired_width < 0.8 * unpaired_width
    same = cls.compare(scores, scores, labels, patients, names, resamples=50)
    assert same["auroc_macro"] == 0.0 and same["auroc_macro_interval"] == [0.0, 0.0]


def test_paired_difference_skips_what_one_side_did_not_score():
    scores, labels, patients, names = draw()
    partial = scores.copy()
    partial[:, 0] = np.nan
    difference = cls.compare(scores, partial, labels, patients, names, resamples=50)
    assert difference["per_class"][names[0]]["undefined"].startswith("not scored")
    assert difference["classes_in_macro"] == names[1:]
    assert difference["auroc_macro"] == pytest.approx(0.0)


def test_curves_integrate_to_the_metrics():
    scores, labels, _, _ = draw(classes=1, distinct=6)
    points = ranking.curves(scores[:, 0], labels[:, 0])
    area = np.trapezoid(points["tpr"], points["fpr"])
    assert area == pytest.approx(ranking.auroc(scores[:, 0], labels[:, 0]), abs=1e-12)
    gained = np.diff(np.concatenate([[0.0], points["recall"]]))
    area = (gained * points["precision"]).sum()
    assert area == pytest.approx(ranking.auprc(scores[:, 0], labels[:, 0]), abs=1e-12)


def test_two_thousand_rows_fourteen_classes_in_seconds():
    scores, labels, patients, names = draw(rows=2000, classes=14)
    start = time.perf_counter()
    cls.evaluate(scores, labels, patients, names, resamples=1000)
    assert time.perf_counter() - start < 30  # 2 s alone on one core; the bound allows a busy machine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(scores=a["scores"][:-1]), "scores has shape"),
        (lambda a: a.update(labels=a["labels"] + 2), "labels hold"),
        (lambda a: a["scores"].__setitem__((0, 1), np.inf), "scores of class_1: 1 of 300"),
        (lambda a: a["patient_ids"].__setitem__(0, ""), "empty id"),
        (lambda a: a.update(class_names=["x", "x", "y"]), "class_names repeat"),
        (lambda a: a.update(resamples=-1), "resamples=-1"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    arguments = dict(zip(("scores", "labels", "patient_ids", "class_names"), draw(), strict=True))
    change(arguments)
    with pytest.raises(ValueError, match=message):
        cls.evaluate(**arguments)


def test_shared_patients_are_refused():
    cls.require_disjoint_patients(train=np.array(["a", "b"]), test=np.array(["c"]))
    with pytest.raises(ValueError, match=r"splits train and test share 1 patients, e.g. b"):
        cls.require_disjoint_patients(train=np.array(["a", "b"]), test=np.array(["b", "c"]))


def test_written_json_is_strict(tmp_path):
    scores, labels, patients, names = draw()
    results = cls.evaluate(scores, labels, patients, names, resamples=20)
    cls.write_results(tmp_path / "results.json", results)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert read == results
    with pytest.raises(ValueError):
        cls.write_results(tmp_path / "bad.json", {"value": float("nan")})
