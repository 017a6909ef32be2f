"""The files of an evaluation take their places so that what looks whole is whole.

In: a folder. Out: paths to write, renamed once all are written. The old results.json goes first and the new one comes
last: a folder that has one has the report and the predictions of the same evaluation, wherever a kill fell.
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
        missing = [part.name for part in parts if not part.exists()]
        if missing:
            raise FileNotFoundError(f"{workdir}: {', '.join(missing)} was not written")
        (workdir / FILES[-1]).unlink(missing_ok=True)
        for part, name in zip(parts, FILES, strict=True):
            part.replace(workdir / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
