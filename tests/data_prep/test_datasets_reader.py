"""Merging built datasets: vocabularies by name, ids that collide, splits honoured, bytes untouched, leaks across."""

import pytest
import tensorflow_datasets as tfds
from planted import as_jpeg, chest
from tiny_folder import one_error_line, write_folder

from cxr_jax.data.records import DataError, read_manifest
from data_prep import build


def make(folder, name, *flags, **columns):
    """A dataset of six pictures of three patients, its images unlike those of other names."""
    write_folder(folder / f"{name}_in", 6, **columns)
    for index in range(6):
        picture = as_jpeg(chest(sum(name.encode()) * 100 + index))
        (folder / f"{name}_in/images/{index:04d}.jpg").write_bytes(picture)
    args = ["--reader=folder", f"--input={folder}/{name}_in", f"--output={folder}/{name}", f"--name={name}"]
    build.build(build.parse_flags([*args, *flags, "--workers=0"]))
    return folder / name


def merge(folder, *inputs, flags=()):
    listed = ",".join(str(one) for one in inputs)
    args = ["--reader=datasets", f"--inputs={listed}", f"--output={folder}/merged", "--workers=0", *flags]
    manifest = build.build(build.parse_flags(args))
    builder = tfds.builder_from_directory(str(folder / "merged"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = {
        record["image_id"].decode(): (split, record)
        for split in builder.info.splits
        for record in builder.as_data_source(split, decoders=decoders)
    }
    return manifest, records


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Datasets `a` (Edema, Mass) and `b` (Mass, Hernia), with equal file names and patient ids."""
    folder = tmp_path_factory.mktemp("two")
    splits = ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    one = make(folder, "a", split=splits)
    return one, make(folder, "b", "--exclude_columns=Edema", split=splits[::-1], Hernia=["1", "0", "", "1", "0", "1"])


def test_vocabularies_unite_and_what_a_source_lacks_is_unknown(two, tmp_path):
    manifest, records = merge(tmp_path, *two)
    assert manifest.vocabulary == ("Edema", "Mass", "Hernia")
    assert records["a/images/0001.jpg"][1]["labels"].tolist() == [0, 1, -1]
    assert records["b/images/0001.jpg"][1]["labels"].tolist() == [-1, 1, 0]
    assert manifest.counts["label"]["Hernia"] == {"positive": 3, "negative": 2, "unknown": 7}
    assert manifest.counts["source"] == {"a": 6, "b": 6}


def test_images_pass_undecoded_and_splits_stay(two, tmp_path):
    _, records = merge(tmp_path, *two)
    for name, folder in zip("ab", two, strict=True):
        for index in range(6):
            split, record = records[f"{name}/images/{index:04d}.jpg"]
            assert record["image"] == (folder.parent / f"{name}_in/images/{index:04d}.jpg").read_bytes()
            assert split == ("train", "val", "test")[index // 2 if name == "a" else 2 - index // 2]


def test_equal_patient_ids_are_two_persons_unless_said(two, tmp_path):
    manifest, records = merge(tmp_path, *two)
    assert {record["patient_id"] for _, record in records.values()} == {
        f"{name}/p{number}".encode() for name in "ab" for number in range(3)
    }
    assert manifest.counts["patients"] == 6
    with pytest.raises(DataError, match=r"patient p0 is in the splits train \(a/.*\) and test \(b/.*2 patients in all"):
        merge(tmp_path / "global", *two, flags=["--patient_scope=global"])
    manifest, _ = merge(tmp_path / "drop", *two, flags=["--patient_scope=global", "--on_crossing=drop"])
    assert manifest.counts["patients"] == 3 and manifest.counts["images"] == 8
    assert manifest.counts["split"] == {"val": 4, "test": 4}, "p0 and p2 stay in test"


def test_ids_that_do_not_collide_stay_as_they_are(tmp_path):
    one = make(tmp_path, "a")
    two = make(tmp_path, "c", patient_id=[f"q{i // 2}" for i in range(6)])
    _, records = merge(tmp_path, one, two)
    assert {record["patient_id"] for _, record in records.values()} == {b"p0", b"p1", b"p2", b"q0", b"q1", b"q2"}


def test_a_dataset_merged_with_its_double_is_itself(two, tmp_path, capsys):
    one, _ = two
    double = make(tmp_path, "a", split=["test"] * 2 + ["val"] * 2 + ["train"] * 2)
    manifest, records = merge(tmp_path, one, double)
    assert manifest.counts["images"] == 6
    assert manifest.counts["curation"]["dropped"] == {"exact duplicate": 6}
    assert manifest.counts["curation"]["duplicates"]["across_splits"] == 4
    kept = {name for name, (split, _) in records.items() if split == "test"}
    assert kept == {f"{name}/images/{index:04d}.jpg" for name, index in (("a", 4), ("a", 5), ("a_2", 0), ("a_2", 1))}


def test_settings_name_the_inputs_by_fingerprint(two, tmp_path):
    manifest, _ = merge(tmp_path, *two)
    assert manifest.settings["inputs"] == {
        name: read_manifest(path).fingerprint for name, path in zip("ab", two, strict=True)
    }


def test_a_damaged_or_unfinished_input_is_one_line(two, tmp_path, capsys):
    one, _ = two
    (tmp_path / "empty").mkdir()
    flags = ["--reader=datasets", f"--output={tmp_path}/out", "--workers=0"]
    assert build.main([*flags, f"--inputs={one},{tmp_path}/empty"]) == 3
    assert "has no manifest.json" in one_error_line(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        build.main([*flags, f"--inputs={one},{one}"])
