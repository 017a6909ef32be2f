"""The hidden sibling `.<output>.building` in which a dataset is made, and its renaming when it is whole.

Layout: `plan.json` says what is being built; `parts/` holds the chunks and the notes of finished shards; `dataset/` the
shards, then metadata, and, last, manifest.json, after which `dataset/` is renamed to the output. A killed build leaves
only this folder: nothing that opens as a dataset. The same command continues with it, another command is refused.

In a bucket nothing can be renamed. There the finished objects are copied to the output by the store itself, the
manifest last; an older dataset loses its manifest first. Killed in between, the output holds objects and no manifest:
no dataset, and `showing` in the building folder says whose they are, so that the same command may replace them.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from cxr_jax.data.records import MANIFEST_NAME, DataError
from data_prep import lock
from data_prep.atomic import UNFINISHED, write_bytes
from data_prep.parallel import at_once
from data_prep.readers import FlagError
from data_prep.storage import STREAMS, Location, StoreError, StorePath, in_store, remove_tree

PLAN, SHOWING = "plan.json", "showing"
# What builds write there; shards and metadata lay in the folder itself before there were parts.
_OURS = re.compile(
    rf"^({re.escape(PLAN)}|{SHOWING}|{lock.LOCK}(\.probe)?|parts|dataset|tasks|(train|val|test)-\d{{5}})$|\.array_record-|\.json(\.tmp)?$|{re.escape(UNFINISHED)}$"
)


class BuildingFolder:
    """Context manager around one build; holds the folder's lock.

    Args:
      output: the folder to make.
      overwrite: replace `output` if it is a finished dataset.

    Raises DataError if `output` exists and may not be replaced, or if another build is writing it.
    """

    def __init__(self, output: Location, overwrite: bool):
        self._output = output.absolute()
        self.path = _building(self._output)
        self.parts, self.dataset, self.tasks = (self.path / name for name in ("parts", "dataset", "tasks"))
        check_output(self._output, overwrite)

    def __enter__(self) -> "BuildingFolder":
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._output}: cannot be made ({error.strerror}); choose another --output") from None
        # The lock dies with its process, so a leftover of a killed build is told from a build under way.
        self._lock = lock.take(self.path, self._output)
        foreign = [entry.name for entry in self.path.iterdir() if not _OURS.search(entry.name)]
        if foreign:
            self._lock.release()
            raise DataError(f"{self.path}: holds {foreign[0]}, which no build wrote; move it away")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Work that the same command can continue with is kept; a folder without any is not worth keeping. What another
        # build took over is not ours to remove.
        with contextlib.suppress(DataError):
            self.check()
            if not self.holds_work():
                remove_tree(self.path)
        self._lock.release()

    def check(self) -> None:
        """Raises DataError if another build took the folder over, which can happen in a bucket only."""
        self._lock.check()

    def holds_work(self) -> bool:
        """Whether a finished chunk or shard is there."""
        return self.parts.is_dir() and any(file.name.endswith((".npz", ".json")) for file in self.parts.iterdir())

    def drop_work(self) -> None:
        """Removes the chunks and shards."""
        remove_tree(self.parts)

    def claim(self, plan: Mapping[str, Any], restart: bool) -> bool:
        """Makes the folder this build's; returns whether an earlier run of it left work to continue with.

        `plan` is everything that shapes the parts.
        Raises DataError if another build left work there, unless `restart` gives it up.
        """
        try:
            found = json.loads((self.path / PLAN).read_bytes())
        except (FileNotFoundError, ValueError):
            found = None
        if found is not None and found != plan and self.holds_work() and not restart:
            raise DataError(
                f"{self.path}: holds the work of another build ({_difference(found, plan)}); "
                "run that command again to continue it, or give --restart to drop its work"
            )
        if found != plan or restart:
            for entry in self.path.iterdir():
                if entry.name not in (SHOWING, lock.LOCK):
                    remove_tree(entry) if entry.is_dir() else entry.unlink()
        self.parts.mkdir(exist_ok=True)
        self.dataset.mkdir(exist_ok=True)
        for folder in () if in_store(self.path) else (self.path, self.parts, self.dataset):
            for unfinished in folder.glob(f"*{UNFINISHED}"):
                unfinished.unlink()
        write_bytes(self.path / PLAN, json.dumps(plan, indent=1).encode())
        return self.holds_work()

    def show(self) -> None:
        """Renames the finished dataset to the output, in place of an older one, and removes the rest."""
        self.check()
        if isinstance(self._output, StorePath):
            self._copy_to(self._output)
        else:
            replaced = self._output.parent / f".{self._output.name}.replaced"
            remove_tree(replaced)
            if self._output.exists():
                self._output.rename(replaced)
            self.dataset.rename(self._output)
            remove_tree(replaced)
        remove_tree(self.path)

    def _copy_to(self, output: StorePath) -> None:
        """The renaming of a store: an output is a dataset only before and after, never in between."""
        (self.path / SHOWING).write_bytes(b"")
        (output / MANIFEST_NAME).unlink(missing_ok=True)
        remove_tree(output)
        files = [file for file in self.dataset.iterdir() if file.name != MANIFEST_NAME]
        for _ in at_once(lambda file: file.copy_to(output / file.name), files, STREAMS):
            self.check()
        (self.dataset / MANIFEST_NAME).copy_to(output / MANIFEST_NAME)


def _building(output: Location) -> Location:
    return output.parent / f".{output.name}.building"


def _difference(found: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The first setting in which two builds differ, in words."""
    for name in sorted({*found, *plan}):
        if name not in ("listing", "samples") and found.get(name) != plan.get(name):
            return f"its {name} is {found.get(name)!r}, now {plan.get(name)!r}"
    return f"it listed {found.get('samples')} images, now {plan.get('samples')} with other names, labels or places"


def check_output(output: Location, overwrite: bool) -> None:
    """Raises DataError if `output` is something that may not be replaced."""
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; choose another --output")
    if not any(True for _ in output.iterdir()):
        return
    if not (output / MANIFEST_NAME).is_file():
        # A local dataset appears by a rename; in a bucket a build may have been killed while it copied.
        if in_store(output) and (_building(output) / SHOWING).is_file():
            return
        raise DataError(f"{output}: is not empty and is no dataset of this tool; choose another --output")
    if not overwrite:
        raise DataError(f"{output}: is a finished dataset already; give --overwrite to replace it")


def check_reachable(output: Location) -> None:
    """Raises OSError if an output in a bucket cannot be written; tried before an hour of listing, not after it."""
    if isinstance(output, StorePath):
        if output.parent == output:
            raise FlagError(f"--output={output} is a whole bucket; name a folder in it, as {output}/cxr")
        probe = _building(output) / f"{lock.LOCK}.probe"
        try:
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)
        except StoreError as error:
            raise StoreError(error.errno, error.strerror, str(output)) from None


def check_apart(output: Location, inputs: Iterable[Location | None]) -> None:
    """Raises DataError if the output is an input, in one, or holds one: a build must never change what it reads."""
    made = output.resolve()
    for given in filter(None, inputs):
        read = given.resolve()
        if in_store(made) == in_store(read) and (made.is_relative_to(read) or read.is_relative_to(made)):
            raise DataError(f"--output {output} and the input {given} must lie apart; choose another --output")
