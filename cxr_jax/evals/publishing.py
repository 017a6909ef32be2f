"""The files of an evaluation take their places together, so that none stands beside those of an older one.

In: a folder and names. Out: paths to write, renamed to these names once all are written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = ("report.html", "predictions.csv", "results.json")


@contextmanager
def together(workdir: Path) -> Iterator[list[Path]]:
    """Where to write `FILES`; what was there before stays until all are written, and if one cannot be."""
    parts = [workdir / f".{name}.part" for name in FILES]
    try:
        yield parts
        for part, name in zip(parts, FILES, strict=True):
            part.replace(workdir / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
