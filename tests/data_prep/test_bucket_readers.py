"""Every way in which a reader touches its input, from a bucket: the records are those of the same files on a disk."""

import gzip
import threading
import time

import numpy as np
import pytest
import tiny_dicom
from tiny_bucket import upload
from tiny_folder import folder_bytes, jpeg, one_error_line, write_folder

from cxr_jax.data.records import DataError
from data_prep import build, lock, storage
from data_prep.readers import listing
from tests.object_stores import BUCKET, s3_server


@pytest.fixture(scope="module")
def bucket():
    with s3_server():
        yield storage.location(f"s3://{BUCKET}")


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    for name, secs in {"LEASE_SECS": 0.4, "BEAT_SECS": 0.1, "SETTLE_SECS": 0.1}.items():
        monkeypatch.setattr(lock, name, secs)


def both(bucket, tmp_path, *flags: str) -> tuple[dict, dict]:
    """The bytes of the dataset of `tmp_path/in`, and of the same in the bucket, each written to the local disk."""
    folder = bucket / tmp_path.name
    upload(tmp_path / "in", folder / "in")
    for name, root in (("local", tmp_path), ("remote", folder)):
        given = [flag.format(root=root) for flag in flags]
        assert build.main([*given, f"--output={tmp_path}/{name}", "--workers=0"]) == 0
    return folder_bytes(tmp_path / "local"), folder_bytes(tmp_path / "remote")


def test_tables_masks_and_boxes_of_a_folder(bucket, tmp_path):
    folder = write_folder(tmp_path / "in", 8, mask=["masks/0.png", *[""] * 7])
    (folder / "masks").mkdir()
    (folder / "masks/0.png").write_bytes(jpeg(99))
    (folder / ".hidden").mkdir()
    (folder / ".hidden/0.jpg").write_bytes(b"no image")
    (folder / "boxes.csv").write_text("file,finding,x,y,w,h\nimages/0001.jpg,Mass,1,2,3,4\n")
    local, remote = both(
        bucket, tmp_path, "--reader=folder", "--input={root}/in", "--boxes=boxes.csv", "--include_unlisted"
    )
    assert local == remote


def test_a_zipped_table_of_a_publisher(bucket, tmp_path):
    for number in range(6):
        file = tmp_path / f"in/train/patient{number}/study1/view1_frontal.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(jpeg(number))
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema"
    rows = [f"CheXpert-v1.0/train/patient{n}/study1/view1_frontal.jpg,Male,4{n},Frontal,PA,,1" for n in range(6)]
    with gzip.open(tmp_path / "in/train.csv.gz", "wt") as table:
        table.write("\n".join([header, *rows]))
    local, remote = both(bucket, tmp_path, "--reader=chexpert", "--input={root}/in")
    assert local == remote


def test_dicom_headers_are_read_without_the_pixels(bucket, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(4):
        dataset = tiny_dicom.dicom(tiny_dicom.smooth(number, 200, 240), PatientID=f"p{number}", PatientName="Doe^Jane")
        (tmp_path / f"in/{number}.dcm").write_bytes(tiny_dicom.written(dataset))
    asked = []
    real = storage.StorePath.read_range
    monkeypatch.setattr(storage, "RANGE_BYTES", 512)
    monkeypatch.setattr(storage.StorePath, "read_range", lambda path, a, b: (asked.append(b - a), real(path, a, b))[1])
    local, remote = both(bucket, tmp_path, "--reader=dicom_folder", "--input={root}/in")
    assert local == remote and 0 < sum(asked) <= 4 * 8192 < 200 * 240 * 2


def test_an_npz_and_built_datasets(bucket, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (4, 28, 28), np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.array([[0], [1], [0], [1]]) for split in ("train", "val", "test")}
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/pneumoniamnist.npz", **arrays)
    flags = ("--reader=medmnist", "--input={root}/in/pneumoniamnist.npz", "--quality_filter=off")
    local, remote = both(bucket, tmp_path, *flags)
    assert local == remote
    again = tmp_path / "again"
    (tmp_path / "local").rename(tmp_path / "in/built")
    flags = ("--reader=datasets", "--inputs={root}/in/built", f"--cache_dir={again}", "--quality_filter=off")
    (tmp_path / "in/pneumoniamnist.npz").unlink()
    (tmp_path / "remote").rename(tmp_path / "aside")
    local, remote = both(bucket, tmp_path, *flags)
    assert local == remote and any(again.glob("*/*-test.*"))


def test_a_store_out_of_reach_is_no_broken_image(bucket, tmp_path, monkeypatch, capsys):
    """`--on_error=skip` leaves out what is gone or broken, never what a network failed to bring."""
    folder = write_folder(tmp_path / "in", 8)
    upload(folder, bucket / "unreachable")
    flags = ["--reader=folder", f"--input={bucket}/unreachable", "--workers=0", "--on_error=skip"]
    real = listing.StorePath.read_bytes

    def fail(path):
        if path.name == "0003.jpg":
            raise storage.StoreError(5, "cannot be reached", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage.StorePath, "read_bytes", fail)
        assert build.main([*flags, f"--output={tmp_path}/out"]) == 1
    assert "0003.jpg: cannot be reached" in one_error_line(capsys.readouterr().err)
    (bucket / "unreachable/images/0003.jpg").write_bytes(b"")
    assert build.main([*flags, f"--output={tmp_path}/out"]) == 0
    assert "skipped 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--input=s3://bucket/none", "--output=s3://bucket/x"), 3, "nothing below this address"),
        (("--input=s3://bucket/in", "--output=s3://nobucket/x"), 1, "s3://nobucket/x: there is no such bucket"),
        (("--input=s3://bucket/in", "--output=s3://bucket"), 2, "name a folder in it, as s3://bucket/cxr"),
        (("--input=s3://bucket/in", "--output=s3://bucket/in/out"), 3, "must lie apart"),
        (("--input=s3://bucket/in", "--output=s3://bucket/x", "--labels=foo://x"), 3, "'foo://x' must be a path"),
    ],
)
def test_what_cannot_be_is_one_line(bucket, tmp_path, capsys, flags, code, said):
    (bucket / "in/0.jpg").write_bytes(jpeg(0))
    assert build.main(["--reader=folder", *flags]) == code
    assert said in one_error_line(capsys.readouterr().err)


@pytest.mark.parametrize("address", ["foo://bucket/x", "s3://", "s3:///x", "s3://bucket/../x", "file:///tmp/x"])
def test_addresses_that_are_none(address, capsys):
    with pytest.raises(SystemExit) as stopped:
        build.parse_flags(["--reader=folder", f"--input={address}", "--output=out"])
    assert stopped.value.code == 2 and "must be a path, s3://BUCKET/FOLDER" in capsys.readouterr().err


def test_a_lease_keeps_others_out_while_it_lives_and_ends_with_its_holder(bucket):
    folder = bucket / ".leased.building"
    first = lock.take(folder, bucket / "leased")
    with pytest.raises(DataError, match="another build is writing it"):
        lock.take(folder, bucket / "leased")
    first.check()
    first.release()
    assert not (folder / lock.LOCK).exists()


def test_of_two_that_begin_at_once_one_goes_on(bucket):
    folder, taken, refused, gate = bucket / ".race.building", [], [], threading.Barrier(4)

    def begin():
        gate.wait()
        try:
            taken.append(lock.take(folder, bucket / "race"))
        except DataError:
            refused.append(1)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 3
    taken[0].release()


def test_a_holder_whose_lease_was_taken_over_stops(bucket):
    folder = bucket / ".lost.building"
    held = lock.take(folder, bucket / "lost")
    (folder / lock.LOCK).write_bytes(b"other 0\n")
    deadline = time.monotonic() + 10
    with pytest.raises(DataError, match="the lock on it was lost"):
        while time.monotonic() < deadline:
            time.sleep(0.05)
            held.check()
    held.release()
    assert (folder / lock.LOCK).read_bytes() == b"other 0\n"
