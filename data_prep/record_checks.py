"""Does a stored record obey the contract? One pure function over a run of records of one shard.

In: a shard and a range of its records. Out: `Checked`: the faults found, and the columns and ids of the good records,
from which `validate` proves the rest. Every image and mask is decoded, no record is trusted.
"""

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from cxr_jax.data.records import DataError, Record, encode_record, features
from data_prep import columns as columns_of
from data_prep.chunks import num_records
from data_prep.columns import Columns
from data_prep.readers.datasets import record_of
from data_prep.shards import sha256_of
from data_prep.signature import decode_grey, sign
from data_prep.splits import stable_hash

# Boxes are scaled with their image and rounded to float32.
BOX_SLACK_PX = 1.0


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` of a shard."""

    shard: Path
    split: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Checked:
    """A span's faults as (record, what), its columns, and 64-bit hashes of its image and patient ids."""

    span: Span
    faults: tuple[tuple[int, str], ...]
    columns: Columns
    image: np.ndarray
    patient: np.ndarray


def shard_facts(shard: Path) -> tuple[str, int]:
    """sha256 and number of records of a shard; "" if it is missing, -1 records if it cannot be opened."""
    try:
        sha256 = sha256_of(shard)
    except OSError:
        return "", 0
    try:
        return sha256, num_records(shard)
    except RuntimeError:
        return sha256, -1


def check_span(span: Span, num_labels: int, canvas: tuple[int, int]) -> Checked:
    """Decodes and checks every record of a span; `canvas` is the manifest's height and width."""
    count = span.stop - span.start
    columns = columns_of.empty(count, num_labels)
    image, patient = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    faults = []
    for row in range(count):
        try:
            payload = read_payload(span.shard, span.start + row)
            record = parse(payload, num_labels)
            check_record(record, canvas)
            columns_of.put(columns, row, record, payload)
        except DataError as error:
            faults.append((span.start + row, str(error)))
            continue
        image[row], patient[row] = stable_hash(record.image_id, 0), stable_hash(record.patient_id, 0)
    return Checked(span, tuple(faults), columns, image, patient)


def read_payload(shard: Path, row: int) -> bytes:
    """The bytes of one record of a shard; raises DataError if they cannot be read."""
    try:
        return bytes(_open(shard).read([row])[0])
    except (RuntimeError, IndexError, ValueError, OSError) as error:
        raise DataError(f"cannot be read ({(str(error).strip() or 'damaged').splitlines()[0]})") from None


def parse(payload: bytes, num_labels: int) -> Record:
    """A record from its bytes; raises DataError if they are no record of the contract's features."""
    try:
        kinds = features(num_labels)
        return record_of(kinds.deserialize_example_np(payload, decoders={"image": tfds.decode.SkipDecoding()}))
    # Protobuf, the parser and numpy raise many types on bytes that are no such record.
    except Exception as error:
        raise DataError(f"is no record of this dataset's features ({type(error).__name__})") from None


def check_record(record: Record, canvas: tuple[int, int]) -> None:
    """Raises DataError, naming the record, for values, sizes, masks or boxes outside the contract."""
    encode_record(record)
    name = record.image_id
    if not name or not record.patient_id:
        raise DataError(f"{name!r}: image_id and patient_id must not be empty")
    if record.height > canvas[0] or record.width > canvas[1]:
        raise DataError(f"{name}: is {record.width}x{record.height} pixels, the canvas {canvas[1]}x{canvas[0]}")
    if record.mask:
        _check_mask(record)
    for box in record.boxes:
        numbers = (box.x, box.y, box.w, box.h)
        inside = (
            min(box.x, box.y) >= -BOX_SLACK_PX
            and box.x + box.w <= record.width + BOX_SLACK_PX
            and box.y + box.h <= record.height + BOX_SLACK_PX
        )
        if not all(map(math.isfinite, numbers)) or min(box.w, box.h) <= 0 or not inside:
            raise DataError(f"{name}: the box {box.label} {numbers} is not inside the image")


def _check_mask(record: Record) -> None:
    try:
        with Image.open(io.BytesIO(record.mask), formats=("PNG",)) as picture:
            size, mask = picture.size, np.asarray(picture)
    except Exception as error:
        raise DataError(f"{record.image_id}: its mask is no PNG ({type(error).__name__})") from None
    if size != (record.width, record.height) or not np.isin(mask, (0, 255)).all():
        raise DataError(f"{record.image_id}: its mask is {size[0]}x{size[1]} or not of 0 and 255 only")


def thumb_of(shard: Path, row: int, num_labels: int) -> np.ndarray:
    """The thumbnail of one record."""
    record = parse(read_payload(shard, row), num_labels)
    return sign(decode_grey(record.image, record.image_id)).thumb


_readers: dict[Path, array_record_module.ArrayRecordReader] = {}


def _open(shard: Path) -> array_record_module.ArrayRecordReader:
    """The reader of a shard; the last one opened stays open."""
    if shard not in _readers:
        for reader in _readers.values():
            reader.close()
        _readers.clear()
        _readers[shard] = array_record_module.ArrayRecordReader(str(shard))
    return _readers[shard]
