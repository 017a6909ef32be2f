"""Which rows are judged: lists of images, studies as one case, mirror pictures, rows of two hospitals."""

import dataclasses

import jax
import numpy as np
import pytest

from cxr_jax.data.records import DataError
from cxr_jax.data.source import open_split
from cxr_jax.evals import rows, studies
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import open_task
from cxr_jax.sharding import batch_sharding, make_mesh

SPLITS = {"train": "train", "select": "val", "test": "test"}


def task_of(dataset, **options):
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    given = {"splits": SPLITS, "where": {}, "targets": ("Effusion",), "batch_size": 4, "sharding": sharding}
    return open_task(str(dataset), **(given | options))


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_list_of_images_keeps_these_rows_alone(split, tmp_path):
    ids = [split.text(i, "image_id") for i in range(len(split))]
    plain = write(tmp_path / "a.txt", f"{ids[5]}\n\n  {ids[2]}  \nnowhere\n")
    kept = rows.keep_images(split, plain)
    assert [kept.text(i, "image_id") for i in range(len(kept))] == [ids[2], ids[5]]
    table = write(tmp_path / "b.csv", f"\ufeffsex,image_id\nF,{ids[7]}\nM,{ids[1]}\n")
    kept = rows.keep_images(split, table)
    assert [kept.text(i, "image_id") for i in range(len(kept))] == [ids[1], ids[7]]


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read"), ("a,b\n1,2\n", "no column image_id; it has a, b"), ("x\n", "none of its 1 image ids")],
)
def test_a_list_that_fits_nothing_is_refused(text, words, split, tmp_path):
    file = tmp_path / "list"
    if text:
        write(file, text)
    with pytest.raises(DataError, match=f"config.data.only_images=.*{words}"):
        rows.keep_images(split, str(file))


def test_only_the_test_rows_are_restricted_unless_training_rows_are_listed_too(phantom_dataset, tmp_path):
    whole = task_of(phantom_dataset)
    one = whole.splits["test"].text(0, "image_id")
    few = [whole.splits[role].text(i, "image_id") for role in ("train", "select") for i in (0, 2)]
    task = task_of(phantom_dataset, only_images=write(tmp_path / "one", one))
    assert [len(task.splits[role]) for role in SPLITS] == [len(whole.splits["train"]), len(whole.splits["select"]), 1]
    task = task_of(phantom_dataset, train_only_images=write(tmp_path / "few", "\n".join(few)))
    assert [len(task.splits[role]) for role in SPLITS] == [2, 2, len(whole.splits["test"])]


def test_training_rows_may_come_from_elsewhere(phantom_dataset):
    task = task_of(phantom_dataset, train_where={"sex": "F"}, where={"view": "PA"})
    brief = {role: [s.brief(i) for i in range(len(s))] for role, s in task.splits.items()}
    assert {record["sex"] for role in ("train", "select") for record in brief[role]} == {"F"}
    assert {record["view"] for record in brief["test"]} == {"PA"}
    assert {record["view"] for record in brief["train"]} == {"AP", "PA"}
    with pytest.raises(DataError, match="nowhere"):
        task_of(phantom_dataset, train_path="nowhere")


def test_a_target_that_no_training_row_knows_is_refused(phantom_dataset, monkeypatch):
    from cxr_jax.data import source

    known = source.Split.labels

    def unknown_in_train(self, targets):
        found = known(self, targets)
        return np.where(np.arange(len(targets)) == 1, -1, found).astype(np.int8) if self.name == "train" else found

    monkeypatch.setattr(source.Split, "labels", unknown_in_train)
    with pytest.raises(DataError, match=r"every label of Nodule is unknown in the .* rows of split 'train'"):
        task_of(phantom_dataset, targets=("Effusion", "Nodule"))
    assert task_of(phantom_dataset, targets=("Effusion", "Nodule"), trains=False).labels["train"].shape[1] == 2


def test_mirror_pictures_are_averaged_in_the_scores_and_only_on_request(phantom_dataset):
    geometry = Geometry("stretch", 16)
    left = {}
    for flip in (False, True):
        task = task_of(phantom_dataset, flip=flip)
        run = {m: task.runner(lambda _, x: {"left": x[:, :, :8]}, geometry, mirrored=m) for m in (False, True)}
        left[flip] = task.over_mirror(lambda m, task=task, run=run: run[m](task.splits["test"], {})["left"])
    whole = task.runner(lambda _, x: {"whole": x}, geometry)(task.splits["test"], {})["whole"]
    np.testing.assert_array_equal(left[False], whole[:, :, :8])
    np.testing.assert_allclose(left[True], (whole[:, :, :8] + whole[:, :, :7:-1]) / 2, atol=1e-6)


def test_studies_count_within_a_patient_and_images_without_one_stand_alone(split):
    found = [("p", "1", "a"), ("q", "1", "b"), ("p", "", "c"), ("p", "1", "d"), ("p", "", "e")]
    records = [dict(zip(("patient_id", "study_id", "image_id"), r, strict=True), source="s") for r in found]
    np.testing.assert_array_equal(
        studies.study_of_rows(dataclasses.replace(split, records=records, rows=range(5))), [0, 1, 2, 0, 3]
    )


def test_a_study_has_the_mean_score_and_the_findings_of_any_of_its_images():
    of_row = np.array([0, 1, 0, 2, 1])
    scores = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan], [8.0, np.nan], [3.0, np.nan]])
    np.testing.assert_array_equal(studies.study_means(of_row, scores)[:, 0], [2.5, 2.5, 8.0])
    assert np.isnan(studies.study_means(of_row, scores)[:, 1]).all()
    labels = np.array([[0, -1], [-1, -1], [1, 0], [-1, 1], [-1, 0]], np.int8)
    np.testing.assert_array_equal(studies.study_labels(of_row, labels), [[1, 0], [-1, 0], [-1, 1]])


def test_a_task_by_study_has_one_row_each(phantom_dataset, monkeypatch):
    task = task_of(phantom_dataset, splits=SPLITS | {"train": "test", "test": "train"})
    pairs = {role: np.arange(len(task.splits[role])) // 2 for role in ("select", "test")}
    monkeypatch.setattr(studies, "study_of_rows", lambda split: pairs["test" if split.name == "train" else "select"])
    each = {role: np.arange(len(numbers), dtype=float)[:, None] for role, numbers in pairs.items()}
    features = each | {"train": np.zeros((len(task.splits["train"]), 1))}
    merged, columns = studies.by_study(task, {"a": Scores(each["test"], {"k": 1}, each["select"], "logit", features)})
    for role in pairs:
        assert len(merged.splits[role]) == len(merged.patients[role]) == len(merged.labels[role])
        np.testing.assert_array_equal(merged.patients[role], task.patients[role][::2])
    found = columns["a"]
    assert found.chosen == {"k": 1} and found.select[0, 0] == 0.5
    assert found.test[1, 0] == found.features["test"][1, 0] == 2.5
    assert len(merged.splits["train"]) == len(found.features["train"]) == len(task.splits["train"])


def test_studies_with_a_frontal_and_a_lateral_image_become_pairs(phantom_dataset):
    """Of five images: a pair, a lateral image alone, a pair that comes lateral first; view UNKNOWN is neither."""
    task = task_of(phantom_dataset)
    rows_of = [("1", "PA"), ("2", "LATERAL"), ("1", "LATERAL"), ("3", "LATERAL"), ("3", "UNKNOWN"), ("3", "AP")]
    records = [
        {"source": "s", "patient_id": "p", "study_id": study, "image_id": str(i), "view": view}
        for i, (study, view) in enumerate(rows_of)
    ]
    split = dataclasses.replace(task.splits["test"], records=records, rows=np.arange(6))
    labels = np.array([[0], [1], [1], [-1], [-1], [0]], np.int8)
    roles = ("train", "select", "test")
    whole = dataclasses.replace(
        task,
        splits=dict.fromkeys(roles, split),
        labels=dict.fromkeys(roles, labels),
        patients=dict.fromkeys(roles, np.array(list("abcdef"))),
    )
    pairs = studies.pair_views(whole)
    for role in roles:
        assert [pairs.splits[role].text(i, "image_id") for i in range(2)] == ["0", "5"]
        assert [pairs.beside[role].text(i, "image_id") for i in range(2)] == ["2", "3"]
        np.testing.assert_array_equal(pairs.labels[role], [[1], [0]])
        np.testing.assert_array_equal(pairs.patients[role], ["a", "f"])
    with pytest.raises(DataError, match=r"no study of the .* has a frontal and a lateral image"):
        studies.pair_views(task)
