"""The hidden sibling `.<output>.building` in which a dataset is made, and its renaming when it is whole.

Layout: `plan.json` says what is being built; `parts/` holds the chunks and the notes of finished shards; `dataset/` the
shards, then metadata, and, last, manifest.json, after which `dataset/` is renamed to the output. A killed build leaves
only this folder: nothing that opens as a dataset. The same command continues with it, another command is refused.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cxr_jax.data.records import MANIFEST_NAME, DataError
from data_prep.atomic import UNFINISHED, write_bytes

PLAN = "plan.json"
# What builds write there; shards and metadata lay in the folder itself before there were parts.
_OURS = re.compile(
    rf"^({re.escape(PLAN)}|parts|dataset|tasks|(train|val|test)-\d{{5}})$|\.array_record-|\.json(\.tmp)?$|{re.escape(UNFINISHED)}$"
)


class BuildingFolder:
    """Context manager around one build; holds the folder's lock.

    Args:
      output: the folder to make.
      overwrite: replace `output` if it is a finished dataset.

    Raises DataError if `output` exists and may not be replaced, or if another build is writing it.
    """

    def __init__(self, output: Path, overwrite: bool):
        self._output = output.absolute()
        self.path = self._output.parent / f".{self._output.name}.building"
        self.parts, self.dataset, self.tasks = (self.path / name for name in ("parts", "dataset", "tasks"))
        check_output(self._output, overwrite)

    def __enter__(self) -> "BuildingFolder":
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._output}: cannot be made ({error.strerror}); choose another --output") from None
        # The lock dies with its process, so a leftover of a killed build is told from a build under way.
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(f"{self._output}: another build is writing it; wait for it or stop it") from None
        foreign = [entry.name for entry in self.path.iterdir() if not _OURS.search(entry.name)]
        if foreign:
            os.close(self._lock)
            raise DataError(f"{self.path}: holds {foreign[0]}, which no build wrote; move it away")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Work that the same command can continue with is kept; a folder without any is not worth keeping.
        if not self.holds_work():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def holds_work(self) -> bool:
        """Whether a finished chunk or shard is there."""
        return any(self.parts.glob("*.npz")) or any(self.parts.glob("*.json"))

    def drop_work(self) -> None:
        """Removes the chunks and shards."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def claim(self, plan: Mapping[str, Any], restart: bool) -> bool:
        """Makes the folder this build's; returns whether an earlier run of it left work to continue with.

        `plan` is everything that shapes the parts.
        Raises DataError if another build left work there, unless `restart` gives it up.
        """
        try:
            found = json.loads((self.path / PLAN).read_bytes())
        except (OSError, ValueError):
            found = None
        if found is not None and found != plan and self.holds_work() and not restart:
            raise DataError(
                f"{self.path}: holds the work of another build ({_difference(found, plan)}); "
                "run that command again to continue it, or give --restart to drop its work"
            )
        if found != plan or restart:
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.parts.mkdir(exist_ok=True)
        self.dataset.mkdir(exist_ok=True)
        for folder in (self.path, self.parts, self.dataset):
            for unfinished in folder.glob(f"*{UNFINISHED}"):
                unfinished.unlink()
        write_bytes(self.path / PLAN, json.dumps(plan, indent=1).encode())
        return self.holds_work()

    def show(self) -> None:
        """Renames the finished dataset to the output, in place of an older one, and removes the rest."""
        replaced = self._output.parent / f".{self._output.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self._output.exists():
            self._output.rename(replaced)
        self.dataset.rename(self._output)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)


def _difference(found: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The first setting in which two builds differ, in words."""
    for name in sorted({*found, *plan}):
        if name not in ("listing", "samples") and found.get(name) != plan.get(name):
            return f"its {name} is {found.get(name)!r}, now {plan.get(name)!r}"
    return f"it listed {found.get('samples')} images, now {plan.get('samples')} with other names, labels or places"


def check_output(output: Path, overwrite: bool) -> None:
    """Raises DataError if `output` is something that may not be replaced."""
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; choose another --output")
    with contextlib.suppress(StopIteration):
        next(output.iterdir())
        if not (output / MANIFEST_NAME).is_file():
            raise DataError(f"{output}: is not empty and is no dataset of this tool; choose another --output")
        if not overwrite:
            raise DataError(f"{output}: is a finished dataset already; give --overwrite to replace it")


def check_apart(output: Path, inputs: Iterable[Path | None]) -> None:
    """Raises DataError if the output is an input, in one, or holds one: a build must never change what it reads."""
    made = output.resolve()
    for given in filter(None, inputs):
        read = given.resolve()
        if made.is_relative_to(read) or read.is_relative_to(made):
            raise DataError(f"--output {output} and the input {given} must lie apart; choose another --output")
