"""What is known of many records without their bytes: one array a fact, one row a record.

In: records as they are made or re-opened. Out: `Columns`, which `curate`, `counts` and `validate` work on, and its
file: an NPZ without pickles. A million rows of 14 labels take about 150 MB.
"""

import dataclasses
import io
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64, UInt8, UInt16, UInt64

from cxr_jax.data.records import SEXES, VIEWS, DataError, Record
from data_prep.quality import STATISTICS, measure
from data_prep.signature import HASH_WORDS, decode_grey, sign
from data_prep.storage import Location


@dataclasses.dataclass
class Columns:
    """One row a sample, in order; all but `made` mean nothing where it is False.

    Attributes:
      made: whether the sample became a record.
      payload_bytes: size of the encoded record.
      pixels: the first 16 bytes of the pixels' sha256; equal for equal pictures.
      dhash: difference hash.
      quality: values of `quality.STATISTICS`.
      size: stored height and width, px.
      view, sex: index into VIEWS and SEXES.
      source: index into `sources`.
      annotated: whether there is a mask, and whether there are boxes.
      labels: 1, 0, -1.
      sources: names of sources, in order of first appearance.
      errors: row -> why no record was made.
    """

    made: Bool[np.ndarray, " n"]
    payload_bytes: Int64[np.ndarray, " n"]
    pixels: UInt8[np.ndarray, "n 16"]
    dhash: UInt64[np.ndarray, "n 4"]
    quality: Float32[np.ndarray, "n 6"]
    size: Int32[np.ndarray, "n 2"]
    view: UInt8[np.ndarray, " n"]
    sex: UInt8[np.ndarray, " n"]
    source: UInt16[np.ndarray, " n"]
    annotated: Bool[np.ndarray, "n 2"]
    labels: Int8[np.ndarray, "n c"]
    sources: list[str]
    errors: dict[int, str]

    def __len__(self) -> int:
        return len(self.made)


ARRAYS = tuple(field.name for field in dataclasses.fields(Columns) if field.name not in ("sources", "errors"))


def empty(rows: int, num_labels: int) -> Columns:
    """Columns of `rows` samples of which nothing is made yet."""
    return Columns(
        made=np.zeros(rows, bool),
        payload_bytes=np.zeros(rows, np.int64),
        pixels=np.zeros((rows, 16), np.uint8),
        dhash=np.zeros((rows, HASH_WORDS), np.uint64),
        quality=np.zeros((rows, len(STATISTICS)), np.float32),
        size=np.zeros((rows, 2), np.int32),
        view=np.zeros(rows, np.uint8),
        sex=np.zeros(rows, np.uint8),
        source=np.zeros(rows, np.uint16),
        annotated=np.zeros((rows, 2), bool),
        labels=np.zeros((rows, num_labels), np.int8),
        sources=[],
        errors={},
    )


def put(columns: Columns, row: int, record: Record, payload: bytes) -> UInt8[np.ndarray, "64 64"]:
    """Fills `row` from a record and its bytes; returns the thumbnail. Raises DataError as `check_picture`."""
    pixels = check_picture(record)
    signature = sign(pixels)
    columns.payload_bytes[row] = len(payload)
    columns.pixels[row] = np.frombuffer(signature.pixels_sha256[:16], np.uint8)
    columns.dhash[row] = signature.dhash
    columns.quality[row] = measure(pixels, signature.thumb)
    columns.size[row] = pixels.shape
    columns.view[row] = VIEWS.index(record.view)
    columns.sex[row] = SEXES.index(record.sex)
    if record.source not in columns.sources:
        columns.sources.append(record.source)
    columns.source[row] = columns.sources.index(record.source)
    columns.annotated[row] = bool(record.mask), bool(record.boxes)
    if len(record.labels) != columns.labels.shape[1]:
        raise DataError(f"{record.image_id}: has {len(record.labels)} labels for {columns.labels.shape[1]} classes")
    columns.labels[row] = record.labels
    columns.made[row] = True
    return signature.thumb


def check_picture(record: Record) -> UInt8[np.ndarray, "h w"]:
    """The record's pixels; raises DataError if its JPEG cannot be decoded or has another size than the record says."""
    pixels = decode_grey(record.image, record.image_id)
    if pixels.shape != (record.height, record.width):
        found, said = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{record.width}x{record.height}"
        raise DataError(f"{record.image_id}: its JPEG is {found} pixels, the record says {said}")
    return pixels


def concatenate(parts: Sequence[Columns], num_labels: int) -> Columns:
    """All rows of the parts, one after the other."""
    whole = empty(0, num_labels)
    sources: dict[str, int] = {}
    start = 0
    for part in parts:
        codes = [sources.setdefault(name, len(sources)) for name in part.sources] or [0]
        part.source = np.asarray(codes, np.uint16)[part.source]
        whole.errors.update({start + row: reason for row, reason in part.errors.items()})
        start += len(part)
    for name in ARRAYS if parts else ():
        setattr(whole, name, np.concatenate([getattr(part, name) for part in parts]))
    whole.sources = list(sources)
    return whole


def to_bytes(columns: Columns, **more: np.ndarray) -> bytes:
    """The NPZ file of columns, and of more arrays with it."""
    texts = json.dumps({"sources": columns.sources, "errors": columns.errors}).encode()
    buffer = io.BytesIO()
    arrays = {name: getattr(columns, name) for name in ARRAYS}
    np.savez(buffer, texts=np.frombuffer(texts, np.uint8), **arrays, **more)
    return buffer.getvalue()


def read(file: Location) -> Columns:
    """Reads what `to_bytes` gave; raises DataError, naming the file, if it is damaged."""
    content = io.BytesIO(file.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            errors = {int(row): reason for row, reason in texts["errors"].items()}
            return Columns(**{name: arrays[name] for name in ARRAYS}, sources=texts["sources"], errors=errors)
    # A damaged zip raises many types (BadZipFile, zlib.error, KeyError, ValueError, ...).
    except Exception as error:
        raise DataError(f"{file}: is damaged ({type(error).__name__}); remove it and run again") from None
