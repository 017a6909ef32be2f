"""Planted duplicates, crossing patients, other views and pictures that show nothing are caught by the build."""

import json

import pytest
import tensorflow_datasets as tfds
from PIL import Image
from planted import as_jpeg, brighter, chest, smaller
from tiny_folder import one_error_line, write_folder

from cxr_jax.data.records import DataError
from data_prep import build

FLAGS = ("--reader=folder", "--workers=0")
SPLITS = ["test"] * 4 + ["val"] * 4 + ["train"] * 8


def planted(folder, patients=None, **columns):
    """16 pictures, two a patient, of which some repeat those of other splits.

    0: test; 4 (val) is a smaller copy of it; 8 (train) the same bytes; 10 (train) a larger copy of 11 (train, the same
    patient); 12 (train) a brighter one of 6 (val).
    """
    write_folder(folder, 16, split=SPLITS, patient_id=patients or [f"p{i // 2}" for i in range(16)], **columns)
    pictures = {index: chest(index) for index in range(16)}
    pictures |= {4: smaller(pictures[0]), 8: pictures[0], 12: brighter(pictures[6])}
    pictures[10] = pictures[11].resize((144, 144), Image.Resampling.BICUBIC)
    for index, picture in pictures.items():
        (folder / f"images/{index:04d}.jpg").write_bytes(as_jpeg(picture))
    return folder


def built(folder, *flags):
    """The manifest, and the image numbers of each split."""
    args = [*FLAGS, f"--input={folder / 'in'}", f"--output={folder / 'out'}", *flags]
    manifest = build.build(build.parse_flags(args))
    builder = tfds.builder_from_directory(str(folder / "out"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    ids = {
        split: sorted(int(record["image_id"][-8:-4]) for record in builder.as_data_source(split, decoders=decoders))
        for split in builder.info.splits
    }
    return manifest, ids


def dropped(folder):
    lines = [json.loads(line) for line in (folder / "out/dropped.jsonl").read_text().splitlines()]
    return {int(line["file"][-8:-4]): line for line in lines}


def test_near_duplicates_go_and_the_copy_of_the_test_set_stays(tmp_path):
    planted(tmp_path / "in")
    manifest, ids = built(tmp_path, "--linked_patients=report")
    assert ids == {"test": [0, 1, 2, 3], "val": [5, 6, 7], "train": [9, 10, 13, 14, 15]}
    lines = dropped(tmp_path)
    assert set(lines) == {4, 8, 11, 12}
    assert lines[8]["copy_of"] == lines[4]["copy_of"] == "images/0000.jpg"
    assert lines[8]["reason"] == ("exact duplicate (equal pixels) of another patient, in train, the copy kept in test")
    assert "near duplicate" in lines[12]["reason"] and lines[12]["copy_of"] == "images/0006.jpg"
    assert "of the same patient, in train, the copy kept in train" in lines[11]["reason"], "the larger one stays"
    curation = manifest.counts["curation"]
    assert curation["dropped"] == {"exact duplicate": 1, "near duplicate": 3}
    assert curation["duplicates"] == {
        "images": 4, "across_splits": 3, "across_patients": 3, "contradictory_labels": 2, "linked_patients_images": 3,
    }  # fmt: skip
    assert manifest.counts["images"] == 12


def test_patients_who_share_a_picture_are_one_person(tmp_path):
    planted(tmp_path / "in")
    manifest, ids = built(tmp_path)
    assert ids == {"test": [0, 1, 2, 3], "val": [6, 7], "train": [10, 14, 15]}
    reasons = {number: line["reason"] for number, line in dropped(tmp_path).items()}
    assert reasons[5] == reasons[9] == "its patient shares a picture, at once or through other ids, with one in test"
    assert reasons[13] == "its patient shares a picture, at once or through other ids, with one in val"
    assert manifest.counts["curation"]["dropped"]["linked patient"] == 3


def test_links_between_patients_are_followed_through_others(tmp_path):
    """test p0 - train p4 - train p7: the last shares no picture with test, but is the same person."""
    planted(tmp_path / "in")
    (tmp_path / "in/images/0014.jpg").write_bytes((tmp_path / "in/images/0009.jpg").read_bytes())
    _, ids = built(tmp_path)
    assert ids == {"test": [0, 1, 2, 3], "val": [6, 7], "train": [10]}
    _, ids = built(tmp_path, "--linked_patients=report", "--overwrite")
    assert len(ids["train"]) == 4, "the copy alone goes"


def test_duplicates_with_other_labels_are_counted(tmp_path, capsys):
    """8 repeats 0: one label unknown in one of them is no contradiction, 1 against 0 is."""
    planted(tmp_path / "in", Edema=["1"] + ["0"] * 15, Mass=[""] + ["1"] * 15)
    manifest, _ = built(tmp_path, "--linked_patients=report")
    assert manifest.counts["curation"]["duplicates"]["contradictory_labels"] == 2, "4 and 8 against 0"
    assert "2 duplicates have other labels than the copy kept, whose labels stay" in capsys.readouterr().out


def test_exact_and_none_do_what_they_say(tmp_path):
    planted(tmp_path / "in")
    _, ids = built(tmp_path, "--dedup=exact", "--linked_patients=report")
    assert ids["train"] == [9, 10, 11, 12, 13, 14, 15] and ids["val"] == [4, 5, 6, 7]
    _, ids = built(tmp_path, "--dedup=none", "--overwrite")
    assert sum(map(len, ids.values())) == 16
    assert not (tmp_path / "out/dropped.jsonl").exists()


def test_a_patient_in_two_published_splits_stops_the_build_or_loses_images(tmp_path, capsys):
    patients = [f"p{i // 2}" for i in range(16)]
    patients[4] = patients[14] = "p0"
    planted(tmp_path / "in", patients)
    assert build.main([*FLAGS, f"--input={tmp_path}/in", f"--output={tmp_path}/out"]) == 3
    error = one_error_line(capsys.readouterr().err)
    assert "patient p0 is in the splits val (images/0004.jpg) and test (images/0000.jpg)" in error
    assert "--on_crossing=drop" in error
    manifest, ids = built(tmp_path, "--on_crossing=drop", "--dedup=none")
    assert ids == {"test": [0, 1, 2, 3], "val": [5, 6, 7], "train": [8, 9, 10, 11, 12, 13, 15]}
    assert {number: line["reason"] for number, line in dropped(tmp_path).items()} == {
        4: "its patient is in test too", 14: "its patient is in test too",
    }  # fmt: skip
    assert manifest.counts["curation"]["crossing_patients_images"] == 2


def test_views_and_quality(tmp_path):
    folder = planted(tmp_path / "in", view=["PA", "LL"] * 8)
    (folder / "images/0002.jpg").write_bytes(as_jpeg(Image.linear_gradient("L").point(lambda v: 100 + v // 32)))
    manifest, ids = built(tmp_path, "--views=PA,AP", "--dedup=none")
    assert ids == {"test": [0], "val": [4, 6], "train": [8, 10, 12, 14]}
    lines = dropped(tmp_path)
    assert lines[2]["reason"] == "blank: contrast below 16" and lines[3]["reason"] == "view is LATERAL"
    assert manifest.counts["curation"]["dropped"] == {"blank": 1, "other view": 8}
    measured = manifest.counts["curation"]["quality"]
    assert measured["contrast"]["min"] < 10 and measured["side_px"]["max"] == 256
    assert manifest.settings["curation"]["limits"]["min_contrast"] == 16
    _, ids = built(tmp_path, "--quality_filter=off", "--dedup=none", "--overwrite")
    assert ids["test"] == [0, 1, 2, 3]
    _, ids = built(tmp_path, "--min_side_px=100", "--dedup=none", "--overwrite")
    assert ids == {"train": [10]}, "limits are flags"


def test_what_leaves_nothing_is_told(tmp_path):
    planted(tmp_path / "in")
    with pytest.raises(DataError, match="no image could be used; the first of 16: too small: side_px below 5000"):
        built(tmp_path, "--min_side_px=5000")


def test_the_order_of_the_input_does_not_decide_which_copy_stays(tmp_path):
    planted(tmp_path / "in")
    _, ids = built(tmp_path)
    for seed in (1, 2):
        assert built(tmp_path, f"--seed={seed}", "--overwrite")[1] == ids
