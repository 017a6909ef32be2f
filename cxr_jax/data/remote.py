"""Datasets on object stores: shards are brought to a local folder once a host, then read at random from there.

In: a path such as s3://bucket/dataset or gs://bucket/dataset, a split, a cache folder. Out: a local dataset folder with
the metadata and the shards of that split.

A step reads its records from all over the dataset, a few hundred kilobytes each. ArrayRecord's reader opens local files
(and gs://, one request a record); over a network every image would wait for a round trip, and pay for a request, in
every epoch. Whole shards come over at the speed of the network, once, and are proved by the manifest's sha256.

The cache is named after the dataset's fingerprint, so that another version of a dataset never meets an old shard. A
shard appears by a rename once it is proved; whoever comes second on a host waits for the lock and finds it there. What
is there is measured again at every start: a shard that is no longer as long as the store's is proved anew or brought
again, and so is the metadata. (To prove all shards at every start would read the whole disk.)
"""

import errno
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

from cxr_jax.data.records import MANIFEST_NAME, SPLITS, DataError

CHUNK_BYTES = 16 << 20
LOCK_NAME = ".lock"  # is in a cached folder and in no other
DOWNLOADS = 16  # shards under way at once
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
SIGN_IN = {"s3": "run aws configure", "gs": "run gcloud auth application-default login"}
# A shard's file name, and with it all that a manifest may name: nothing that lies in another folder.
SHARD_NAME = re.compile(rf"[\w.+-]+-(?P<split>{'|'.join(SPLITS)})\.array_record-\d+-of-\d+")
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    if scheme not in fsspec.available_protocols():
        return f"{scheme}:// is no kind of store that is known; legal: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER"
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed; pip install {DRIVERS.get(scheme, 'the one that fsspec names')}"
    if "Credentials" in kind or "Credentials" in first or "Anonymous caller" in str(error):
        return f"no valid credentials were found ({said}); {SIGN_IN.get(scheme, 'sign in')}"
    if scheme in ("http", "https") and getattr(error, "status", 0) in (401, 403):
        return f"the web server denies access ({said}); it must show the folder and its files to everyone"
    if isinstance(error, PermissionError) or first.startswith("Forbidden") or getattr(error, "code", 0) in (401, 403):
        return f"access is denied ({said}); the account needs to list, read and, for an output, write and delete there"
    return f"cannot be reached ({said}); check the address, the network and the endpoint"


def size_text(size: int) -> str:
    """A number of bytes for people, in a unit in which it is not 0."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def mend(folder: Path, shard: str) -> str:
    """What to do about a damaged shard of a local dataset folder: a copy is brought again, an original built."""
    if (folder / LOCK_NAME).is_file():
        return f"remove {folder / shard}, a copy, and it is brought again"
    return "build the dataset again"


def local_folder(path: str, split: str, cache_dir: str) -> Path:
    """`path` itself if it is local; else the folder in `cache_dir` to which the split's shards have been brought.

    `split` may be several, joined by `+`; "" brings the metadata alone. Raises ValueError for a `cache_dir` that is
    needed and empty, that lies in a store or cannot be written; DataError for what cannot be read, does not fit on the
    disk, or is not what the manifest says, and for a split that is not there.
    """
    if "://" in cache_dir:
        raise ValueError(f"data.cache_dir={cache_dir!r} is in a store; legal is a folder on a disk of this machine")
    if "://" not in path:
        return Path(path)
    if not cache_dir:
        raise ValueError(f"data.cache_dir is empty, and {path} is remote; name a local folder with room for its shards")
    with _reading(path):
        store, root = open_store(path)
        text = store.cat_file(f"{root}/{MANIFEST_NAME}")
    shards, fingerprint = _shards_of(text, split, path)
    folder = Path(cache_dir).expanduser() / fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK_NAME).open("w")
    except OSError as error:
        what = error.strerror or str(error)
        raise ValueError(
            f"data.cache_dir={cache_dir!r}: no folder can be made and written there ({what}); name another local folder"
        ) from None
    with opened as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _reading(path):
            _fetch_all(store, root, folder, shards, text, path)
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
        splits = {name: SHARD_NAME.fullmatch(name)["split"] for name in shards}
        honest = re.fullmatch("[0-9a-f]{64}", fingerprint)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        honest = False
    if not honest:
        raise DataError(f"{path}/{MANIFEST_NAME}: damaged; build the dataset again")
    wanted = split.split("+") if split else []
    for name in wanted:
        if name not in splits.values():
            has = ", ".join(one for one in SPLITS if one in splits.values())
            raise DataError(f"{path}: has no split {name!r}; it has {has}")
    return {name: sha for name, sha in shards.items() if splits[name] in wanted}, fingerprint


def _fetch_all(store: Any, root: str, folder: Path, shards: dict[str, str], manifest: bytes, path: str) -> None:
    """Bring what `folder` does not have as it is in the store: the metadata, and `shards`."""
    listed = {Path(entry["name"]).name: entry for entry in store.ls(root, detail=True)}
    for name in listed:
        if not name.endswith(".json"):
            continue
        file = folder / name
        if name == MANIFEST_NAME and file.exists() and file.read_bytes() != manifest:
            print(f"{file}: is not the one of {path}; bringing it again", flush=True)
        elif file.exists() and file.stat().st_size == listed[name]["size"]:
            continue
        _write(file, lambda output, name=name: output.write(store.cat_file(f"{root}/{name}")))
    for name, sha256 in shards.items():
        if name in listed:
            _drop_if_spoilt(folder / name, sha256, listed[name]["size"], path)
    missing = [name for name in shards if not (folder / name).exists()]
    absent = [name for name in missing if name not in listed]
    if absent:
        raise DataError(f"{path}: the shard {absent[0]} is missing; build or upload the dataset again")
    need, free = sum(listed[name]["size"] for name in missing), shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder}: {path} needs {size_text(need)} and {size_text(free)} are free; take another cache_dir"
        )
    if not missing:
        return
    print(f"{path}: bringing {len(missing)} shards, {size_text(need)}, to {folder}", flush=True)
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


def _drop_if_spoilt(file: Path, sha256: str, size: int, path: str) -> None:
    """Remove a cached shard that is not as long as the store's, unless it is the store's that is wrong."""
    if not file.exists() or file.stat().st_size == size:
        return
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() == sha256:
            return
    found = size_text(file.stat().st_size)
    print(f"{file}: is spoilt, {found} of the {size_text(size)} of {path}; bringing it again", flush=True)
    file.unlink()


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
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DataError(
            f"{file.parent}: the disk is full ({error.strerror}); make room or take another cache_dir"
        ) from None
    finally:
        part.unlink(missing_ok=True)
