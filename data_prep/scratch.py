"""A local folder of this process for copies of what lies in a bucket; gone with the process, however that ends.

Out: `scratch()`, below the system's temporary folder (TMPDIR). It is locked as long as its process lives. Who makes one
removes those whose process was killed.
"""

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path


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
