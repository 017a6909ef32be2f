"""`data_prep.validate` finds every planted fault of a dataset folder, names it on a line, and passes a sound one."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from planted import as_jpeg, brighter, chest
from tiny_folder import run_validate

from cxr_jax.data.records import Box, Record, encode_record, fingerprint, read_manifest
from data_prep import build, validate
from data_prep import columns as columns_of
from data_prep import counts as counts_of
from data_prep.dataset_writer import DatasetWriter
from data_prep.images import encode_mask
from data_prep.splits import stable_hash


def record(number: int, **changes) -> Record:
    """A good record with a mask and a box."""
    plain = Record(
        image=as_jpeg(chest(number)),
        height=96,
        width=96,
        image_id=f"i{number}",
        patient_id=f"p{number}",
        view="PA",
        labels=(1, -1),
        mask=encode_mask(np.eye(96, dtype=bool)),
        boxes=(Box("Mass", 1.0, 2.0, 30.0, 40.0),),
    )
    return dataclasses.replace(plain, **changes)


GOOD = {"train": [record(i) for i in range(6)], "val": [record(6), record(7)], "test": [record(8)]}


def write(folder, records=GOOD, payloads=None, **changes):
    """A dataset of these records with a true manifest, `changes` to it apart; `payloads` replaces some of them."""
    rows = [(split, one) for split, given in records.items() for one in given]
    columns = columns_of.empty(len(rows), 2)
    for row, (_, one) in enumerate(rows):
        columns_of.put(columns, row, dataclasses.replace(one, labels=one.labels[:2]), b"")
    code = np.array([("train", "val", "test").index(split) for split, _ in rows], np.uint8)
    patient = np.array([stable_hash(one.patient_id, 0) for _, one in rows], np.uint64)
    every = np.arange(len(rows))
    with DatasetWriter(folder, "planted", 1 << 16, overwrite=False) as writer:
        for split, one in rows:
            writer.add(split, (payloads or {}).get(one.image_id) or encode_record(one))
        base = build.Manifest(
            name="planted",
            tool_version="3",
            vocabulary=("Edema", "Mass"),
            canvas=counts_of.canvas(columns, every),
            counts=counts_of.count(columns, every, code, patient, ("Edema", "Mass")),
            shards={},
        )
        writer.finish(dataclasses.replace(base, **changes))
    return folder


def faults(capsys, folder, *flags) -> list[str]:
    """Fault lines of the command, whose exit code must fit."""
    code = validate.main([f"--data={folder}", "--workers=0", *flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fault: ")]
    assert code == (3 if lines else 0)
    return lines


def test_a_sound_dataset_passes_with_a_table(tmp_path, capsys):
    write(tmp_path / "data")
    assert validate.main([f"--data={tmp_path}/data", "--workers=0"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in out[:-1]] == [
        "manifest", "shards", "metadata", "records", "image ids", "left out", "splits", "counts", "exact duplicates",
        "near duplicates",
    ]  # fmt: skip
    assert all(line.endswith(" ok") for line in out[:-1]) and out[-1].endswith(": sound")


def test_two_workers_say_the_same(tmp_path, capsys):
    write(tmp_path / "data", {"train": [record(0), record(1)], "test": [record(2, patient_id="p0")]})
    here = faults(capsys, tmp_path / "data")
    done = run_validate(f"--data={tmp_path}/data", "--workers=2")
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if line.startswith("fault: ")] == here


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good") / "data")


def copied(good, tmp_path):
    return shutil.copytree(good, tmp_path / "data")


def test_a_flipped_bit_a_cut_and_a_missing_shard(good, tmp_path, capsys):
    folder = copied(good, tmp_path)
    shards = [next(folder.glob(f"*-{split}.*")) for split in ("train", "val", "test")]
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(content)
    shards[1].write_bytes(shards[1].read_bytes()[:1000])
    shards[2].unlink()
    lines = "\n".join(faults(capsys, folder))
    assert f"{shards[0].name}: its sha256 is" in lines
    assert f"{shards[1].name}: is damaged, it cannot be opened" in lines
    assert f"{shards[2].name}: is missing" in lines
    assert "dataset_info.json: test has [1] records by shard, found [0]" in lines
    assert "good records, the manifest says 9" in lines
    assert "counts." not in lines, "what follows from lost records is no fault of its own"


def test_metadata_strangers_and_the_manifest(good, tmp_path, capsys):
    folder = copied(good, tmp_path)
    (folder / "planted-train.array_record-00007-of-00009").write_bytes(b"x")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = "77"
    (folder / "dataset_info.json").write_text(json.dumps(info).replace("SHARD_X_OF_Y", "SHARD_P_OF_Y"))
    (line,) = (line for line in faults(capsys, folder) if "TFDS" in line)
    assert "TFDS cannot open the folder" in line
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "dropped.jsonl").write_text("{}\n")
    lines = faults(capsys, folder)
    assert len(lines) == 3 and "00007-of-00009: is not in the manifest" in lines[1]
    assert "dropped.jsonl: was changed, added or removed" in lines[0] and "77" in lines[2]
    (folder / "features.json").unlink()
    assert any("features.json: is missing" in line for line in faults(capsys, folder))
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(fields | {"name": "other"}))
    (line,) = faults(capsys, folder)
    assert "changed after the build" in line


def test_counts_that_are_not_those_of_the_records(good, tmp_path, capsys):
    folder = copied(good, tmp_path)
    fields = json.loads((folder / "manifest.json").read_text())
    fields["counts"]["view"]["AP"] = 4
    fields["canvas"]["width"] = 97
    fields["fingerprint"] = fingerprint(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
    lines = faults(capsys, folder)
    assert len(lines) == 2 and "counts.view: the manifest says" in lines[0] and "canvas: " in lines[1]


def edited(good, tmp_path, change):
    """A copy of a dataset whose manifest was edited by `change` and given a true fingerprint again."""
    folder = copied(good, tmp_path)
    fields = json.loads((folder / "manifest.json").read_text())
    change(fields)
    fields["fingerprint"] = fingerprint(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["shards"].update({"../../../../etc/passwd": "0" * 64}), "the name of a shard is"),
        (lambda m: m["shards"].update({"a.array_record-00000-of-00001": "0" * 64}), "the name of a shard is"),
        (lambda m: m["shards"].update({"a/b-train.array_record-00000-of-00001": "0" * 64}), "the name of a shard is"),
        (lambda m: m.update(shards=[]), "shards is []"),
        (lambda m: m.pop("vocabulary"), "manifest.json: lacks vocabulary"),
        (lambda m: m.update(notes=""), "manifest.json: has the unknown notes"),
        (lambda m: m["canvas"].update(height="8"), 'canvas is {"height": "8"'),
        (lambda m: m["canvas"].update(height=True), 'canvas is {"height": true'),
        (lambda m: m["counts"].pop("split"), "counts.split is null"),
        (lambda m: m.update(counts=3), "counts is 3; legal: a table"),
        (lambda m: m["counts"].update(split={"train": "many"}), "counts.split is"),
        (lambda m: m["counts"].update(curation=1), "counts.curation is 1"),
        (lambda m: m.update(vocabulary="Edema"), 'vocabulary is "Edema"; legal: a list of texts'),
        (lambda m: m.update(vocabulary=["Edema", 3]), "vocabulary is"),
        (lambda m: m.update(skipped=["x"]), "skipped is"),
        (lambda m: m.update(skipped=[{"file": "x"}]), "an entry of skipped is"),
        (lambda m: m.update(name=None), "name is null"),
    ],
)  # fmt: skip
def test_a_manifest_of_no_legal_form_is_one_fault_and_nothing_is_opened(
    good, tmp_path, capsys, change, said, monkeypatch
):
    folder = edited(good, tmp_path, change)
    monkeypatch.setattr(validate, "shard_facts", lambda file: pytest.fail(f"{file} was opened"))
    (line,) = faults(capsys, folder)
    assert said in line


def test_half_a_character_and_deep_nesting(good, tmp_path, capsys):
    folder = copied(good, tmp_path)
    text = (folder / "manifest.json").read_text()
    for bad in (text.replace('"planted"', '"\\ud800"', 1), "[" * 100_000, "1" * 5000):
        (folder / "manifest.json").write_text(bad)
        (line,) = faults(capsys, folder)
        assert "build it again" in line or "not JSON" in line


def test_what_was_left_out_is_compared(good, tmp_path, capsys):
    dropped = [
        {"file": "a", "reason": "too rough for a radiograph: roughness above 0.6"},
        {"file": "b", "reason": "exact duplicate (equal pixels) of another patient", "copy_of": "i0"},
        {"file": "c", "reason": "its patient is in test too"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in dropped)
    true = {
        "dropped": {"exact duplicate": 1, "too rough for a radiograph": 1},
        "crossing_patients_images": 1,
        "dropped_list_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }

    def case(name, curation, **more):
        folder = edited(good, tmp_path / name, lambda m: (m["counts"].update(curation=true | curation), m.update(more)))
        (folder / "dropped.jsonl").write_text(text)
        return faults(capsys, folder)

    assert case("true", {}) == []
    (line,) = case("counts", {"dropped": {"exact duplicate": 7}})
    assert "counts.curation.dropped: the manifest says" in line and '"too rough for a radiograph": 1' in line
    (line,) = case("crossing", {"crossing_patients_images": 2})
    assert "crossing_patients_images" in line
    (line,) = case("skipped", {}, skipped=[{"file": "i3", "reason": "invented"}])
    assert "'i3': is a record, and is said to be left out" in line
    (line,) = case("twice", {}, skipped=[{"file": "a", "reason": "invented"}])
    assert "'a': is left out twice" in line


def test_a_stray_file_is_a_warning(good, tmp_path, capsys):
    folder = copied(good, tmp_path)
    (folder / "notes.txt").write_text("x")
    assert validate.main([f"--data={folder}", "--workers=0"]) == 0
    assert capsys.readouterr().err.splitlines() == ["warning: 'notes.txt': is no part of the dataset"]


def test_faults_of_a_kind_are_told_three_times_and_counted(good, tmp_path, capsys):
    folder = edited(good, tmp_path, lambda m: m.update(vocabulary=["Edema"]))
    lines = [line for line in faults(capsys, folder) if "features" in line or "more" in line]
    assert sum("is no record of this dataset's features" in line for line in lines) == 3
    assert "fault: and 6 more of records like this" in lines


def payload_of(**changes) -> bytes:
    """Bytes of record 5 that no honest writer makes: `encode_record` refuses them."""
    from tensorflow_datasets.core import example_serializer

    from cxr_jax.data.records import features

    one = dataclasses.asdict(record(5)) | changes
    one["labels"] = np.asarray(one["labels"], np.int8)
    kinds = features(2)
    return (
        example_serializer.ExampleSerializer(kinds.get_serialized_info())
        .get_tf_example(kinds.encode_example(one))
        .SerializeToString()
    )


BAD = {
    "view": (payload_of(view="FRONTAL"), "view is 'FRONTAL'"),
    "label": (payload_of(labels=(2, 0)), "each must be 1, 0 or -1"),
    "size": (payload_of(height=90, mask=b""), "its JPEG is 96x96 pixels, the record says 96x90"),
    "image": (payload_of(image=as_jpeg(chest(5))[:-300]), "cannot be decoded"),
    "mask size": (payload_of(mask=encode_mask(np.eye(95, dtype=bool))), "its mask is 95x95"),
    "mask": (payload_of(mask=b"no png"), "its mask is no PNG"),
    "box": (payload_of(boxes=[{"label": "M", "x": 80.0, "y": 0.0, "w": 30.0, "h": 5.0}]), "is not inside the image"),
    "id": (payload_of(patient_id=""), "must not be empty"),
    "schema": (encode_record(record(5, labels=(1, 0, 1))), "is no record of this dataset's features"),
    "garbage": (b"\x0a\x05hello", "is no record of this dataset's features"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_outside_the_contract_is_named(tmp_path, capsys, name):
    payload, said = BAD[name]
    write(tmp_path / "data", payloads={"i5": payload})
    lines = [line for line in faults(capsys, tmp_path / "data") if "record 5" in line]
    assert len(lines) == 1 and said in lines[0]


def test_leaks_across_splits(tmp_path, capsys):
    leaky = {
        "train": [record(0), record(1), record(2), record(3)],
        "val": [record(4, patient_id="p0"), record(5, image=record(1).image)],
        "test": [record(6, image=as_jpeg(brighter(chest(2)))), record(7, image_id="i3")],
    }
    lines = faults(capsys, write(tmp_path / "data", leaky))
    assert len(lines) == 4
    assert "i3 (test): its image_id occurs before, in i3 (train)" in lines[0]
    assert "patient p0 is in two splits: i0 (train) and i4 (val)" in lines[1]
    assert "i1 (train) and i5 (val) have equal pixels" in lines[2]
    assert "i2 (train) and i6 (test) are near duplicates (" in lines[3]
    assert len(faults(capsys, tmp_path / "data", "--dedup=none")) == 2
    assert len(faults(capsys, tmp_path / "data", "--dedup=exact")) == 3


def test_duplicates_within_a_split_are_no_fault(tmp_path, capsys):
    twice = GOOD | {"train": [*GOOD["train"], record(9, image=record(0).image)]}
    assert faults(capsys, write(tmp_path / "data", twice)) == []


def test_real_radiographs_and_phantoms_merge_validate_and_open(shared_data, tmp_path, capsys):
    """63 real radiographs, 30 phantoms: built, merged, proved; a copy of a test image in train is caught."""
    import tensorflow_datasets as tfds

    real = tmp_path / "real_in"
    for file in sorted((shared_data / "cxr_small/images").rglob("*.jpg"))[::25]:
        target = real / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for flags in (
        ["--reader=folder", f"--input={real}", f"--output={tmp_path}/real"],
        ["--reader=phantom", "--num_images=30", "--image_px=64", f"--output={tmp_path}/phantom"],
        ["--reader=datasets", f"--inputs={tmp_path}/real,{tmp_path}/phantom", f"--output={tmp_path}/merged"],
    ):
        assert build.main([*flags, "--workers=0"]) == 0
    capsys.readouterr()
    assert faults(capsys, tmp_path / "merged") == []
    manifest = read_manifest(tmp_path / "merged")
    assert manifest.counts["images"] == 93
    builder = tfds.builder_from_directory(str(tmp_path / "merged"))
    assert sum(len(builder.as_data_source(split)) for split in builder.info.splits) == 93
