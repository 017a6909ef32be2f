"""Parts of the labels: drawn by patient from their own split, nested, and scored with the spread of the draws."""

import dataclasses
import itertools

import numpy as np
import pytest

from cxr_jax.evals import subsets
from cxr_jax.evals.classification import evaluate
from cxr_jax.evals.label_efficiency import all_draws, mean_over_draws, run_curve, summarise, table_lines
from cxr_jax.evals.learning_curve import label_efficiency_section
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.subsets import Amount, amounts, draw
from cxr_jax.evals.task import Task


def split(patients, seed, prefix, classes=1):
    """Patients of one to three images; labels that some images do not know."""
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"{prefix}{i:03d}" for i in range(patients)], rng.integers(1, 4, patients))
    return rng.choice([1, 0, 0, -1], (len(ids), classes)).astype(np.int8), ids


TRAIN, SELECT = split(100, 0, "t"), split(40, 1, "s")


def patients(drawn, role=TRAIN):
    return set(role[1][drawn].tolist())


@pytest.mark.parametrize("amount", [Amount(fraction=0.02), Amount(fraction=0.3), Amount(fraction=1.0), Amount(shots=5)])
def test_whole_patients_are_drawn(amount):
    drawn = draw(TRAIN, SELECT, amount, seed=0)
    for rows, role in ((drawn.train, TRAIN), (drawn.select, SELECT)):
        np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(role[1], role[1][rows])))
        assert len(np.unique(rows)) == len(rows)


def test_a_fraction_is_of_the_patients_with_and_without_the_finding():
    having = {p for p in np.unique(TRAIN[1]) if (TRAIN[0][TRAIN[1] == p] == 1).any()}
    for fraction in (0.02, 0.1, 0.37, 1.0):
        found = patients(draw(TRAIN, SELECT, Amount(fraction=fraction), seed=4).train)
        assert len(found & having) == max(1, round(fraction * len(having)))
        assert len(found - having) == max(1, round(fraction * (100 - len(having))))


def test_draws_of_a_seed_are_nested_and_seeds_differ():
    draws = [patients(draw(TRAIN, SELECT, Amount(fraction=f), seed=2).train) for f in (0.05, 0.2, 0.6, 1.0)]
    assert all(a < b for a, b in itertools.pairwise(draws))
    assert draws[1] != patients(draw(TRAIN, SELECT, Amount(fraction=0.2), seed=3).train)


def test_shots_are_patients_of_each_label_of_each_class():
    train, select = split(100, 5, "t", classes=3), split(40, 6, "s", classes=3)
    for k in (1, 4):
        rows = draw(train, select, Amount(shots=k), seed=0).train
        for c in range(3):
            for value in (0, 1):
                assert len(set(train[1][rows][train[0][rows, c] == value])) >= k
    assert len(draw(TRAIN, SELECT, Amount(shots=4), seed=0).train) <= 3 * 8


def test_the_selection_split_shrinks_in_proportion_and_is_never_trained_on():
    """Released few-shot code adds the whole validation set to the training rows: more labels than the curve says."""
    for amount in (Amount(fraction=0.1), Amount(shots=5)):
        drawn = draw(TRAIN, SELECT, amount, seed=0)
        share = len(patients(drawn.train)) / 100
        assert abs(len(patients(drawn.select, SELECT)) - share * 40) <= 1.5
        whole = draw(TRAIN, SELECT, amount, seed=0, selection="all")
        np.testing.assert_array_equal(whole.train, drawn.train)
        assert len(whole.select) == len(SELECT[1])
    least = draw(TRAIN, SELECT, Amount(fraction=0.02), seed=0)
    chosen = SELECT[0][least.select]
    assert len(patients(least.select, SELECT)) == 2 and (chosen == 1).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": Amount(fraction=0.01)}, r"fractions: 0.01 of the 100 patients.*the least here is 0.02"),
        ({"amount": Amount(shots=80)}, r"shots: 80 patients are asked for, and \d+ of the training split"),
        ({"amount": Amount(shots=1), "selection": "none"}, "legal are in_proportion, all"),
    ],
)
def test_too_few_patients_are_told(options, words):
    with pytest.raises(ValueError, match=words):
        draw(TRAIN, SELECT, **({"seed": 0} | options))


def test_amounts_are_named_and_checked():
    found = amounts((1.0, 0.01), (8, 2))
    assert [amount.name for amount in found] == ["2 shots", "8 shots", "1 %", "100 %"]
    for wrong in (((1.5,), ()), ((), (0,)), ((), ())):
        with pytest.raises(ValueError, match="label_efficiency: fractions="):
            amounts(*wrong)


def task_with(test):
    labels = {"train": TRAIN[0], "select": SELECT[0], "test": test[0]}
    ids = {"train": TRAIN[1], "select": SELECT[1], "test": test[1]}
    return Task({}, ("Edema",), labels, ids, runner=lambda *_: None)


TEST = split(60, 7, "e")


def test_the_interval_is_of_the_mean_over_draws_on_the_same_patients():
    """With one draw it is the interval of `classification`; with two equal ones as well: they move together."""
    rng = np.random.default_rng(0)
    scores = TEST[0] + rng.normal(size=TEST[0].shape)
    options = {"resamples": 200, "confidence": 0.9, "seed": 1}
    known = evaluate(scores, *TEST, ["Edema"], **options)
    for draws in ([scores], [scores, scores]):
        values, interval = mean_over_draws(draws, *TEST, **options)
        assert values == pytest.approx([known["auroc_macro"]] * len(draws))
        assert interval == pytest.approx(known["auroc_macro_interval"])
    values, interval = mean_over_draws([scores, -scores], *TEST, **options)
    assert sum(values) == pytest.approx(1.0) and interval == pytest.approx([0.5, 0.5])
    assert mean_over_draws([np.full_like(scores, np.nan)], *TEST, **options) == ([None], None)


@pytest.fixture(scope="module")
def curve():
    """A column whose scores get better with the rows it was given, and that remembers them."""
    task, asked = task_with(TEST), []

    def fit(drawn, seed):
        asked.append((drawn, seed))
        noise = np.random.default_rng(seed).normal(size=TEST[0].shape) * 40 / len(drawn.train)
        return Scores(TEST[0] + noise, {"learning_rate": 1e-3})

    wanted = amounts((0.1, 1.0), (3,))
    points = run_curve(fit, all_draws(task, wanted, (0, 1, 2), "in_proportion"), (0, 1, 2))
    return task, asked, summarise(task, points, (0, 1, 2), {"resamples": 50, "confidence": 0.95, "seed": 0})


def test_every_amount_is_drawn_for_every_seed(curve):
    _, asked, rows = curve
    assert [seed for _, seed in asked] == [0, 1, 2] * 3
    assert [row["amount"] for row in rows] == ["3 shots", "10 %", "100 %"]
    for row in rows:
        values = list(row["seeds"].values())
        assert row["mean"] == pytest.approx(np.mean(values)) and row["spread"] == pytest.approx(np.std(values, ddof=1))
        assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    assert rows[-1]["train_patients"] == 100 and rows[-1]["select_images"] == len(SELECT[1])
    assert rows[0]["mean"] < rows[-1]["mean"]
    assert rows[-1]["train_positives"] == [[int((TRAIN[0] == 1).sum())]] * 3


def test_the_curve_is_shown_as_text_and_as_a_figure(curve):
    _, _, rows = curve
    undefined = [row | {"mean": None, "spread": None, "interval": None} for row in rows]
    curves = {"pretrained": rows, "hand-made <features>": undefined}
    lines = table_lines(curves)
    assert len(lines) == 4 and "100 %" in lines[-1] and f"{rows[-1]['mean']:.3f} ±" in lines[-1]
    assert "undefined" in lines[1]
    page = label_efficiency_section(curves, "in_proportion")
    assert "<svg" in page and "hand-made &lt;features&gt;" in page and "<features>" not in page
    assert f"{rows[0]['mean']:.3f} ± {rows[0]['spread']:.3f}" in page and "3 draws" in page
    assert "none of its images is trained on" in page


def test_everything_is_all_rows():
    task = task_with(TEST)
    drawn = subsets.everything(task)
    assert len(drawn.train) == len(TRAIN[1]) and len(drawn.select) == len(SELECT[1])
    assert dataclasses.is_dataclass(drawn)
