"""Audits: what was planted is found, what is not there is not, and undecidable cases say so."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_measures import OPTIONS, crowd

from cxr_jax.evals import report_audits
from cxr_jax.evals.audit_duplicates import audit_duplicates
from cxr_jax.evals.audit_labels import audit_labels, neighbour_shares
from cxr_jax.evals.audit_pixels import border_statistics, thumbnail
from cxr_jax.evals.audit_shortcuts import audit_shortcuts, within_strata
from cxr_jax.evals.audit_source import audit_source
from cxr_jax.evals.audits import warnings
from cxr_jax.evals.floor import shrink

SIZES = {"train": 200, "select": 120, "test": 240}
FILE = "file size (bytes of the stored JPEG)"


@pytest.fixture(scope="module")
def world():
    """Positives have larger files; borders and all else are noise. The model sees the file size and nothing else."""
    rng = np.random.default_rng(0)
    labels = {role: rng.integers(0, 2, size=(rows, 2)) for role, rows in SIZES.items()}
    people, borders = {}, {}
    for role, y in labels.items():
        size = np.round(np.exp(10 + 0.3 * rng.normal(size=len(y)) + 0.6 * y[:, 0])).astype(int)
        people[role] = crowd(len(y), image_bytes=size, source=np.array(["x", "y"])[rng.integers(0, 2, len(y))])
        borders[role] = rng.normal(size=(len(y), 24))
    y = labels["test"]
    honest = np.stack([np.log(people["test"].image_bytes), y[:, 1] + rng.normal(size=len(y))], axis=1)
    found = audit_shortcuts(people, borders, labels, ["spoilt", "clean"], honest, OPTIONS, warn_auroc=0.7)
    return people, labels, honest, found


def test_a_shortcut_is_found_and_what_it_leaves_of_the_model(world):
    people, labels, _, found = world
    entry = found[FILE]["spoilt"]
    expected = roc_auc_score(labels["test"][:, 0], people["test"].image_bytes)
    assert entry["warning"] and entry["auroc"] == pytest.approx(expected, abs=1e-6)
    assert entry["model_auroc"] == pytest.approx(expected, abs=1e-6)
    low, high = entry["model_auroc_within_strata_interval"]
    assert low < entry["model_auroc_within_strata"] < high
    assert entry["model_auroc_within_strata"] < expected - 0.1
    flagged = [(c, name) for c, findings in found.items() for name, e in findings.items() if e["warning"]]
    assert flagged == [(FILE, "spoilt")]
    (sentence,) = warnings({"shortcuts": found})
    assert sentence.startswith("File size") and "predicts spoilt" in sentence and f"{expected:.3f}" in sentence


def test_fields_that_tell_nothing_are_undefined(world):
    """Source is the same in all rows, view and sex are unknown, so is age: no AUROC of 0.500 is made up."""
    people, labels, honest, _ = world
    unknown = {"source": "x", "view": "UNKNOWN", "sex": "UNKNOWN", "age_years": np.nan}
    people = {
        role: dataclasses.replace(one, **{name: np.full(len(one), value) for name, value in unknown.items()})
        for role, one in people.items()
    }
    borders = {role: np.zeros((rows, 3)) for role, rows in SIZES.items()}
    found = audit_shortcuts(people, borders, labels, ["spoilt", "clean"], honest, OPTIONS, warn_auroc=0.7)
    reasons = {candidate: findings["clean"]["undefined"] for candidate, findings in found.items()}
    assert reasons["source"] == "the same in all train rows: x"
    assert reasons["view"] == "view not known in the train rows"
    assert reasons["age and sex"] == "age and sex not known in the train rows"
    assert reasons["border statistics"] == "the same in all train rows" and reasons[FILE] is None
    assert found["view"]["clean"]["auroc"] is None and len(warnings({"shortcuts": found})) == 1
    page = report_audits.audits({"shortcuts": found, "settings": {"warn_auroc": 0.7}})
    assert "view not known" in page and "0.500 " not in page


def test_within_strata_counts_pairs_of_one_stratum():
    rng = np.random.default_rng(1)
    scores, labels, source = (
        rng.normal(size=60),
        rng.integers(-1, 2, size=60),
        rng.integers(0, 3, size=60).astype(float),
    )
    right = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero((labels == 0) & (source == source[i])):
            right, pairs = right + float(scores[i] > scores[j]), pairs + 1
    found = within_strata(scores, labels, source)(np.ones((60, 1)))["auroc"][0]
    assert found == pytest.approx(right / pairs, abs=1e-12)
    assert within_strata(scores, labels, scores)(np.ones((60, 1)))["auroc"][0] < 1.0


def test_source_probe(world):
    people, labels, _, _ = world
    rng = np.random.default_rng(2)
    telling = {r: (p.source == "x")[:, None] + 0.5 * rng.normal(size=(len(p), 3)) for r, p in people.items()}
    found = audit_source(telling, labels, people, ["spoilt", "clean"], OPTIONS)
    assert found["auroc_macro"] > 0.95 and found["accuracy"] > 0.85 and set(found["per_source"]) == {"x", "y"}
    rows = people["train"].source == "x"
    assert found["prevalence"]["clean"]["x"] == pytest.approx(labels["train"][rows, 1].mean())
    one = {role: crowd(len(p)) for role, p in people.items()}
    assert "one source" in audit_source(telling, labels, one, ["spoilt", "clean"], OPTIONS)["undefined"]


def picture(seed):
    return shrink(np.random.default_rng(seed).integers(0, 256, size=(1, 12, 12)).astype(float), 12)[0].repeat(8, 0)


def test_copies_are_found_mirrored_inverted_and_resized():
    images = [picture(s).repeat(8, 1).astype(np.uint8) for s in range(12)]
    copies = [images[0], images[1][:, ::-1], 255 - images[2], shrink(images[3][None], 70)[0].astype(np.uint8)]
    thumbnails = {
        "train": np.stack([thumbnail(image) for image in images[:4]]),
        "select": np.stack([thumbnail(image) for image in images[4:6]]),
        "test": np.stack([thumbnail(image) for image in [*images[6:], *copies]]),
    }
    people = {
        role: crowd(len(t), image_id=np.array([f"{role}{i}" for i in range(len(t))])) for role, t in thumbnails.items()
    }
    found = audit_duplicates(thumbnails, people, correlation=0.95)
    assert {(pair["image_id"], pair["test_image_id"]) for pair in found["pairs"]} == {
        (f"train{i}", f"test{6 + i}") for i in range(4)
    }
    assert found["test_images"] == 4 and found["of"] == 10 and found["nearest"]["median"] < 0.95
    assert "4 of 10 test images" in warnings({"duplicates": found})[0]
    assert not np.any(thumbnail(np.full((40, 50), 9, np.uint8)))  # nothing in it: like nothing
    with pytest.raises(ValueError, match=r"duplicate_correlation=0\.2"):
        audit_duplicates(thumbnails, people, correlation=0.2)


def test_thumbnails_and_borders_by_hand():
    image = np.zeros((50, 100), np.uint8)
    image[:, 50:] = 255
    small = thumbnail(image)
    np.testing.assert_allclose(small[:, :16], -1 / 32, atol=1e-6)
    np.testing.assert_allclose(small[:, 16:], 1 / 32, atol=1e-6)
    borders = border_statistics(image)
    np.testing.assert_allclose(borders[:4], [0.5, 0.5, 0.5, 0.5])  # the top: mean, deviation, half black, half white
    np.testing.assert_allclose(borders[12:16], [1, 0, 0, 1])  # the right strip is white
    np.testing.assert_allclose(borders[16:18], [0, 0])  # the first corner
    assert border_statistics(np.zeros((3, 3), np.uint8)).shape == (24,)


def test_wrong_labels_are_listed_and_rare_ones_are_not():
    rng = np.random.default_rng(3)
    labels = {
        role: np.stack([np.arange(n) % 2, np.arange(n) % 50 == 0], axis=1).astype(int) for role, n in SIZES.items()
    }
    features = {r: np.eye(2)[y[:, 0]] + 0.1 * rng.normal(size=(len(y), 2)) for r, y in labels.items()}
    people = {
        r: crowd(
            n, image_id=np.array([f"{r}{i}" for i in range(n)]), patient_id=np.array([f"{r}{i}" for i in range(n)])
        )
        for r, n in SIZES.items()
    }
    labels["train"][7, 0], labels["test"][4, 0] = 0, 1
    found = audit_labels(features, labels, people, ["common", "rare"], neighbours=20)
    assert {row["image_id"] for row in found["common"]["rows"]} == {"train7", "test4"}
    assert found["common"]["contradicted"] == 2 and found["common"]["vote_auroc"] > 0.95
    # One in fifty: 20 neighbours without one say nothing against a positive.
    assert all(row["label"] == 0 for row in found["rare"]["rows"])


def test_neighbours_of_the_same_patient_do_not_vote():
    features, labels = np.array([[1.0, 0.0], [1.0, 0.01], [0.9, 0.2], [0.0, 1.0]]), np.array([[1], [1], [0], [-1]])
    patients = np.array(["a", "a", "b", "c"])
    shares = neighbour_shares(features, labels, patients, features, patients, k=1)
    np.testing.assert_array_equal(shares[:, 0], [0, 0, 1, 0])
    alone = neighbour_shares(features[:2], labels[:2], patients[:2], features[:2], patients[:2], k=3)
    assert np.isnan(alone).all()
