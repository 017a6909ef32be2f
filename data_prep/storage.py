"""Folders that may lie in a bucket: `Path` for a local one, `StorePath` for s3://bucket/folder and gs://bucket/folder.

In: the text of a flag. Out: a path with the part of pathlib's interface that is used here, so that the same code reads
and writes both. Underneath is fsspec with its drivers (s3fs, gcsfs). An object store has no folders, no renaming and no
half-written objects: an object is there whole or not at all, and whoever lists sees it at once.

Whatever a driver raises becomes an OSError of one line: FileNotFoundError, or `StoreError` for a store that cannot be
reached, which says nothing about the object and must stop a build rather than count as a broken image.
"""

import argparse
import contextlib
import errno
import functools
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import fsspec

from cxr_jax.data.remote import open_store, trouble
from data_prep.parallel import at_once

# Requests under way at once: each waits for the network most of its time.
STREAMS = 16
# A picture on its way is also decoded, and takes tens of megabytes meanwhile.
IMAGES_AT_ONCE = 8
# A DICOM header is a few kilobytes, the file behind it ten megabytes.
RANGE_BYTES = 128 << 10
_ALIASES = {"gcs": "gs", "s3a": "s3"}
_LOCAL = ("file", "local")


class StoreError(OSError):
    """An object store that cannot be reached, does not let us in, or has no such bucket."""


@dataclass(frozen=True)
class StorePath:
    """An object, or all objects below a prefix; `url` is its address, without a slash at the end."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, below: str) -> "StorePath":
        return StorePath(f"{self.url}/{below}")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> "StorePath":
        """What it lies below; the bucket's is itself."""
        scheme, _, rest = self.url.partition("://")
        return StorePath(f"{scheme}://{rest.rsplit('/', 1)[0]}")

    def absolute(self) -> "StorePath":
        """Itself: an address has no working folder."""
        return self

    def resolve(self) -> "StorePath":
        """Itself: there are no links."""
        return self

    def is_relative_to(self, other: "StorePath") -> bool:
        """Whether it is `other` or lies below it."""
        return f"{self.url}/".startswith(f"{other.url}/")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are there as soon as something is in them."""

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return self._kind() == "directory"

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return bool(self._kind())

    def size(self) -> int:
        """Bytes of the object."""
        with _told(self):
            return int(self._store.info(self._key)["size"])

    def iterdir(self) -> Iterator["StorePath"]:
        """What lies right below, objects and prefixes, in the order of names; nothing where there is nothing."""
        names: set[str] = set()
        with contextlib.suppress(FileNotFoundError), _told(self):
            keys = {key.rstrip("/") for key in self._store.ls(self._key, detail=False)} - {self._key}
            names = {key.rsplit("/", 1)[-1] for key in keys}
        return iter([self / name for name in sorted(names)])

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """What lies right below and has a name of this pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def below(self) -> list[str]:
        """The names, relative to this, of all objects below; nothing where there is nothing."""
        with contextlib.suppress(FileNotFoundError), _told(self):
            keys = self._store.find(self._key)
            start = f"{self._key}/"
            return [key[len(start) :] for key in keys if key.startswith(start) and not key.endswith("/")]
        return []

    def read_bytes(self) -> bytes:
        """The whole object."""
        with _told(self):
            return self._store.cat_file(self._key)

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of the object."""
        with _told(self):
            return self._store.cat_file(self._key, start=start, end=end)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding, errors)

    def open(self, mode: str = "r", newline: str | None = None, encoding: str = "utf-8") -> IO[Any]:
        """A stream to read from: text whole at once, bytes ("rb") by ranges as they are asked for."""
        if mode == "rb":
            return io.BufferedReader(_Ranges(self), RANGE_BYTES)
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding, newline=newline)

    def write_bytes(self, content: bytes) -> None:
        """Writes the object, in place of an older one."""
        with _told(self, writing=True):
            self._store.pipe_file(self._key, content)

    def create(self, content: bytes) -> None:
        """Writes the object if there is none; raises FileExistsError if there is one, where the store can tell."""
        with _told(self, writing=True):
            self._store.pipe_file(self._key, content, mode="create")

    def upload(self, file: Path) -> None:
        """Writes the object from a local file."""
        with _told(self, writing=True):
            self._store.put_file(str(file), self._key)

    def download(self, file: Path) -> None:
        """Writes a local file from the object."""
        with _told(self):
            self._store.get_file(self._key, str(file))

    def copy_to(self, target: "StorePath") -> None:
        """Copies the object to another address of the same store; its bytes do not come here."""
        with _told(target):
            self._store.cp_file(self._key, target._key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])), _told(self):
            self._store.rm_file(self._key)

    def remove_below(self) -> None:
        """Removes all objects below."""
        for _ in at_once(lambda name: (self / name).unlink(missing_ok=True), self.below(), STREAMS):
            pass

    @property
    def _store(self) -> Any:
        return _store(self.url.partition("://")[0])

    @property
    def _key(self) -> str:
        return self._store._strip_protocol(self.url)

    def _kind(self) -> str:
        with contextlib.suppress(FileNotFoundError), _told(self):
            return self._store.info(self._key)["type"]
        return ""


Location: TypeAlias = Path | StorePath


class _Ranges(io.RawIOBase):
    """An object as a stream; every read is a request."""

    def __init__(self, path: StorePath):
        self._path, self._size, self._at = path, path.size(), 0
        self.name = path.url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        content = self._path.read_range(self._at, end) if end > self._at else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def location(text: str) -> Location:
    """A type of flag: a local path, or an address in a store."""
    scheme, found, rest = text.partition("://")
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a path, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    if not found:
        return Path(text)
    scheme = _ALIASES.get(scheme, scheme)
    parts = rest.rstrip("/").split("/")
    if scheme in _LOCAL or scheme not in fsspec.available_protocols() or not all(parts) or {".", ".."} & {*parts}:
        raise argparse.ArgumentTypeError(f"{text!r} must be a path, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return StorePath(f"{scheme}://{'/'.join(parts)}")


def in_store(path: Location | None) -> bool:
    """Whether a path lies in an object store."""
    return isinstance(path, StorePath)


def images_at_once(source: Location | None) -> int:
    """How many records of a source are worth making at once in one process."""
    return IMAGES_AT_ONCE if in_store(source) else 1


def streams(path: Location | None) -> int:
    """How many requests to a path are worth having under way at once: one on a local disk."""
    return STREAMS if in_store(path) else 1


def remove_tree(folder: Location) -> None:
    """Removes a folder with all that is below; nothing if it is not there."""
    if isinstance(folder, StorePath):
        folder.remove_below()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _store(scheme: str) -> Any:
    """The driver of a kind of store: one for all threads, since fsspec's own cache has one for each."""
    return open_store(f"{scheme}://")[0]


@contextlib.contextmanager
def _told(path: StorePath, writing: bool = False) -> Iterator[None]:
    """Turns what a driver raises into an OSError that names the path."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if writing:
            raise StoreError(errno.ENOENT, "there is no such bucket; make it, or choose another", str(path)) from None
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from error
    except Exception as error:  # every driver has its own family of errors
        raise StoreError(errno.EIO, trouble(str(path), error), str(path)) from None
