"""The records of a split, read from the shards of one dataset or of several end to end.

In: dataset folders and the name of a split. Out: `Records`, addressed by number. Labels come in one vocabulary: the
classes of all datasets by name, in order of first appearance; a class that a record's dataset does not have is unknown.

`records[i]` is everything that was written. `records.brief(i)` is what a batch needs, and costs a tenth: it shows the
image where it lies in the record's bytes (`example`), and reads no field that was not asked for.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError

from cxr_jax.data import example
from cxr_jax.data.records import (
    NEGATIVE,
    POSITIVE,
    UNKNOWN_LABEL,
    DataError,
    Manifest,
    features,
    fingerprint,
    read_manifest,
)
from cxr_jax.data.remote import mend

BRIEF = ("image_id", "source", "view", "sex", "mask", "labels", "age_years")
LABELS = (POSITIVE, NEGATIVE, UNKNOWN_LABEL)


@dataclass(frozen=True)
class Shards:
    """One split of one dataset, as the bytes that were written; `names` of its shards, `ends` of their rows."""

    folder: Path
    manifest: Manifest
    split: str
    payloads: ArrayRecordDataSource
    names: tuple[str, ...]
    ends: tuple[int, ...]

    def __len__(self):
        return len(self.payloads)

    def payload(self, row: int) -> bytes:
        """The bytes of record `row`. Raises DataError when its shard cannot be read."""
        try:
            return self.payloads[row]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise self.fault(row, error) from None

    def fault(self, row: int, error: Exception) -> DataError:
        """What to say of record `row`, which cannot be read or parsed."""
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        shard = self.names[bisect.bisect_right(self.ends, row)]
        return DataError(
            f"{self.folder}: record {row} of split {self.split!r} cannot be read, its shard is damaged "
            f"({why}); {mend(self.folder, shard)}"
        )


def open_shards(folder: Path, split: str) -> Shards:
    """Open one split of a dataset folder, or several joined by `+`, end to end; its first record is read.

    Raises DataError for a missing or unfinished folder, metadata that TFDS cannot read or that name another number of
    records than was built, an unknown split, and a shard that is missing or has no end.
    """
    manifest = read_manifest(folder)
    files_of = _files_by_split(folder)
    names = split.split("+")
    for name in names:
        if name not in files_of:
            raise DataError(f"{folder}: has no split {name!r}; it has {', '.join(files_of)}")
        told = sum(file.examples_in_shard for file in files_of[name])
        built = manifest.counts.get("split", {}).get(name, 0)
        if told != built:
            raise DataError(
                f"{folder}/dataset_info.json: says that split {name!r} has {told} records, {built} were built; "
                f"{mend(folder, 'dataset_info.json')}"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{folder}: split {split!r} names one twice")
    files = [file for name in names for file in files_of[name]]
    shard_names = tuple(Path(file.filename).name for file in files)
    absent = [name for name in shard_names if not (folder / name).is_file()]
    if absent:
        raise DataError(f"{folder}: the shard {absent[0]} is missing; build the dataset again")
    ends = tuple(itertools.accumulate(file.examples_in_shard for file in files))
    shards = Shards(folder, manifest, split, ArrayRecordDataSource(files), shard_names, ends)
    shards.payload(0)
    return shards


def _files_by_split(folder: Path) -> dict[str, Sequence[Any]]:
    """Shards and their rows as TFDS knows them. Raises DataError when it cannot open the folder."""
    try:
        splits = tfds.builder_from_directory(folder).info.splits
        return {name: split.file_instructions for name, split in splits.items()}
    except Exception as error:  # TFDS and its parsers raise many types
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{folder}: its dataset_info.json or features.json is missing or damaged ({why}); build the dataset again"
        ) from None


class Records:
    """The records of `parts` end to end, their labels in `vocabulary`."""

    def __init__(self, parts: Sequence[Shards], vocabulary: Sequence[str]):
        self._parts = tuple(parts)
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]
        self._classes = []
        for part in parts:
            own = {name: i for i, name in enumerate(part.manifest.vocabulary)}
            self._classes.append(tuple(own.get(name) for name in vocabulary))

    def __len__(self):
        return self.starts[-1]

    def part_of(self, row: int) -> int:
        """Which of the datasets, in the order of their paths, record `row` belongs to."""
        if not 0 <= row < len(self):
            raise IndexError(f"record {row} of {len(self)}")
        return bisect.bisect_right(self.starts, row) - 1

    def _read(self, row: int, parse: Callable[[bytes, int], dict[str, Any]]) -> dict[str, Any]:
        """Record `row` by `parse(payload, part)`."""
        at = self.part_of(row)
        part, own_row = self._parts[at], row - self.starts[at]
        payload = part.payload(own_row)
        try:
            return parse(payload, at)
        except (ValueError, KeyError, TypeError, IndexError, DecodeError) as error:
            raise part.fault(own_row, error) from None

    def _labels(self, labels: Iterable[Any], part: int) -> list[int]:
        own = [int(label) for label in labels]
        classes = len(self._parts[part].manifest.vocabulary)
        if len(own) != classes:
            raise ValueError(f"it has {len(own)} labels, the dataset {classes} classes")
        if strange := [label for label in own if label not in LABELS]:
            raise ValueError(f"a label is {strange[0]}; legal are 1, 0 and -1 (unknown)")
        return [UNKNOWN_LABEL if at is None else own[at] for at in self._classes[part]]

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._read(row, self._whole)

    def brief(self, row: int, names: Sequence[str] = BRIEF) -> dict[str, Any]:
        """`image` (a view of JPEG bytes) of record `row` and its fields `names`: texts, `labels`, `age_years`, `mask`
        (PNG bytes, empty where there is none)."""
        return self._read(row, lambda payload, part: self._brief(payload, part, names))

    def _whole(self, payload: bytes, part: int) -> dict[str, Any]:
        own = features(len(self._parts[part].manifest.vocabulary))
        record = own.deserialize_example_np(payload, decoders={"image": tfds.decode.SkipDecoding()})
        if absent := [name for name, value in record.items() if value is None]:
            raise ValueError(f"it has no {absent[0]}")
        return record | {"labels": self._labels(record["labels"], part)}

    def _brief(self, payload: bytes, part: int, names: Sequence[str]) -> dict[str, Any]:
        image, fields = example.parse(payload)
        record: dict[str, Any] = {"image": image}
        for name in names:
            if name == "labels":
                record[name] = self._labels(fields[name].int64_list.value, part)
            elif name == "age_years":
                record[name] = example.single(fields, name, "float_list")
            else:
                value = example.single(fields, name, "bytes_list")
                record[name] = value if name == "mask" else value.decode()
        return record


def union_manifest(manifests: Sequence[Manifest], weights: Sequence[int | float]) -> Manifest:
    """What several datasets, read as one, say of themselves: all classes, the larger canvas, the sum of all counts.

    The fingerprint covers every dataset, their order, and the weights. One dataset's manifest is itself.
    """
    if len(manifests) == 1:
        return manifests[0]
    whole = Manifest(
        name="+".join(manifest.name for manifest in manifests),
        tool_version=manifests[0].tool_version,
        vocabulary=tuple(dict.fromkeys(name for manifest in manifests for name in manifest.vocabulary)),
        canvas={side: max(manifest.canvas[side] for manifest in manifests) for side in ("height", "width")},
        counts=_sum_counts([manifest.counts for manifest in manifests]),
        shards={f"{i}/{name}": sha for i, m in enumerate(manifests) for name, sha in m.shards.items()},
        settings={"datasets": [manifest.fingerprint for manifest in manifests], "weights": list(weights)},
    )
    return replace(whole, fingerprint=fingerprint(vars(whole)))


def _sum_counts(counts: Sequence[Any]) -> Any:
    """Numbers added, tables joined key by key; anything else is the first one's."""
    if isinstance(counts[0], dict):
        keys = dict.fromkeys(key for table in counts for key in table)
        return {key: _sum_counts([table[key] for table in counts if key in table]) for key in keys}
    return sum(counts) if isinstance(counts[0], int | float) else counts[0]
