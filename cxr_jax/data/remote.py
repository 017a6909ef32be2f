"""Datasets on object stores: shards are brought to a local folder once a host, then read at random from there.

In: a path such as s3://bucket/dataset or gs://bucket/dataset, a split, a cache folder. Out: a local dataset folder with
the metadata and the shards of that split.

A step reads its records from all over the dataset, a few hundred kilobytes each. ArrayRecord's reader opens local files
(and gs://, one request a record); over a network every image would wait for a round trip, and pay for a request, in
every epoch. Whole shards come over at the speed of the network, once, and are proved by the manifest's sha256.

The cache is named after the dataset's fingerprint, so that another version of a dataset never meets an old shard. A
shard appears by a rename once it is proved; whoever comes second on a host waits for the lock and finds it there.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from cxr_jax.data.records import MANIFEST_NAME, DataError

CHUNK_BYTES = 16 << 20
DOWNLOADS = 16  # shards under way at once
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
SIGN_IN = {"s3": "run aws configure", "gs": "run gcloud auth application-default login"}


def open_store(path: str) -> tuple[Any, str]:
    """The file system of fsspec that `path` lies in, and its name there. Raises what its driver raises."""
    # gcsfs logs every object that is not there, beside raising it.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Without memory of earlier listings: other processes write meanwhile.
    return fsspec.core.url_to_fs(path, use_listings_cache=False)


def trouble(path: str, error: Exception) -> str:
    """What keeps a driver from reaching `path`, and what to do, in one line. Every driver has its own errors."""
    scheme = path.partition("://")[0]
    first = next(iter(str(error).strip().splitlines()), "")
    kind, said = type(error).__name__, f"{type(error).__name__}: {first}"
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed; pip install {DRIVERS.get(scheme, 'the one that fsspec names')}"
    if "Credentials" in kind or "Credentials" in first or "Anonymous caller" in str(error):
        return f"no valid credentials were found ({said}); {SIGN_IN.get(scheme, 'sign in')}"
    if isinstance(error, PermissionError) or first.startswith("Forbidden") or getattr(error, "code", 0) in (401, 403):
        return f"access is denied ({said}); the account needs to list, read and, for an output, write and delete there"
    return f"cannot be reached ({said}); check the address, the network and the endpoint"


def local_folder(path: str, split: str, cache_dir: str) -> Path:
    """`path` itself if it is local; else the folder in `cache_dir` to which the split's shards have been brought.

    Raises ValueError for a remote path without `cache_dir`; DataError for what cannot be read, does not fit on the
    disk, or is not what the manifest says.
    """
    if "://" not in path:
        return Path(path)
    if not cache_dir:
        raise ValueError(f"data.cache_dir is empty, and {path} is remote; name a local folder with room for its shards")
    with _reading(path):
        store, root = open_store(path)
        text = store.cat_file(f"{root}/{MANIFEST_NAME}")
    shards, fingerprint = _shards_of(text, split, path)
    folder = Path(cache_dir).expanduser() / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _reading(path):
            _fetch_all(store, root, folder, shards, path)
    return folder


@contextmanager
def _reading(path: str):
    """Turn whatever an object store raises into a DataError that names the path and what to do."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: is no dataset, or not a whole one (not found: {error}); check the path, or upload it again"
        ) from None
    except Exception as error:
        raise DataError(f"{path}: {trouble(path, error)}") from None


def _shards_of(manifest: bytes, split: str, path: str) -> tuple[dict[str, str], str]:
    """`({shard of the split: sha256}, fingerprint)`. A foreign text: no name in it may leave the cache."""
    try:
        fields = json.loads(manifest)
        shards, fingerprint = dict(fields["shards"]), fields["fingerprint"]
        honest = re.fullmatch("[0-9a-f]{64}", fingerprint) and all(re.fullmatch(r"[\w.+-]+", name) for name in shards)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        honest = False
    if not honest:
        raise DataError(f"{path}/{MANIFEST_NAME}: damaged; build the dataset again")
    wanted = re.compile(rf"-{re.escape(split)}\.array_record-\d+-of-\d+")
    return {name: sha for name, sha in shards.items() if wanted.search(name)}, fingerprint


def _fetch_all(store: Any, root: str, folder: Path, shards: dict[str, str], path: str) -> None:
    """Bring what `folder` does not have: the metadata, and `shards`."""
    listed = {Path(entry["name"]).name: entry for entry in store.ls(root, detail=True)}
    for name in listed:
        if name.endswith(".json") and not (folder / name).exists():
            _write(folder / name, lambda file, name=name: file.write(store.cat_file(f"{root}/{name}")))
    missing = [name for name in shards if not (folder / name).exists()]
    absent = [name for name in missing if name not in listed]
    if absent:
        raise DataError(f"{path}: the shard {absent[0]} is missing; build or upload the dataset again")
    need, free = sum(listed[name]["size"] for name in missing), shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder}: {path} needs {need >> 20:,} MiB and {free >> 20:,} are free; take another cache_dir"
        )
    if not missing:
        return
    print(f"{path}: bringing {len(missing)} shards, {need / 2**20:,.1f} MiB, to {folder}", flush=True)
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        jobs = [
            pool.submit(_fetch, store, f"{root}/{name}", folder / name, shards[name], listed[name]["size"])
            for name in missing
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch(store: Any, remote: str, file: Path, sha256: str, size: int) -> None:
    """Download one shard by ranges, prove it, and show it."""
    digest = hashlib.sha256()

    def write(output):
        for start in range(0, size, CHUNK_BYTES):
            chunk = store.cat_file(remote, start=start, end=min(start + CHUNK_BYTES, size))
            digest.update(chunk)
            output.write(chunk)
        if digest.hexdigest() != sha256:
            raise DataError(f"{remote}: its sha256 is not the manifest's; the shard is damaged, upload it again")

    _write(file, write)


def _write(file: Path, write: Callable[[Any], Any]) -> None:
    """Write a file that is whole or not there, also after a power cut; a leftover of a killed run is overwritten."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as output:
            write(output)
            output.flush()
            os.fsync(output.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
