"""The records of a split, read from the shards of one dataset or of several end to end.

In: dataset folders and the name of a split. Out: `Records`, addressed by number. Labels come in one vocabulary: the
classes of all datasets by name, in order of first appearance; a class that a record's dataset does not have is unknown.

`records[i]` is everything that was written. `records.brief(i)` is what a batch needs, and costs a tenth; it shows the
image where it lies in the record's bytes, since parsing the whole tf.train.Example copies it twice.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_feature_pb2

from cxr_jax.data.records import UNKNOWN_LABEL, DataError, Manifest, features, fingerprint, read_manifest
from cxr_jax.data.remote import mend

BRIEF_TEXTS = ("image_id", "source", "view", "sex")
IMAGE_KEY = b"\x0a\x05image"  # how the map entry of the image begins: field 1, five bytes


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
            why = str(error).strip().splitlines()[0]
            shard = self.names[bisect.bisect_right(self.ends, row)]
            raise DataError(
                f"{self.folder}: record {row} of split {self.split!r} cannot be read, its shard is damaged "
                f"({why}); {mend(self.folder, shard)}"
            ) from None


def open_shards(folder: Path, split: str) -> Shards:
    """Open one split of a dataset folder, or several joined by `+`, end to end; its first record is read.

    Raises DataError for a missing or unfinished folder, an unknown split, and a shard that is missing or has no end.
    """
    manifest = read_manifest(folder)
    splits = tfds.builder_from_directory(folder).info.splits
    names = split.split("+")
    for name in names:
        if name not in splits:
            raise DataError(f"{folder}: has no split {name!r}; it has {', '.join(splits)}")
    if len(set(names)) < len(names):
        raise DataError(f"{folder}: split {split!r} names one twice")
    files = [file for name in names for file in splits[name].file_instructions]
    shard_names = tuple(Path(file.filename).name for file in files)
    absent = [name for name in shard_names if not (folder / name).is_file()]
    if absent:
        raise DataError(f"{folder}: the shard {absent[0]} is missing; build the dataset again")
    ends = tuple(itertools.accumulate(file.examples_in_shard for file in files))
    shards = Shards(folder, manifest, split, ArrayRecordDataSource(files), shard_names, ends)
    shards.payload(0)
    return shards


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

    def _payload(self, row: int) -> tuple[bytes, int]:
        part = self.part_of(row)
        return self._parts[part].payload(row - self.starts[part]), part

    def _labels(self, labels: Iterable[Any], part: int) -> list[int]:
        own = [int(label) for label in labels]
        return [UNKNOWN_LABEL if at is None else own[at] for at in self._classes[part]]

    def __getitem__(self, row: int) -> dict[str, Any]:
        payload, part = self._payload(row)
        own = features(len(self._parts[part].manifest.vocabulary))
        record = own.deserialize_example_np(payload, decoders={"image": tfds.decode.SkipDecoding()})
        return record | {"labels": self._labels(record["labels"], part)}

    def brief(self, row: int) -> dict[str, Any]:
        """`image` (a view of JPEG bytes), `mask` (PNG bytes, empty where there is none), `labels`, `age_years`, and the
        texts `image_id`, `source`, `view` and `sex` of record `row`."""
        payload, part = self._payload(row)
        image, rest = cut_image(payload)
        fields = tf_feature_pb2.Features.FromString(rest).feature
        record: dict[str, Any] = {name: fields[name].bytes_list.value[0].decode() for name in BRIEF_TEXTS}
        labels = self._labels(fields["labels"].int64_list.value, part)
        (mask,) = fields["mask"].bytes_list.value
        (age,) = fields["age_years"].float_list.value
        return record | {"image": image, "mask": mask, "labels": labels, "age_years": age}


def cut_image(example: bytes) -> tuple[memoryview, bytes]:
    """The image of a serialised tf.train.Example, not copied, and its other features as a serialised `Features`.

    Raises DataError when there is no image.
    """
    _, at = _length(example, 1)
    first = at
    while at < len(example):
        entry = at
        size, at = _length(example, at + 1)
        end = at + size
        if example.startswith(IMAGE_KEY, at):
            at += len(IMAGE_KEY)
            for _ in range(3):  # into the entry's Feature, its bytes_list, the one value of that
                size, at = _length(example, at + 1)
            return memoryview(example)[at : at + size], example[first:entry] + example[end:]
        at = end
    raise DataError("a record has no image; build the dataset again")


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A protocol buffer's length, seven bits a byte, at `at`, and where what it measures begins."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


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
