"""Files that appear whole: written under another name, renamed when complete; in a bucket, uploaded when complete.

What a finished dataset holds is flushed to the disk first: else a machine that loses power could show the new name
without the content. Parts are not: each is proved before it is used, and made again if it is damaged.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_prep.scratch import scratch
from data_prep.storage import Location, StorePath

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def appear(file: Location, *, flush: bool = True) -> Iterator[Path]:
    """Gives a local path to write to, which becomes `file` when the block ends without an error, and goes otherwise.

    The name is new each time, so that several processes may write the same file.
    """
    name = f"{file.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}"
    if isinstance(file, StorePath):
        unfinished = scratch() / name
        try:
            yield unfinished
            file.upload(unfinished)
        finally:
            unfinished.unlink(missing_ok=True)
        return
    unfinished = file.with_name(name)
    try:
        yield unfinished
        if flush:
            _flush(unfinished)
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(file: Location, content: bytes, *, flush: bool = True) -> None:
    """Writes a whole file."""
    if isinstance(file, StorePath):
        file.write_bytes(content)
        return
    with appear(file, flush=flush) as unfinished:
        unfinished.write_bytes(content)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
