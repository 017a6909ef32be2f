"""Local copies of what lies in a bucket, in a folder of this process that goes with it, however it ends.

In: a path. Out: a local file or folder of the same content, for libraries that read only those. `scratch()` lies below
the system's temporary folder (TMPDIR) and is locked as long as its process lives. Who makes one removes those whose
process was killed.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cxr_jax.data.remote import size_text
from data_prep.parallel import at_once
from data_prep.storage import STREAMS, Location, StorePath


@functools.cache
def scratch() -> Path:
    """This process's folder, made at the first call."""
    home = Path(tempfile.gettempdir()) / f"data_prep_{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    gate = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for folder in home.iterdir():
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)
        mine = Path(tempfile.mkdtemp(dir=home))
        # Left open: the lock ends with the process.
        fcntl.flock(os.open(mine, os.O_RDONLY), fcntl.LOCK_EX)
    finally:
        os.close(gate)
    atexit.register(shutil.rmtree, mine, ignore_errors=True)
    return mine


@contextlib.contextmanager
def local_copy(file: Location) -> Iterator[Path]:
    """A local file of the same content, for what reads files only: the file itself, or a copy for so long."""
    if not isinstance(file, StorePath):
        yield file
        return
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        copy = Path(folder) / file.name
        file.download(copy)
        yield copy


@contextlib.contextmanager
def local_folder_copy(folder: Location) -> Iterator[Path]:
    """A local folder with the files that lie right below: the folder itself, or a copy for so long.

    Raises OSError if the disk has no room for the copy.
    """
    if not isinstance(folder, StorePath):
        yield folder
        return
    files = [path for path in folder.iterdir() if path.is_file()]
    need, free = sum(at_once(StorePath.size, files, STREAMS)), shutil.disk_usage(scratch()).free
    if need > free:
        what = f"{folder} needs {size_text(need)} and {size_text(free)} are free; TMPDIR names another disk"
        raise OSError(errno.ENOSPC, what, str(scratch()))
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        for _ in at_once(lambda file: file.download(Path(name) / file.name), files, STREAMS):
            pass
        yield Path(name)
