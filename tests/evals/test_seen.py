"""A run is not scored on patients whose labels it has learnt; where that cannot be read, names decide."""

import copy
import shutil

import pytest
from test_chosen_rows import task_of

from cxr_jax.data.records import DataError
from cxr_jax.evals import seen
from cxr_jax.evals.columns import Source
from cxr_jax.evals.seen import Scored, origin, require_unseen, sentences


@pytest.fixture(scope="module")
def scored(phantom_dataset):
    task = task_of(phantom_dataset)
    return Scored(task.splits, str(phantom_dataset), {})


def run_on(scored, split="train", *, name="runs/a", objective="supervised", fingerprint=None, **data):
    given = {"path": scored.path, "split": split, "where": {"source": "", "view": "", "sex": ""}, "weights": []}
    fingerprint = fingerprint or scored.splits["test"].manifest.fingerprint
    meta = {"objective": objective, "fingerprint": fingerprint, "config": {"data": given | data}}
    return Source(name, None, copy.deepcopy(meta | {"targets": ["Effusion"]}))


def test_a_run_on_other_rows_says_which(scored):
    found = require_unseen([run_on(scored)], scored)["runs/a"]
    assert found["rows"] == len(scored.splits["train"]) and found["test_patients"] == 0
    assert found["split"] == "train" and found["unchecked"] is None and sentences({"runs/a": found}) == []


@pytest.mark.parametrize("split", ["train+test", "test"])
def test_a_run_that_learnt_the_test_split_is_refused(scored, split):
    others = [run_on(scored), run_on(scored, split, name="runs/b")]
    with pytest.raises(DataError, match=rf"runs/b was trained on split '{split}'.*take a run".replace("+", r"\+")):
        require_unseen(others, scored)


def test_a_copy_of_the_dataset_elsewhere_is_the_same_patients(scored, tmp_path):
    copied = shutil.copytree(scored.path, tmp_path / "copy")
    with pytest.raises(DataError, match=r"test patients, e\.g\."):
        require_unseen([run_on(scored, "val+test", path=str(copied), fingerprint="another")], scored)
    own = require_unseen([run_on(scored, path=str(copied), fingerprint="another")], scored)["runs/a"]
    assert "another fingerprint" in own["unchecked"]


def test_other_rows_of_the_test_split_are_no_leak_unless_they_share_a_patient(scored):
    """Phantoms have one image a patient: a run on the men of all splits may be scored on the women."""
    women = Scored(task_of(scored.path, where={"sex": "F"}, train_where={}).splits, scored.path, {"sex": "F"})
    men = run_on(scored, "train+val+test", where={"sex": "M"})
    assert require_unseen([men], women)["runs/a"]["test_patients"] == 0
    with pytest.raises(DataError, match="was trained on"):
        require_unseen([run_on(scored, "train+val+test", where={"sex": "F"})], scored)


def test_without_the_data_names_decide(scored, monkeypatch):
    def gone(*_, **__):
        raise DataError("gone: no such folder")

    monkeypatch.setattr(seen, "open_split", gone)
    with pytest.raises(DataError, match="which is scored here"):
        require_unseen([run_on(scored, "train+test")], scored)
    found = require_unseen([run_on(scored)], scored)
    assert found["runs/a"]["test_patients"] is None and "could not be checked: gone" in sentences(found)[0]


def test_images_seen_without_labels_are_told(scored):
    found = require_unseen([run_on(scored, "train+test", objective="mae")], scored)
    assert "without labels" in sentences(found)[0]
    assert sentences(require_unseen([run_on(scored, objective="mae")], scored)) == []


@pytest.mark.parametrize("objective", ["imported", "supervised"])
def test_converted_weights_do_not_say_what_they_were_trained_on(scored, objective):
    source = run_on(scored, objective=objective)
    source.meta["config"] = {"data": {"path": "", "where": {"source": "", "view": "", "sex": ""}}}
    source.meta["fingerprint"] = None
    found = require_unseen([source], scored)
    assert found["runs/a"]["test_patients"] is None
    (said,) = sentences(found)
    assert "runs/a was trained on test patients could not be checked: converted weights" in said
    assert "not known" in origin(source, found)["the run was trained on"]


def test_a_backbone_that_learnt_the_test_labels_is_refused(scored, monkeypatch):
    parent = run_on(scored, "train+test", name="runs/parent")
    child = run_on(scored)
    child.meta["pretrained"] = {"run": "runs/parent", "step": 1, "network": "student"}
    monkeypatch.setattr(seen, "open_source", lambda run, step: parent)
    with pytest.raises(DataError, match="runs/parent was trained on"):
        require_unseen([child], scored)
