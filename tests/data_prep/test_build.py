"""The builder: same bytes for any number of workers, all or nothing on disk, one line for every error."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_folder import REPOSITORY, command, folder_bytes, jpeg, one_error_line, run, write_folder

from cxr_jax.data.records import MANIFEST_NAME, DataError, fingerprint, read_manifest
from data_prep import build


def build_here(*flags: str):
    """Builds in this process; returns the manifest."""
    return build.build(build.parse_flags([*flags, "--workers=0"]))


def test_the_same_bytes_with_one_and_two_workers(tmp_path):
    folder = write_folder(tmp_path / "in", 20)
    one = run("--reader=folder", f"--input={folder}", f"--output={tmp_path}/one", "--workers=1")
    two = run("--reader=folder", f"--input={folder}", f"--output={tmp_path}/two", "--workers=2")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_the_phantom_gives_the_same_bytes_in_any_number_of_workers(tmp_path):
    flags = ("--reader=phantom", "--num_images=20", "--image_px=64")
    assert run(*flags, f"--output={tmp_path}/two", "--workers=2").returncode == 0
    build_here(*flags, f"--output={tmp_path}/one")
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_tfds_reads_the_dataset_back(tmp_path):
    folder = write_folder(tmp_path / "in", 12, split=["train"] * 8 + ["val"] * 2 + ["test"] * 2)
    manifest = build_here("--reader=folder", f"--input={folder}", f"--output={tmp_path}/out")
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source("train", decoders=decoders)
    records = {record["image_id"].decode(): record for record in source}
    assert len(source) == len(records) == 8 == manifest.counts["split"]["train"]
    for index in range(8):
        record = records[f"images/{index:04d}.jpg"]
        assert record["image"] == jpeg(index), "passed through undecoded"
        assert (record["height"], record["width"]) == (40, 48)
        assert record["labels"].tolist() == [(1, 0, -1)[index % 3], (-1, 1, 0)[index % 3]]
        assert record["patient_id"].decode() == f"p{index // 2}"
        assert record["mask"] == b"" and record["age_years"] == -1
    assert builder.as_data_source("train")[0]["image"].shape == (40, 48, 1)
    assert [len(builder.as_data_source(split)) for split in ("val", "test")] == [2, 2]


def test_no_patient_crosses_splits_and_sources_mix(tmp_path):
    build_here(
        "--reader=phantom",
        "--num_images=60",
        "--image_px=64",
        f"--output={tmp_path}/out",
        "--split_fractions=0.5,0.25,0.25",
    )
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = {split: list(builder.as_data_source(split, decoders=decoders)) for split in builder.info.splits}
    patients = [{record["patient_id"] for record in split} for split in records.values()]
    assert len(patients) == 3
    assert len(set.union(*patients)) == sum(map(len, patients))
    ids = [record["image_id"] for record in records["train"]]
    assert ids != sorted(ids)


def test_shards_close_at_their_size(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "in", 10, split=["train"] * 10)
    args = build.parse_flags(["--reader=folder", f"--input={folder}", f"--output={tmp_path}/out", "--workers=0"])
    monkeypatch.setattr(args, "shard_mb", 2000 / 2**20)
    manifest = build.build(args)
    assert len(manifest.shards) > 2
    assert len(tfds.builder_from_directory(str(tmp_path / "out")).as_data_source("train")) == 10


def test_a_truncated_image_stops_the_build_or_is_skipped(tmp_path):
    folder = write_folder(tmp_path / "in", 8)
    broken = folder / "images/0003.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    flags = ("--reader=folder", f"--input={folder}", f"--output={tmp_path}/out", "--workers=0")
    stopped = run(*flags)
    assert stopped.returncode == 3
    assert "images/0003.jpg" in one_error_line(stopped.stderr)
    assert not (tmp_path / "out").exists()
    manifest = build_here(*flags[:3], "--on_error=skip")
    assert manifest.counts["images"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert [skipped["file"] for skipped in manifest.skipped] == ["images/0003.jpg"]
    assert "damaged" in manifest.skipped[0]["reason"]


def test_the_broken_shared_files_are_skipped_and_named(shared_data, tmp_path):
    manifest = build_here(
        "--reader=folder", f"--input={shared_data}/quirks", f"--output={tmp_path}/quirks", "--on_error=skip"
    )
    assert {entry["file"] for entry in manifest.skipped} == {"all_black.png", "all_white.png", "one_pixel.png"}
    with pytest.raises(DataError, match="no image could be used; the first of 12"):
        build_here("--reader=folder", f"--input={shared_data}/broken", f"--output={tmp_path}/broken", "--on_error=skip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quirks"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_keeps_what_is_finished_and_shows_nothing(tmp_path, number, code):
    flags = ("--reader=phantom", "--num_images=100000", "--image_px=64", f"--output={tmp_path}/out", "--workers=2")
    process = subprocess.Popen(
        command(*flags),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started this suite in the background had its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.building/parts/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "stopped; " in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.building/**/*.json")) or list(tmp_path.glob(".out.building/plan.json"))


def test_a_finished_dataset_is_refused_unless_overwritten(tmp_path):
    flags = ("--reader=phantom", "--image_px=64", f"--output={tmp_path}/out")
    build_here(*flags, "--num_images=4")
    with pytest.raises(DataError, match="finished dataset already; give --overwrite"):
        build_here(*flags, "--num_images=5")
    assert read_manifest(tmp_path / "out").counts["images"] == 4
    assert build_here(*flags, "--num_images=5", "--overwrite").counts["images"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("keep")
    with pytest.raises(DataError, match="no dataset of this tool"):
        build_here("--reader=phantom", "--num_images=4", f"--output={tmp_path}/precious", "--overwrite")
    assert (tmp_path / "precious/file").read_text() == "keep"


PEAK = """
import resource, sys
from data_prep import build
build.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for number in (40, 160):
        flags = ("--reader=phantom", f"--num_images={number}", "--image_px=256", f"--output={tmp_path}/{number}")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *flags, "--workers=0", "--quality=100", "--shard_mb=1"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    written = sum(file.stat().st_size for file in (tmp_path / "160").iterdir()) / 2**20
    # Held in memory, 120 more images would show; four MiB is the noise of the allocator.
    assert written > 5
    assert peaks[1] - peaks[0] < 4, f"{peaks} MiB for {written:.0f} MiB written"


@pytest.mark.parametrize(
    "flags",
    [
        ("--reader=dicom", "--output=x"),
        ("--reader=phantom", "--output=x"),
        ("--reader=phantom", "--output=x", "--num_images=0"),
        ("--reader=phantom", "--output=x", "--num_images=4", "--labels=labels.csv"),
        ("--reader=phantom", "--output=x", "--num_images=4", "--split_fractions=0.5,0.4,0.3"),
        ("--reader=phantom", "--output=x", "--num_images=4", "--quality=101"),
        ("--reader=folder", "--output=x", "--input=y", "--patient_pattern=(("),
        ("--output=x",),
    ],
)
def test_bad_flags_exit_2_with_one_line(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        build.main(list(flags))
    assert caught.value.code == 2
    one_error_line(capsys.readouterr().err)


def test_flags_that_do_not_fit_together_exit_2(tmp_path, capsys):
    flags = ["--reader=phantom", "--num_images=4", f"--output={tmp_path}/out", "--canvas=128", "--image_px=256"]
    assert build.main(flags) == 2
    assert "--image_px=256 must lie between 64 and --canvas=128" in one_error_line(capsys.readouterr().err)


def test_bad_data_exits_3_with_one_line(tmp_path, capsys):
    code = build.main(["--reader=folder", f"--input={tmp_path}/none", f"--output={tmp_path}/out"])
    assert code == 3
    assert "no such folder" in one_error_line(capsys.readouterr().err)


def test_the_manifest_is_refused_when_missing_damaged_or_changed(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(DataError, match="no such dataset folder"):
        read_manifest(output)
    manifest = build_here("--reader=phantom", "--num_images=4", "--image_px=64", f"--output={output}")
    assert read_manifest(output) == manifest
    file = output / MANIFEST_NAME
    fields = json.loads(file.read_text())
    assert fields["fingerprint"] == fingerprint(fields) == manifest.fingerprint
    file.write_text(json.dumps(fields | {"vocabulary": ["other"]}))
    with pytest.raises(DataError, match="fingerprint"):
        read_manifest(output)
    file.write_text(file.read_text()[:50])
    with pytest.raises(DataError, match="not JSON"):
        read_manifest(output)
    os.remove(file)
    with pytest.raises(DataError, match="did not finish"):
        read_manifest(output)


def test_counts_are_of_what_was_written(tmp_path):
    folder = write_folder(tmp_path / "in", 12, view=["PA", "AP Supine", "LL"] * 4, sex=["Male", "F", ""] * 4)
    counts = build_here("--reader=folder", f"--input={folder}", f"--output={tmp_path}/out").counts
    assert counts["images"] == 12 and counts["patients"] == 6
    assert counts["view"] == {"AP": 4, "PA": 4, "LATERAL": 4, "UNKNOWN": 0}
    assert counts["sex"] == {"M": 4, "F": 4, "UNKNOWN": 4}
    assert counts["label"]["Edema"] == {"positive": 4, "negative": 4, "unknown": 4}
    assert np.sum(list(counts["split"].values())) == 12
