"""What TFDS says of a dataset is held against its manifest, and a record that cannot be parsed is named."""

import json
import shutil

import pytest
from tensorflow_datasets.proto import tf_example_pb2

from cxr_jax.data.records import DataError
from cxr_jax.data.shards import Records, open_shards


@pytest.fixture
def folder(phantom_dataset, tmp_path):
    return shutil.copytree(phantom_dataset, tmp_path / "data")


def test_a_number_of_records_that_was_not_built_is_refused(folder):
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    built = sum(map(int, train["shardLengths"]))
    train["shardLengths"][0] = str(int(train["shardLengths"][0]) - 2)
    file.write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"'train' has {built - 2} records, {built} were built"):
        open_shards(folder, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "template"])
def test_metadata_that_tfds_cannot_open_is_one_line(folder, name, damage):
    file = folder / name
    text = file.read_text()
    if damage == "gone":
        file.unlink()
    else:
        file.write_text({"cut": text[:100], "empty": "", "template": text.replace("SHARD_X_OF_Y", "SHARD_P")}[damage])
    if damage == "template" and name == "features.json":
        return  # it has none
    with pytest.raises(DataError) as error:
        open_shards(folder, "train")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert "build the dataset again" in str(error.value)


def change_labels(values):
    return lambda example: example.features.feature["labels"].int64_list.value.__setitem__(slice(None), values)


def drop(name):
    return lambda example: example.features.feature.pop(name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_labels([1, 300, 0, 0, 0]), "a label is 300; legal are 1, 0 and -1"),
        (change_labels([1]), "it has 1 labels, the dataset 5 classes"),
        (drop("view"), "view has 0 values in a bytes_list, not one"),
        (drop("image"), "image has 0 values"),
        (drop("age_years"), "age_years has 0 values in a float_list"),
    ],
)
def test_a_record_outside_the_contract_is_named(phantom_dataset, monkeypatch, change, why):
    shards = open_shards(phantom_dataset, "val")
    example = tf_example_pb2.Example.FromString(shards.payload(1))
    change(example)
    monkeypatch.setattr(type(shards), "payload", lambda self, row: example.SerializeToString())
    records = Records([shards], shards.manifest.vocabulary)
    with pytest.raises(DataError) as error:
        records.brief(1)
    assert f"{phantom_dataset}: record 1 of split 'val' cannot be read" in str(error.value) and why in str(error.value)
    with pytest.raises(DataError, match="record 1 of split 'val'"):
        records[1]


def test_bytes_that_are_no_record_are_named(phantom_dataset, monkeypatch):
    shards = open_shards(phantom_dataset, "val")
    records = Records([shards], shards.manifest.vocabulary)
    whole = shards.payload(0)
    for payload in (b"", whole[:-1], whole + b"\x00", b"\xff" * 9):
        monkeypatch.setattr(type(shards), "payload", lambda self, row, payload=payload: payload)
        for read in (records.brief, records.__getitem__):
            with pytest.raises(DataError, match="record 0 of split 'val' cannot be read"):
                read(0)
