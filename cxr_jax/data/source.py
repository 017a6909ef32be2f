"""A dataset's split as an array of records, and step t of training as one element of a source.

In: a dataset folder, a split, a choice of rows and targets. Out: `Split`, and `StepSource`, whose element t is the
decoded local rows of global batch t.

Global batch t is records `order[(t + data_skip) * B + r]` for r = 0..B-1. `order` is a fresh pseudo-random permutation
for every pass over the data, addressed at random: nothing is kept, so nothing has to be saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from cxr_jax.data.decode import decode_to_canvas
from cxr_jax.data.records import SEXES, UNKNOWN_LABEL, VIEWS, DataError, Manifest, read_manifest

# Targets that are not findings: `sex:F` is 1 for F, 0 for every other known sex, unknown where the sex is.
ATTRIBUTES = {"sex": SEXES, "view": VIEWS}


@dataclass(frozen=True)
class Split:
    """Rows of one split: `records[rows[i]]` is its i-th record, images undecoded."""

    records: Any
    rows: Sequence[int] | np.ndarray
    manifest: Manifest
    name: str

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas in px."""
        return self.manifest.canvas["height"], self.manifest.canvas["width"]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        return self.record(int(self.rows[i]))

    def record(self, row: int) -> dict:
        """Record `row` of the split as it was written. Raises DataError when its shard cannot be read."""
        try:
            return self.records[row]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            why = str(error).strip().splitlines()[0]
            raise DataError(
                f"{self.manifest.name}: record {row} of split {self.name!r} cannot be read, its shard is damaged "
                f"({why}); build the dataset again"
            ) from None

    def text(self, i: int, field: str) -> str:
        """A text field of row i, such as `patient_id`."""
        return _text(self[i][field])

    def labels(self, targets: Sequence[str]) -> np.ndarray:
        """`[n, c]` int8 of 1, 0, -1 (unknown) for every row and target; no image is decoded."""
        rows = [target_values(self[i], targets, self.manifest.vocabulary) for i in range(len(self))]
        return np.array(rows, np.int8).reshape(len(self), len(targets))


def check_targets(targets: Sequence[str], vocabulary: Sequence[str]) -> None:
    """Raises DataError for a target that is neither in the vocabulary nor an attribute such as `sex:F`."""
    attributes = [f"{name}:{value}" for name, values in ATTRIBUTES.items() for value in values if value != "UNKNOWN"]
    for target in targets:
        if target not in vocabulary and target not in attributes:
            legal = ", ".join((*vocabulary, *attributes))
            raise DataError(f"target {target!r} is not in the dataset; it has {legal}")


def target_values(record: Mapping, targets: Sequence[str], vocabulary: Sequence[str]) -> list[int]:
    """1, 0 or -1 (unknown) for each target."""
    values = []
    for target in targets:
        if target in vocabulary:
            values.append(int(record["labels"][vocabulary.index(target)]))
            continue
        name, _, wanted = target.partition(":")
        found = _text(record[name])
        values.append(UNKNOWN_LABEL if found == "UNKNOWN" else int(found == wanted))
    return values


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def open_split(path: str, split: str, *, where: Mapping[str, str] | None = None, targets: Sequence[str] = ()) -> Split:
    """Open a split; keep records whose fields equal `where` and, with `targets`, that know at least one of them.

    Without `where` and `targets` no record is touched. Raises DataError for a missing or unfinished folder, an unknown
    split, field or target, and when nothing is left.
    """
    manifest = read_manifest(path)
    builder = tfds.builder_from_directory(path)
    if split not in builder.info.splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(builder.info.splits)}")
    absent = [name for name in manifest.shards if not (Path(path) / name).is_file()]
    if absent:
        raise DataError(f"{path}: the shard {absent[0]} is missing; build the dataset again")
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    whole = Split(records, range(len(records)), manifest, split)
    whole.record(0)  # a shard without its end is told here, before anything is made
    rows: Sequence[int] | np.ndarray = whole.rows
    check_targets(targets, manifest.vocabulary)
    for field in where or {}:
        if field not in ("source", "view", "sex"):
            raise DataError(f"data.where has the field {field!r}; legal are source, view, sex")
    if where or targets:

        def wanted(record):
            matches = all(_text(record[field]) == value for field, value in (where or {}).items())
            known = any(v != UNKNOWN_LABEL for v in target_values(record, targets, manifest.vocabulary))
            return matches and (known or not targets)

        rows = np.array([i for i in rows if wanted(whole[i])], int)
    if not len(rows):
        asked = [f"{field}={value}" for field, value in (where or {}).items()]
        asked += [f"a known label of {', '.join(targets)}"] if targets else []
        sources = ", ".join(manifest.counts.get("source", {}))
        raise DataError(f"{path}: no record of split {split!r} has {' and '.join(asked)}; its sources are {sources}")
    return Split(records, rows, manifest, split)


def load_rows(split: Split, rows: Sequence[int], targets: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Decoded rows `{image [n,H,W] uint8, size [n,2] int32, index [n] int64}`, and `labels [n,c] int8` of `targets`."""
    images = np.zeros((len(rows), *split.canvas), np.uint8)
    sizes = np.zeros((len(rows), 2), np.int32)
    labels = np.full((len(rows), len(targets)), UNKNOWN_LABEL, np.int8)
    for i, row in enumerate(rows):
        record = split[row]
        sizes[i] = decode_to_canvas(record["image"], images[i], _text(record["image_id"]))
        labels[i] = target_values(record, targets, split.manifest.vocabulary)
    loaded = {"image": images, "size": sizes, "index": np.asarray(rows, np.int64)}
    return loaded | ({"labels": labels} if targets else {})


class StepSource:
    """Element t: the rows of global batch t that this process holds, decoded."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        local_rows: np.ndarray,
        total_steps: int,
        seed: int,
        data_skip: int = 0,
        targets: Sequence[str] = (),
    ):
        self._split, self._batch_size, self._local_rows = split, batch_size, local_rows
        self._total_steps, self._data_skip, self._targets = total_steps, data_skip, targets
        self._order = grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat(None)

    def __len__(self):
        return self._total_steps

    def positions(self, step: int) -> list[int]:
        """Positions in the split of the local rows of global batch `step`."""
        first = (step + self._data_skip) * self._batch_size
        return [int(self._order[first + int(r)]) for r in self._local_rows]

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return load_rows(self._split, self.positions(step), self._targets)
