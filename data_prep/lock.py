"""One build an output: a lock that dies with its process, on a local disk and in a bucket.

In: the folder in which a dataset is made. Out: a lock, or DataError if another build holds it. A local folder is locked
by flock. In a bucket there is only a lease: an object whose content its holder changes every few seconds. Who finds one
watches it for `LEASE_SECS`; one that changes belongs to a build under way, one that does not to a build that was
killed, and is taken over. No clocks are compared.

What a lease promises: of two builds that begin one after the other only one goes on; of two that begin in the same
instant too, where the store creates conditionally (S3, Cloud Storage). A holder that could not renew its lease, such as
one on a suspended machine, finds that out when it next looks (`check`), and may have written until then; what it wrote
are whole objects, and `validate` proves every shard.
"""

import contextlib
import fcntl
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Protocol

from cxr_jax.data.records import DataError
from data_prep.storage import Location, StorePath

LOCK = "lock"
LEASE_SECS = 60.0
BEAT_SECS = 10.0
SETTLE_SECS = 2.0  # longer than a write that another build has begun takes to arrive


class Lock(Protocol):
    """A lock that is held until `release`."""

    def check(self) -> None:
        """Raises DataError if the lock was lost."""

    def release(self) -> None:
        """Ends it."""


def take(folder: Location, output: Location) -> Lock:
    """Locks the folder; raises DataError, naming `output`, if another build holds it."""
    return Lease(folder, output) if isinstance(folder, StorePath) else FolderLock(folder, output)


def _held(output: Location) -> DataError:
    return DataError(f"{output}: another build is writing it; wait for it or stop it")


class FolderLock:
    """flock on a local folder; ends with the process."""

    def __init__(self, folder: Path, output: Location):
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise _held(output) from None

    def check(self) -> None:
        """Nothing: it cannot be lost."""

    def release(self) -> None:
        """Ends it."""
        os.close(self._descriptor)


class Lease:
    """The object `lock` below a prefix, renewed by a thread."""

    def __init__(self, folder: StorePath, output: Location):
        self._file, self._output, self._token = folder / LOCK, output, uuid.uuid4().hex
        self._beats, self._lost = 0, False
        self._ended = threading.Event()
        found = self._read()
        try:
            if found is None:
                self._file.create(self._text())
            else:
                self._take_over(found)
        except FileExistsError:
            raise _held(output) from None
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises DataError if another build took the lease over, or if it could not be renewed for so long."""
        if self._lost:
            raise DataError(
                f"{self._output}: the lock on it was lost, another build may be writing it; run again later"
            )

    def release(self) -> None:
        """Ends it, and removes the object if it is still ours."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours(self._read()):
                self._file.unlink(missing_ok=True)

    def _take_over(self, found: bytes) -> None:
        print(f"{self._output}: is locked; looking for up to {LEASE_SECS:g} s whether its build is alive", flush=True)
        end = time.monotonic() + LEASE_SECS
        while time.monotonic() < end:
            time.sleep(min(1.0, LEASE_SECS / 4))
            now = self._read()
            if now is None:
                self._file.create(self._text())
                return
            if now != found:
                raise _held(self._output)
        print(f"{self._output}: it is not; its lock is taken over", flush=True)
        self._file.write_bytes(self._text())
        # Two may find a lease dead at once: the last to write has it.
        time.sleep(SETTLE_SECS)
        if not self._is_ours(self._read()):
            raise _held(self._output)

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(BEAT_SECS):
            with contextlib.suppress(OSError):
                if not self._is_ours(self._read()):
                    self._lost = True
                    return
                self._beats += 1
                self._file.write_bytes(self._text())
                renewed = time.monotonic()
            if time.monotonic() - renewed > LEASE_SECS:
                self._lost = True
                return

    def _text(self) -> bytes:
        return f"{self._token} {self._beats}\n".encode()

    def _is_ours(self, content: bytes | None) -> bool:
        return content is not None and content.split()[:1] == [self._token.encode()]

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None
