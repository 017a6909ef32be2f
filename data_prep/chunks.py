"""A chunk: a fixed run of samples of the final order, made by one pure function into one part of two or three files.

In: a `Chunk` and the reader's `make_record`. Out, in the folder of parts: `00012.array_record`, the encoded records;
`00012.thumbs.npy`, a thumbnail for every row; and, last, `00012.npz`, the columns and each record's sha256. All three
appear by rename, so a chunk whose NPZ is there is whole. Any process on any machine can make a chunk, twice or at the
same time: the bytes are the same.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from jaxtyping import UInt8

from cxr_jax.data.records import DataError, Record, encode_record
from data_prep import columns as columns_of
from data_prep.atomic import appear, write_bytes
from data_prep.columns import Columns
from data_prep.parallel import at_once
from data_prep.readers import Sample
from data_prep.scratch import local_copy, scratch
from data_prep.signature import THUMB_SIDE
from data_prep.storage import Location, StoreError, StorePath, streams

# One record a group gives random access to each; JPEG and PNG bytes do not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Small enough that little is redone after a kill, large enough that files stay few.
MIN_SAMPLES, MAX_SAMPLES = 4, 256
# A small build still has work for so many processes.
MIN_CHUNKS = 64


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Samples number `first` and following of the final order."""

    number: int
    first: int
    samples: Sequence[Sample]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a chunk: numbers of records and of samples, and the first error, "" for none."""

    number: int
    records: int
    samples: int
    error: str


def chunk_size(num_samples: int) -> int:
    """Samples a chunk; depends on nothing but their number, so that any number of workers makes the same chunks."""
    return max(MIN_SAMPLES, min(MAX_SAMPLES, num_samples // MIN_CHUNKS))


def make_chunk(
    chunk: Chunk, make_record: Callable[[Any], Record], parts: Location, num_labels: int, threads: int = 1
) -> Outcome:
    """Makes and stores the part of one chunk; data that cannot be used becomes an error of its row.

    `threads` records are made at once: as many as the input, where it lies in a bucket, is worth waiting for at once.
    """
    columns = columns_of.empty(len(chunk.samples), num_labels)
    thumbs = np.zeros((len(chunk.samples), THUMB_SIDE, THUMB_SIDE), np.uint8)
    sha256 = np.zeros((len(chunk.samples), 32), np.uint8)
    with appear(records_file(parts, chunk.number), flush=False) as unfinished, RecordWriter(unfinished) as writer:
        made = at_once(functools.partial(_record_or_error, make_record), chunk.samples, threads)
        for row, (sample, record) in enumerate(zip(chunk.samples, made, strict=True)):
            try:
                if isinstance(record, DataError):
                    raise record
                _check_ids(sample, record)
                payload = encode_record(record)
                thumbs[row] = columns_of.put(columns, row, record, payload)
            except DataError as error:
                columns.errors[row] = str(error)
                continue
            sha256[row] = np.frombuffer(hashlib.sha256(payload).digest(), np.uint8)
            writer.write(payload)
    buffer = io.BytesIO()
    np.save(buffer, thumbs)
    write_bytes(thumbs_file(parts, chunk.number), buffer.getvalue(), flush=False)
    write_bytes(index_file(parts, chunk.number), columns_of.to_bytes(columns, sha256=sha256), flush=False)
    error = next(iter(columns.errors.values()), "")
    return Outcome(chunk.number, int(columns.made.sum()), len(columns), error)


def _record_or_error(make_record: Callable[[Any], Record], sample: Sample) -> Record | DataError:
    try:
        return make_record(sample)
    except DataError as error:
        return error


class RecordWriter:
    """An ArrayRecord file of ours as a context manager; checks after closing that all records are in it.

    Raises OSError if the file cannot be written whole.
    """

    def __init__(self, file: Path):
        self._file, self._written = file, 0
        self._writer = array_record_module.ArrayRecordWriter(str(file), WRITER_OPTIONS)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(RuntimeError):
            self._writer.close()

    def close(self) -> None:
        """Ends the file and counts what is in it."""
        try:
            self._writer.close()
            found = num_records(self._file)
        except RuntimeError as failure:
            raise self._failed(_first_line(failure)) from None
        if found != self._written:
            raise self._failed(f"{found} of {self._written} records are in it")

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        try:
            self._writer.write(payload)
        except RuntimeError as failure:
            raise self._failed(_first_line(failure)) from None
        self._written += 1

    def _failed(self, why: str) -> OSError:
        return OSError(None, f"cannot be written ({why}); is the disk full?", self._file.name)


def num_records(file: Path) -> int:
    """Number of records of an ArrayRecord file; raises RuntimeError if it is damaged."""
    reader = array_record_module.ArrayRecordReader(str(file))
    try:
        return reader.num_records()
    finally:
        reader.close()


def read_records(parts: Location, number: int, rows: np.ndarray) -> Iterator[bytes]:
    """The payloads of `rows` of a chunk, proved against the sha256 of its index.

    Raises DataError if the part is damaged or not there.
    """
    file = records_file(parts, number)
    with np.load(io.BytesIO(index_file(parts, number).read_bytes()), allow_pickle=False) as index:
        made, sha256 = index["made"], index["sha256"]
    places = np.cumsum(made) - 1
    try:
        with local_copy(file) as local:
            reader = array_record_module.ArrayRecordReader(str(local))
            try:
                for row in rows:
                    (payload,) = reader.read([int(places[row])])
                    if hashlib.sha256(payload).digest() != sha256[row].tobytes():
                        raise DataError(f"{file.name}: record {places[row]} is not the one that was written")
                    yield payload
            finally:
                reader.close()
    except StoreError:
        raise
    except (RuntimeError, IndexError, ValueError, OSError) as error:
        raise DataError(f"{file.name}: is damaged ({_first_line(error)})") from None


def records_file(parts: Location, number: int) -> Location:
    """The records of a chunk."""
    return parts / f"{number:05d}.array_record"


def thumbs_file(parts: Location, number: int) -> Location:
    """The thumbnails of a chunk."""
    return parts / f"{number:05d}.thumbs.npy"


def index_file(parts: Location, number: int) -> Location:
    """The columns of a chunk, written last."""
    return parts / f"{number:05d}.npz"


def read_index(parts: Location, number: int) -> Columns:
    """The columns of a finished chunk; raises DataError if they are damaged or its thumbnails are cut short."""
    columns = columns_of.read(index_file(parts, number))
    file = thumbs_file(parts, number)
    try:
        size = file.size() if isinstance(file, StorePath) else file.stat().st_size
    except FileNotFoundError:
        size = 0
    if size <= len(columns) * THUMB_SIDE**2:
        raise DataError(f"{file}: is damaged; remove it and run again")
    return columns


class Thumbs:
    """The thumbnails of all rows of the listing, read as they are asked for; `scratch` keeps those of a bucket."""

    def __init__(self, parts: Location, size: int):
        self._parts, self._size = parts, size

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "n 64 64"]:
        """Thumbnails of rows of the listing; quickest if they are sorted."""
        thumbs = np.zeros((len(rows), THUMB_SIDE, THUMB_SIDE), np.uint8)
        chunks = rows // self._size
        numbers = np.unique(chunks).tolist()
        for number, file in zip(numbers, at_once(self._local, numbers, streams(self._parts)), strict=True):
            here = chunks == number
            stored = np.load(file, mmap_mode="r", allow_pickle=False)
            thumbs[here] = stored[rows[here] - number * self._size]
        return thumbs

    def _local(self, number: int) -> Path:
        file = thumbs_file(self._parts, number)
        if not isinstance(file, StorePath):
            return file
        copy = scratch() / file.name
        if not copy.exists():
            file.download(copy)
        return copy


def _check_ids(sample: Sample, record: Record) -> None:
    """The splits were drawn from the listing, so a record must be what its sample said."""
    said, made = (sample.key, sample.patient_id), (record.image_id, record.patient_id)
    if said != made:
        raise ValueError(f"the reader listed image and patient {said} and made {made}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
