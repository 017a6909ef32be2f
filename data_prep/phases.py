"""The two phases that work on images: samples to parts, parts to shards; each does what is not done yet.

In: the listing, the folder and an engine that runs a pure function over tasks. Out: files in the folder, and what is in
them. Both begin by looking at what an earlier run left, prove it, and say how much of it they need not make again.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cxr_jax.data.records import DataError, Record
from data_prep import columns as columns_of
from data_prep.building_folder import BuildingFolder
from data_prep.chunks import Outcome, index_file, make_chunk, read_index, records_file
from data_prep.columns import Columns
from data_prep.listing import Listing
from data_prep.parallel import at_once
from data_prep.progress import progress
from data_prep.shards import Shard, Written, finished, note_file, write_shard
from data_prep.storage import Location, streams

# function, tasks -> the results in order
Engine = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
# A part that cannot be read is made anew; a disk that damages it again is given up.
_ATTEMPTS = 3


class PartMaker:
    """Makes the parts of a listing in a folder, on an engine."""

    def __init__(
        self,
        listing: Listing,
        make_record: Callable[[Any], Record],
        num_labels: int,
        folder: BuildingFolder,
        engine: Engine,
        threads: int = 1,
    ):
        self._listing, self._engine, self._num_labels = listing, engine, num_labels
        self._folder, self._parts = folder, folder.parts
        self._make = functools.partial(
            make_chunk,
            make_record=make_record,
            parts=folder.parts.absolute(),
            num_labels=num_labels,
            threads=threads,
        )

    def make_all(self, on_error: str) -> Columns:
        """Makes the parts that are missing; returns the columns of all rows.

        Raises DataError for the first image that cannot be used if `on_error` is "stop".
        """
        numbers = range(self._listing.num_chunks)
        names = {file.name for file in self._parts.iterdir()}
        there = [number for number in numbers if index_file(self._parts, number).name in names]
        look = functools.partial(self._known, on_error=on_error)
        found = zip(there, at_once(look, there, streams(self._parts)), strict=True)
        known = {number: columns for number, columns in found if columns is not None}
        missing = [number for number in numbers if number not in known]
        if known:
            print(f"continuing: {len(known)} of {len(numbers)} chunks are there already")
        rows = sum(len(columns) for columns in known.values())
        for outcome in progress(self._run(missing), "image", rows, len(self._listing), lambda one: one.samples):
            self._folder.check()
            if outcome.error and on_error == "stop":
                # So that it is looked at again once the file is repaired.
                index_file(self._parts, outcome.number).unlink()
                raise DataError(
                    f"{outcome.error}; repair it or give --on_error=skip, and the same command continues with what is "
                    "finished; without the file, --restart begins anew"
                )
        made = zip(
            missing, at_once(functools.partial(read_index, self._parts), missing, streams(self._parts)), strict=True
        )
        known.update(made)
        return columns_of.concatenate([known.pop(number) for number in numbers], self._num_labels)

    def make_again(self, numbers: Sequence[int]) -> None:
        """Makes parts anew whose columns are in use already; raises DataError if the input has changed since."""
        before = {number: index_file(self._parts, number).read_bytes() for number in numbers}
        for outcome in self._run(numbers):
            file = index_file(self._parts, outcome.number)
            if file.read_bytes() != before[outcome.number]:
                file.unlink()
                raise DataError(f"{file}: the images are not what they were when this build began; give --restart")

    def _run(self, numbers: Sequence[int]) -> Iterator[Outcome]:
        return self._engine(self._make, self._listing.chunks(numbers))

    def _known(self, number: int, on_error: str) -> Columns | None:
        """The columns an earlier run left of a chunk; None if they are no good."""
        file = index_file(self._parts, number)
        try:
            columns = read_index(self._parts, number)
        except DataError:
            columns = None
        if columns is None or (columns.errors and on_error == "stop"):
            file.unlink()
            return None
        return columns


def write_shards(shards: Sequence[Shard], maker: PartMaker, folder: BuildingFolder, engine: Engine) -> list[Written]:
    """Writes the shards that are missing; removes each part once no shard needs it. Returns all, in order."""
    parts, dataset = folder.parts.absolute(), folder.dataset.absolute()
    _remove_strangers(shards, folder)
    look = functools.partial(finished, parts=parts, output=dataset)
    found = at_once(look, shards, streams(parts))
    done = {written.number: written for written in found if written is not None}
    if done:
        print(f"continuing: {len(done)} of {len(shards)} shards are there already")
    for _ in range(_ATTEMPTS):
        missing = [shard for shard in shards if shard.number not in done]
        if not missing:
            return [done[shard.number] for shard in shards]
        needed = Counter(chunk for shard in missing for chunk in shard.chunks)
        there = {file.name for file in parts.glob("*.array_record")}
        for name in there - {records_file(parts, number).name for number in needed}:
            (parts / name).unlink()
        absent = [number for number in sorted(needed) if records_file(parts, number).name not in there]
        if absent:
            print(f"making {len(absent)} chunks again, whose records are gone")
            maker.make_again(absent)
        write = functools.partial(write_shard, parts=parts, output=dataset)
        for written in progress(engine(write, iter(missing)), "shard", len(done), len(shards), lambda one: 1):
            folder.check()
            if written.damaged_chunk >= 0:
                print(f"part {written.damage}; it is made again")
                records_file(parts, written.damaged_chunk).unlink(missing_ok=True)
                continue
            done[written.number] = written
            _release(shards[written.number], needed, parts)
    raise DataError(f"{folder.path}: parts are damaged as soon as they are written; is the disk sound?")


def _release(shard: Shard, needed: Counter, parts: Location) -> None:
    """Removes the parts that only this shard still needed."""
    for chunk in shard.chunks:
        needed[chunk] -= 1
        if not needed[chunk]:
            records_file(parts, chunk).unlink(missing_ok=True)


def _remove_strangers(shards: Sequence[Shard], folder: BuildingFolder) -> None:
    """Removes shards and notes of another plan, as when the limits of curation were changed."""
    names = {shard.name for shard in shards}
    for file in folder.dataset.iterdir():
        if file.name not in names:
            file.unlink()
    notes = {note_file(folder.parts, shard).name for shard in shards}
    for file in folder.parts.glob("*.json"):
        if file.name not in notes:
            file.unlink()
