"""A build from a bucket to a bucket gives the bytes of a local one, on S3 (moto) and Cloud Storage (an emulator)."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from test_killed_builds import die_at, finish
from tiny_bucket import bucket_bytes, upload
from tiny_folder import folder_bytes, one_error_line, write_folder

from cxr_jax.data.source import open_split
from data_prep import build, building_folder, lock, storage, validate
from data_prep.scratch import scratch
from tests.object_stores import BUCKET, SERVERS

FLAGS = ("--reader=folder", "--workers=0")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A folder `in` of 20 images and the dataset `out` that is made of it on the local disk."""
    folder = tmp_path_factory.mktemp("local")
    write_folder(folder / "in", 20)
    finish([*FLAGS, f"--input={folder}/in", f"--output={folder}/out"])
    return folder


@pytest.fixture(scope="module", params=SERVERS)
def store(request, local):
    """A bucket that holds `in`."""
    with SERVERS[request.param]():
        bucket = storage.location(f"{request.param}://{BUCKET}")
        upload(local / "in", bucket / "in")
        yield bucket


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    for name, secs in {"LEASE_SECS": 0.4, "BEAT_SECS": 0.1, "SETTLE_SECS": 0.1}.items():
        monkeypatch.setattr(lock, name, secs)


def test_bucket_to_bucket_is_local_to_local(store, local, tmp_path, capsys):
    output = store / "one/out"
    finish([*FLAGS, f"--input={store}/in", f"--output={output}"])
    assert bucket_bytes(output) == folder_bytes(local / "out")
    assert [path.name for path in (store / "one").iterdir()] == ["out"]
    assert validate.main([f"--data={output}", "--workers=0"]) == 0
    assert f"{output}: sound" in capsys.readouterr().out
    ours = open_split(str(output), "train", cache_dir=str(tmp_path))
    assert ours.brief(3) == open_split(str(local / "out"), "train").brief(3)
    assert not any(scratch().iterdir())


KILLS = {
    "in the second chunk": ("data_prep.chunks", "RecordWriter.write", 6),
    "in the second shard": ("data_prep.shards", "RecordWriter.write", 7),
    "between a shard and its note": ("data_prep.shards", "write_bytes", 2),
    "before the manifest": ("data_prep.dataset_writer", "write_bytes", 3),
    "between two copies": ("data_prep.storage", "StorePath.copy_to", 3),
    "before the copy of the manifest": ("data_prep.storage", "StorePath.copy_to", 9),
}


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.build", "data_prep.readers.folder"])
    return context


def die(where: str, flags: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    building_folder.STREAMS = 1  # copies one after the other, so that some are there when it dies
    die_at(KILLS[where], flags)


# An emulator takes its time: two kills show that the other driver does as well.
CASES = [("s3", where) for where in KILLS] + [("gs", "in the second shard"), ("gs", "between two copies")]


@pytest.mark.parametrize(("store", "where"), CASES, indirect=["store"])
def test_killed_and_continued_is_undisturbed(store, local, server, tmp_path, capsys, where):
    output = store / where.replace(" ", "_") / "out"
    flags = [*FLAGS, f"--input={store}/in", f"--output={output}"]
    process = server.Process(target=die, args=(where, flags, dict(os.environ)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (output / "manifest.json").exists()
    assert validate.main([f"--data={output}", "--workers=0"]) == 3
    finish(flags)
    assert "its lock is taken over" in capsys.readouterr().out
    assert bucket_bytes(output) == folder_bytes(local / "out")
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_an_older_dataset_is_replaced_and_its_neighbours_are_not_touched(store, local, capsys):
    folder = store / "replaced"
    (folder / "out2/manifest.json").write_bytes(b"{}")
    (folder / "out/manifest.json").write_bytes(b"{}")
    (folder / "out/old").write_bytes(b"old")
    flags = [*FLAGS, f"--input={store}/in", f"--output={folder}/out"]
    assert build.main(flags) == 3
    assert "give --overwrite to replace it" in one_error_line(capsys.readouterr().err)
    finish([*flags, "--overwrite"])
    assert bucket_bytes(folder / "out") == folder_bytes(local / "out")
    assert (folder / "out2/manifest.json").read_bytes() == b"{}"


def test_a_folder_that_is_no_dataset_is_never_replaced(store, capsys):
    (store / "foreign/out/thesis.txt").write_bytes(b"years of work")
    assert build.main([*FLAGS, f"--input={store}/in", f"--output={store}/foreign/out", "--overwrite"]) == 3
    assert "no dataset of this tool" in one_error_line(capsys.readouterr().err)
    assert (store / "foreign/out/thesis.txt").read_bytes() == b"years of work"
