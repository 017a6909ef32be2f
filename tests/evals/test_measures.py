"""The numbers of a column: which rows choose, who is left out, groups of findings and of people."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss, f1_score, recall_score, roc_auc_score

from cxr_jax.evals.classification import evaluate, write_results
from cxr_jax.evals.decisions import best_f1_threshold, threshold_at_specificity
from cxr_jax.evals.long_tail import groups_by_frequency
from cxr_jax.evals.measures import MEASURES, NO_THRESHOLD, Options, difference, measure
from cxr_jax.evals.people import People
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.subgroups import subgroups

OPTIONS = Options(resamples=100, confidence=0.95, seed=0, specificity=0.9, calibration_bins=15)
NAMES = ["a", "b", "none", "unscored"]


def draw(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=(rows, 4))
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[:, 2] = np.minimum(labels[:, 2], 0)
    scores = 1.5 * labels + rng.normal(size=labels.shape)
    scores[:, 3] = np.nan
    return scores, labels


@pytest.fixture(scope="module")
def task():
    (test, test_labels), (select, select_labels) = draw(240, 0), draw(120, 1)
    labels = {"test": test_labels, "select": select_labels}
    return Scores(test, {}, select, "logit"), labels, np.arange(240) // 2


@pytest.fixture(scope="module")
def results(task):
    return measure(*task, NAMES, OPTIONS, groups={"head": ["a", "none"], "tail": ["b"]})


def test_thresholds_come_from_the_selection_rows_alone(task, results):
    scores, labels, _ = task
    for c, name in enumerate(NAMES[:2]):
        entry, known = results["per_class"][name], labels["test"][:, c] >= 0
        threshold = best_f1_threshold(scores.select[:, c], labels["select"][:, c])
        assert entry["thresholds"]["f1"] == threshold
        called, y = scores.test[known, c] >= threshold, labels["test"][known, c]
        assert entry["f1"] == pytest.approx(f1_score(y, called), abs=1e-6)
        assert entry["sensitivity"] == pytest.approx(recall_score(y, called), abs=1e-6)
        at = threshold_at_specificity(scores.select[:, c], labels["select"][:, c], 0.9)
        found = entry["sensitivity_at_specificity"]
        assert found == pytest.approx(recall_score(y, scores.test[known, c] >= at), abs=1e-6)
        assert entry["brier"] == pytest.approx(brier_score_loss(y, expit(scores.test[known, c])), abs=1e-6)
        for metric in MEASURES:
            low, high = entry[f"{metric}_interval"]
            assert low <= entry[metric] <= high or metric == "ece"  # ECE is biased upwards, more so in a resample
    mean = np.mean([results["per_class"][name]["f1"] for name in NAMES[:2]])
    assert results["f1_macro"] == pytest.approx(mean) and results["f1_macro_interval"] is not None


def test_ranking_metrics_are_those_of_classification(task, results, tmp_path):
    scores, labels, patients = task
    plain = evaluate(scores.test, labels["test"], patients, NAMES, **OPTIONS.bootstrap)
    for key in ("auroc_macro", "auroc_macro_interval", "auprc_macro", "auprc_macro_interval", "counts", "bootstrap"):
        assert results[key] == plain[key]
    for name in NAMES:
        assert {k: v for k, v in results["per_class"][name].items() if k in plain["per_class"][name]} == plain[
            "per_class"
        ][name]
    write_results(tmp_path / "results.json", results)  # strict JSON: no NaN anywhere


def test_what_is_undefined_says_why(results, task):
    for name, why in (("none", "no positive label"), ("unscored", "not scored")):
        entry = results["per_class"][name]
        assert entry["f1"] is None and entry["brier_interval"] is None
        assert all(reason.startswith(why) for reason in entry["not_measured"].values())
    scores, labels, patients = task
    bare = measure(Scores(scores.test, {}), labels, patients, NAMES, OPTIONS)["per_class"]["a"]
    assert bare["not_measured"]["f1"] == NO_THRESHOLD and "no probabilities" in bare["not_measured"]["ece"]
    assert bare["f1"] is None and bare["brier"] is None and bare["sensitivity_at_specificity_test_curve"] > 0
    with pytest.raises(ValueError, match=r"metrics\.specificity=1"):
        Options(10, 0.95, 0, 1.0, 15)


def test_groups_of_findings(results):
    per_class, groups = results["per_class"], results["groups"]
    assert groups["head"]["auroc_macro"] == per_class["a"]["auroc"]  # `none` is undefined and not in the mean
    assert groups["head"]["auroc_macro_interval"] == per_class["a"]["auroc_interval"]
    assert groups["tail"]["auprc_macro"] == per_class["b"]["auprc"]
    labels = np.zeros((2000, 4), int)
    labels[:1001, 0], labels[:1000, 1], labels[:100, 2], labels[:99, 3] = 1, 1, 1, 1
    found = groups_by_frequency(labels, list("abcd"), head_above=1000, tail_below=100)
    assert found == {"head": ["a"], "medium": ["b", "c"], "tail": ["d"]}
    with pytest.raises(ValueError, match="tail_below=30"):
        groups_by_frequency(labels, list("abcd"), head_above=20, tail_below=30)


def test_difference_carries_delongs_test(task):
    scores, labels, patients = task
    worse = Scores(scores.test + np.random.default_rng(5).normal(size=scores.test.shape), {})
    found = difference(scores, worse, labels["test"], patients, NAMES, OPTIONS)
    assert 0 < found["per_class"]["a"]["delong"]["p"] < 0.05
    assert found["per_class"]["none"]["delong"]["p"] is None and found["per_class"]["unscored"]["delong"]["p"] is None


def crowd(rows, **fields):
    texts = {name: np.full(rows, name) for name in ("image_id", "patient_id", "source", "view", "sex")}
    numbers = {name: np.ones(rows, int) for name in ("height", "width", "image_bytes")}
    ages = {"age_years": np.full(rows, np.nan)}
    patients = {"patient_id": np.array([f"p{i}" for i in range(rows)])}
    return People(**(texts | numbers | ages | patients | fields))


def test_subgroups_against_scikit_learn_and_a_known_gap():
    """Women's positives are called in 90 %, men's in 60 %; two of unknown sex, and few of a third view."""
    rng = np.random.default_rng(0)
    sex = np.array(["F"] * 200 + ["M"] * 200 + ["UNKNOWN"] * 2)
    labels = (np.arange(402) % 2)[:, None]
    called = np.concatenate([rng.permutation(np.arange(100) < share) for share in (90, 60)])
    scores = rng.normal(size=402)[:, None] * 0.1
    scores[np.flatnonzero(labels[:400, 0] == 1), 0] += np.where(called, 1.0, -1.0)
    view = np.array(["PA"] * 396 + ["AP"] * 6)
    people = crowd(402, sex=sex, view=view, age_years=np.arange(402) % 90.0)
    knobs = {"fields": ("sex", "view", "age"), "age_bins": (40.0,), "min_positive_patients": 20}
    found = subgroups(scores, labels, people, ["x"], {"x": 0.5}, OPTIONS, **knobs)
    women, men = found["sex"]["x"]["groups"]
    assert women["group"] == "F" and women["sensitivity"] == 0.9 and men["sensitivity"] == 0.6
    rows = sex == "F"
    assert women["auroc"] == pytest.approx(roc_auc_score(labels[rows, 0], scores[rows, 0]), abs=1e-6)
    gap = found["sex"]["x"]["gap"]
    assert gap["value"] == pytest.approx(0.3) and (gap["highest"], gap["lowest"]) == ("F", "M")
    assert gap["interval"][0] > 0.15 and gap["difference_interval"][0] > 0.15
    few, many = found["view"]["x"]["groups"]
    assert few["group"] == "AP" and few["sparse"] and not many["sparse"]
    assert found["view"]["x"]["gap"]["value"] is None and "1 of 2" in found["view"]["x"]["gap"]["undefined"]
    assert [group["group"] for group in found["age"]["x"]["groups"]] == ["under 40", "40 and over"]
    assert sum(group["counts"]["images"] for group in found["age"]["x"]["groups"]) == 402


def test_subgroups_without_a_threshold_of_a_field_itself_and_bad_knobs():
    labels, scores = (np.arange(60) % 2)[:, None], np.random.default_rng(0).normal(size=(60, 1))
    people = crowd(60, sex=np.array(["F", "M", "M"] * 20))
    knobs = {"fields": ("sex",), "age_bins": (40.0,), "min_positive_patients": 5}
    found = subgroups(scores, labels, people, ["x"], {"x": None}, OPTIONS, **knobs)["sex"]["x"]
    assert found["groups"][0]["sensitivity"] is None and found["gap"]["value"] is None
    assert (
        subgroups(scores, labels, people, ["sex:F"], {"sex:F": 0.0}, OPTIONS, **knobs)["sex"]["sex:F"]["groups"] == []
    )
    by_age = subgroups(scores, labels, people, ["age>=40"], {"age>=40": 0.0}, OPTIONS, **(knobs | {"fields": ("age",)}))
    assert by_age["age"]["age>=40"]["groups"] == []
    for change, message in (
        ({"fields": ("race",)}, r"subgroups\.fields has 'race'"),
        ({"fields": ("age",), "age_bins": (60.0, 40.0)}, "must rise"),
        ({"min_positive_patients": 0}, "min_positive_patients=0"),
    ):
        with pytest.raises(ValueError, match=message):
            subgroups(scores, labels, people, ["x"], {"x": 0.0}, OPTIONS, **(knobs | change))
