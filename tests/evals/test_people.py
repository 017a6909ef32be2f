"""Who the rows are, what was left out, predictions.csv, and which images are shown; on a small built dataset."""

import csv

import numpy as np
import pytest

from cxr_jax.data.source import open_split
from cxr_jax.evals.attention import chosen_rows
from cxr_jax.evals.audit_pixels import read_pixels, thumbnail
from cxr_jax.evals.excluded import excluded
from cxr_jax.evals.people import read_people
from cxr_jax.evals.predictions import write_predictions
from cxr_jax.evals.task import Task

WHERE, TARGETS = {"view": "PA"}, ("Effusion", "Nodule")


@pytest.fixture(scope="module")
def task(phantom_dataset):
    names = {"train": "train", "select": "val", "test": "train"}
    splits = {
        role: open_split(str(phantom_dataset), name, where=WHERE, targets=TARGETS) for role, name in names.items()
    }
    labels = {role: split.labels(TARGETS) for role, split in splits.items()}
    return Task(splits, TARGETS, labels, {}, lambda function, geometry: None)


def test_people_are_what_the_records_say(task):
    split = task.splits["train"]
    people = read_people(split)
    assert len(people) == len(split) > 0 and set(people.view) == {"PA"}
    for i in (0, len(split) - 1):
        record = split[i]
        assert people.image_bytes[i] == len(record["image"]) and people.height[i] == record["height"]
        assert people.patient_id[i] == split.text(i, "patient_id") and people.sex[i] == split.text(i, "sex")
        age = float(record["age_years"])
        assert people.age_years[i] == age if age >= 0 else np.isnan(people.age_years[i])
    sexes = people.groups("sex", ())
    assert sum(map(len, sexes.values())) == np.isin(people.sex, ["F", "M"]).sum() and "UNKNOWN" not in sexes


def test_every_image_of_a_split_is_used_or_accounted_for(task, phantom_dataset):
    found = excluded(task, dict.fromkeys(task.splits, WHERE))
    for role, entry in found["roles"].items():
        everything = open_split(str(phantom_dataset), entry["split"])
        chosen = open_split(str(phantom_dataset), entry["split"], where=WHERE)
        assert entry["images"] == len(everything)
        assert entry["other_rows"] == len(everything) - len(chosen)
        assert entry["no_label"] == len(chosen) - len(task.splits[role]) and entry["kept"] == len(task.splits[role])
        assert entry["unknown"]["Nodule"] == (task.labels[role][:, 1] < 0).sum()
    assert found["roles"]["train"]["no_label"] + found["roles"]["train"]["other_rows"] > 0
    assert found["skipped_count"] == 0 and found["skipped"] == {}


def test_predictions_name_each_image_and_leave_the_unknown_empty(task, tmp_path):
    people = read_people(task.splits["test"])
    scores = {"probe": np.arange(2.0 * len(people)).reshape(-1, 2)}
    write_predictions(tmp_path / "predictions.csv", task, people, scores)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(people)
    assert {"image_id", "patient_id", "source", "view", "sex", "age_years", "label: Nodule", "probe: Effusion"} <= set(
        rows[0]
    )
    for i, row in enumerate(rows):
        assert (row["image_id"], row["view"], row["source"]) == (people.image_id[i], "PA", people.source[i])
        label = task.labels["test"][i, 1]
        assert row["label: Nodule"] == ("" if label < 0 else str(label)) and float(row["probe: Nodule"]) == 2 * i + 1
        assert row["sex"] == ("" if people.sex[i] == "UNKNOWN" else people.sex[i])


def test_pixels_are_those_of_the_stored_image(task):
    from cxr_jax.data.steps import load_rows

    pixels, loaded = read_pixels(task.splits["select"]), load_rows(task.splits["select"], [0])
    height, width = loaded["size"][0]
    np.testing.assert_array_equal(pixels.thumbnails[0], thumbnail(loaded["image"][0, :height, :width]))
    assert len(pixels.borders) == len(task.splits["select"])


def test_examples_are_the_surest_errors_then_the_surest_right_answers():
    scores = np.array([[9.0, 0], [8, 0], [1, 0], [-9, 0], [-8, 9], [-1, 9]])
    labels = np.array([[0, 0], [1, -1], [1, 0], [1, 0], [0, 0], [0, -1]])
    found = chosen_rows(scores, labels, [0.5, None], 4)
    assert found == [
        ("false_positives", 0, 0), ("false_negatives", 0, 3), ("true_positives", 0, 1), ("true_negatives", 0, 4)
    ]  # fmt: skip
    both = chosen_rows(scores, labels, [0.5, 5.0], 3)
    assert both[:2] == [("false_positives", 0, 0), ("false_negatives", 0, 3)] and len({row for *_, row in both}) == 3
    assert chosen_rows(scores, labels, [0.5, 5.0], 0) == [] and chosen_rows(scores, labels, [None, None], 4) == []
