"""Final shards from the parts: a plan that the kept rows decide, and one pure function that writes one shard.

In: the kept rows, their splits and sizes. Out: `Plan`, and for each shard an ArrayRecord file with its final name and a
note beside the parts of its records, bytes and sha256. A shard takes records in the order of the listing until it holds
`shard_bytes`; where it begins and ends does not depend on who writes it.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from cxr_jax.data.records import SPLITS, DataError
from data_prep.atomic import appear, write_bytes
from data_prep.chunks import RecordWriter, num_records, read_records
from data_prep.columns import Columns
from data_prep.listing import Listing
from data_prep.storage import Location, StoreError, StorePath


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard: number among all, file name, and `rows` of the listing, in order."""

    number: int
    name: str
    split: str
    rows: Int64[np.ndarray, " n"]
    chunk_size: int

    @property
    def chunks(self) -> list[int]:
        """The chunks its records are in."""
        return np.unique(self.rows // self.chunk_size).tolist()

    @property
    def digest(self) -> str:
        """Tells this shard from one of the same name of another plan."""
        said = f"{self.name}:{self.chunk_size}:".encode()
        return hashlib.sha256(said + self.rows.astype("<i8").tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a shard: its numbers of records and bytes and its sha256, or the damaged chunk and why."""

    number: int
    records: int = 0
    num_bytes: int = 0
    sha256: str = ""
    damaged_chunk: int = -1
    damage: str = ""


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
    """The file name of a shard, as TFDS's metadata say it."""
    return f"{dataset}-{split}.array_record-{index:05d}-of-{count:05d}"


def plan_shards(
    name: str, listing: Listing, columns: Columns, kept: Bool[np.ndarray, " n"], shard_bytes: int
) -> list[Shard]:
    """The shards of all splits, in the order of the listing."""
    shards: list[Shard] = []
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(kept & (listing.split == code))
        ends = _ends(columns.payload_bytes[rows], shard_bytes)
        for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            file = shard_name(name, split, index, len(ends))
            shards.append(Shard(len(shards), file, split, rows[start:end], listing.chunk_size))
    return shards


def _ends(sizes: Int64[np.ndarray, " n"], shard_bytes: int) -> list[int]:
    """Where shards end: each is closed by the record that fills it."""
    ends, filled = [], 0
    for index, size in enumerate(sizes.tolist()):
        filled += size
        if filled >= shard_bytes or index == len(sizes) - 1:
            ends.append(index + 1)
            filled = 0
    return ends


def write_shard(shard: Shard, parts: Location, output: Location) -> Written:
    """Writes one shard and its note; a damaged part is told, not raised, so that it can be made anew."""
    num_bytes = 0
    chunk = -1
    # A note that is there speaks of the shard that is there.
    note_file(parts, shard).unlink(missing_ok=True)
    try:
        with appear(output / shard.name) as unfinished:
            with RecordWriter(unfinished) as writer:
                for chunk in shard.chunks:
                    first = chunk * shard.chunk_size
                    rows = shard.rows[(shard.rows >= first) & (shard.rows < first + shard.chunk_size)]
                    for payload in read_records(parts, chunk, rows - first):
                        writer.write(payload)
                        num_bytes += len(payload)
            written = Written(shard.number, len(shard.rows), num_bytes, sha256_of(unfinished))
    except DataError as error:
        return Written(shard.number, damaged_chunk=chunk, damage=str(error))
    note = dataclasses.asdict(written) | {"digest": shard.digest}
    write_bytes(note_file(parts, shard), json.dumps(note).encode())
    return written


def finished(shard: Shard, parts: Location, output: Location) -> Written | None:
    """What an earlier run wrote of this very shard, if it is there and undamaged.

    In a bucket the note and the object are enough: both appear whole and in this order, and neither can be cut later.
    """
    file = output / shard.name
    try:
        note: dict[str, Any] = json.loads(note_file(parts, shard).read_bytes())
        if note.pop("digest") != shard.digest:
            return None
        written = Written(**note)
        if isinstance(file, StorePath):
            return written if file.is_file() else None
        whole = sha256_of(file) == written.sha256 and num_records(file) == len(shard.rows)
        return written if whole else None
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def note_file(parts: Location, shard: Shard) -> Location:
    """Where a finished shard is noted."""
    return parts / f"{shard.name}.json"


def sha256_of(file: Path) -> str:
    """sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
