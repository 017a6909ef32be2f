"""Remote datasets: brought over once, proved, never half; on a store in memory and an S3 server on loopback."""

import errno
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry as imported_drivers

from cxr_jax.data import remote
from cxr_jax.data.records import DataError, read_manifest
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import load_rows
from tests.object_stores import BUCKET, SERVERS


@pytest.fixture
def store():
    """A store in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


@pytest.fixture
def uploaded(store, phantom_dataset):
    """The address of a dataset in memory."""
    store.put(str(phantom_dataset), "/bucket/data", recursive=True)
    return "memory://bucket/data"


def shard(store, split="train"):
    (name,) = (name for name in store.find("/bucket/data") if f"-{split}." in name)
    return name


def test_a_split_opens_like_the_local_one(uploaded, phantom_dataset, tmp_path):
    ours = open_split(uploaded, "train", cache_dir=str(tmp_path))
    local = open_split(str(phantom_dataset), "train")
    assert ours.manifest == local.manifest and len(ours) == len(local)
    one, other = load_rows(ours, [5, 0, 9]), load_rows(local, [5, 0, 9])
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_only_the_shards_of_the_split_come_over_and_once(uploaded, phantom_dataset, tmp_path, monkeypatch, capsys):
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    folder = tmp_path / read_manifest(phantom_dataset).fingerprint
    assert [path.name for path in folder.glob("*.array_record*")] == [
        path.name for path in phantom_dataset.glob("*-train.*")
    ]
    assert "bringing 1 shards" in capsys.readouterr().out
    monkeypatch.setattr(remote, "_fetch", lambda *arguments: pytest.fail("brought again"))
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    assert not list(folder.glob("*.part"))


def test_a_large_shard_comes_in_ranges(uploaded, phantom_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 10_007)
    open_split(uploaded, "val", cache_dir=str(tmp_path))
    (original,) = phantom_dataset.glob("*-val.*")
    assert original.stat().st_size > 2 * 10_007
    (copy,) = tmp_path.glob("*/*-val.*")
    assert copy.read_bytes() == original.read_bytes()


def test_another_version_of_the_dataset_never_meets_an_old_shard(uploaded, store, tmp_path):
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    fields = json.loads(store.cat_file("/bucket/data/manifest.json"))
    fields["fingerprint"] = "0" * 64
    store.pipe_file("/bucket/data/manifest.json", json.dumps(fields).encode())
    with pytest.raises(DataError, match="changed after the build"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))
    assert len(list(tmp_path.glob("*/*-train.*"))) == 2


@pytest.mark.parametrize("fault", ["flipped", "cut"])
def test_a_shard_that_is_not_the_manifests_is_refused_and_not_kept(uploaded, store, tmp_path, fault):
    content = bytearray(store.cat_file(shard(store)))
    content = content[:-1] if fault == "cut" else bytes([content[0] ^ 1]) + content[1:]
    store.pipe_file(shard(store), bytes(content))
    with pytest.raises(DataError, match="sha256 is not the manifest's"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("*/*-train.*")) and not list(tmp_path.glob("*/.*.part"))


def test_a_missing_shard_is_named(uploaded, store, tmp_path):
    name = shard(store)
    store.rm(name)
    with pytest.raises(DataError, match=f"memory://bucket/data: the shard {Path(name).name} is missing"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))


def test_two_splits_as_one_and_a_split_that_is_not_there(uploaded, tmp_path):
    with pytest.raises(DataError, match=r"^memory://bucket/data: has no split 'dev'; it has train, val, test"):
        open_split(uploaded, "train+dev", cache_dir=str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    both = open_split(uploaded, "train+val", cache_dir=str(tmp_path / "c"))
    assert len(both) == sum(len(open_split(uploaded, one, cache_dir=str(tmp_path / "c"))) for one in ("train", "val"))


def test_what_is_spoilt_in_the_cache_comes_again(uploaded, phantom_dataset, tmp_path, capsys):
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    (cached,) = folder.glob("*-train.*")
    cached.write_bytes(cached.read_bytes()[:-1000])
    (folder / "manifest.json").write_text("{}")
    (folder / "features.json").write_text("{")
    capsys.readouterr()
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    said = capsys.readouterr().out
    assert f"{cached}: is spoilt, " in said and "manifest.json: is not the one of memory://bucket/data" in said
    for name in (cached.name, "manifest.json", "features.json"):
        assert (folder / name).read_bytes() == (phantom_dataset / name).read_bytes()


def test_a_cached_shard_that_is_the_manifests_outlives_a_torn_one_in_the_store(uploaded, store, tmp_path):
    before = open_split(uploaded, "train", cache_dir=str(tmp_path)).brief(3)
    store.pipe_file(shard(store), b"torn")
    assert open_split(uploaded, "train", cache_dir=str(tmp_path)).brief(3) == before


def test_a_damaged_record_of_the_cache_says_which_copy_to_remove(uploaded, tmp_path):
    open_split(uploaded, "train", cache_dir=str(tmp_path))
    (cached,) = tmp_path.glob("*/*-train.*")
    content = bytearray(cached.read_bytes())
    content[: 1 << 16] = bytes(1 << 16)
    cached.write_bytes(content)
    with pytest.raises(DataError, match=rf"its shard is damaged .*; remove {cached}, a copy, and it is brought again"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))
    cached.unlink()
    open_split(uploaded, "train", cache_dir=str(tmp_path))


@pytest.mark.parametrize("form", ["s3://bucket/cache", "{file}", "{file}/x", "/proc/x"])
def test_a_cache_folder_that_cannot_be_one_is_one_line_with_its_key(uploaded, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    given = form.format(file=tmp_path / "file")
    with pytest.raises(ValueError, match=rf"^data\.cache_dir='{given}'.*(legal is|name another) ") as told:
        open_split(uploaded, "train", cache_dir=given)
    assert "\n" not in str(told.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_is_told_as_that(uploaded, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full .*make room or take another cache_dir"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("*/*.json"))


def test_sizes_for_people():
    assert [remote.size_text(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "3,072.0 GiB",
    ]  # fmt: skip


def test_a_web_server_that_says_no_is_told_without_cloud_accounts():
    error = type("ClientResponseError", (Exception,), {"status": 403})("403, message='Forbidden'")
    told = remote.trouble("https://host/data", error)
    assert "web server denies access" in told and "account" not in told


def test_a_disk_that_is_too_small_is_told_before_anything_is_brought(uploaded, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match=r"needs \d+\.\d [KM]iB and 1 bytes are free"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    "name", ["../evil-train.array_record-00000-of-00001", "/tmp/x-train.array_record-00000-of-00001"]
)
def test_no_name_in_a_manifest_leaves_the_cache(uploaded, store, tmp_path, name):
    fields = json.loads(store.cat_file("/bucket/data/manifest.json"))
    fields["shards"] = {name: "0" * 64}
    store.pipe_file("/bucket/data/manifest.json", json.dumps(fields).encode())
    with pytest.raises(DataError, match="damaged"):
        open_split(uploaded, "train", cache_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_remote_path_needs_a_cache_folder(uploaded):
    with pytest.raises(ValueError, match=r"^data\.cache_dir is empty"):
        open_split(uploaded, "train")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://bucket/other", "is no dataset"),
        ("foo://bucket/data", "foo:// is no kind of store .*legal: s3://BUCKET/FOLDER, gs://"),
        ("gs://b/d", "pip install gcsfs"),
    ],
)
def test_what_is_not_there_is_one_line(store, tmp_path, path, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(imported_drivers, "gs", raising=False)  # where another test has imported it
    with pytest.raises(DataError, match=message) as told:
        open_split(path, "train", cache_dir=str(tmp_path))
    assert "\n" not in str(told.value)


def test_whoever_comes_second_waits_and_finds_it_there(uploaded, tmp_path, capsys):
    """Threads, each with its own lock file open, stand for the processes of a host."""
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(open_split, uploaded, "train", cache_dir=str(tmp_path)) for _ in range(4)]
        found = [job.result().brief(3) for job in jobs]
    assert all(record == found[0] for record in found)
    assert capsys.readouterr().out.count("bringing 1 shards") == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SERVERS)
def test_the_real_drivers(scheme, phantom_dataset, tmp_path, monkeypatch):
    """s3fs against moto's server, gcsfs against an emulator: what they read of the environment, ranges, errors."""
    with SERVERS[scheme]():
        monkeypatch.setattr(remote, "CHUNK_BYTES", 50_000)
        files, root = fsspec.filesystem(scheme, skip_instance_cache=True), f"{BUCKET}/deep/data"
        for file in phantom_dataset.iterdir():
            files.put_file(str(file), f"{root}/{file.name}")
        split = open_split(f"{scheme}://{root}", "train", cache_dir=str(tmp_path))
        local = open_split(str(phantom_dataset), "train")
        assert [split.brief(i) for i in range(5)] == [local.brief(i) for i in range(5)]
        with pytest.raises(DataError, match=f"{scheme}://{BUCKET}/none: is no dataset"):
            open_split(f"{scheme}://{BUCKET}/none", "train", cache_dir=str(tmp_path))
        files.pipe_file(f"{root}/{next(phantom_dataset.glob('*-val.*')).name}", b"torn")
        with pytest.raises(DataError, match="sha256"):
            open_split(f"{scheme}://{root}", "val", cache_dir=str(tmp_path))


class Refused(Exception):
    """As the drivers' own: no OSError, and a text of several lines."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named s3fs"), "pip install s3fs"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "run aws configure"),
        (PermissionError("Access Denied"), "access is denied"),
        (Refused("Forbidden: https://x\nlong story"), "access is denied"),
        (Refused("Connection reset\nlong story"), "cannot be reached"),
    ],
)
def test_what_a_driver_says_becomes_one_line_with_what_to_do(error, said):
    told = remote.trouble("s3://bucket/data", error)
    assert said in told and "\n" not in told and "long story" not in told
