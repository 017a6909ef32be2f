"""A split of one dataset, or of several as one, as an array of records with a choice of rows and targets.

In: dataset folders (several separated by commas, each local or remote), a split, a choice of rows and targets, weights.
Out: `Split`. `steps` cuts global batches from it.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8

from cxr_jax.data.order import PermutedOrder, WeightedOrder, whole_weights
from cxr_jax.data.records import SEXES, UNKNOWN_LABEL, VIEWS, DataError, Manifest
from cxr_jax.data.remote import local_folder
from cxr_jax.data.shards import BRIEF, Records, Shards, open_shards, union_manifest

# Targets that are not findings: `sex:F` is 1 for F, 0 for every other known sex, unknown where the sex is.
ATTRIBUTES = {"sex": SEXES, "view": VIEWS}
# `age>=60` is 1 from that age in years on; several of them, rising, are a scale.
AGE = re.compile(r"age>=(\d+(?:\.\d+)?)")
FIELDS = ("source", "view", "sex")


@dataclass(frozen=True)
class Split:
    """Rows of one split: `records[rows[i]]` is its i-th record, images undecoded.

    With `weights`, one for each dataset, batches draw from the datasets in these proportions; without, every record
    comes once an epoch.
    """

    records: Any
    rows: Sequence[int] | np.ndarray
    manifest: Manifest
    name: str
    weights: tuple[float, ...] = ()

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
        return self.records[row]

    def brief(self, i: int, names: Sequence[str] = BRIEF) -> dict:
        """What a batch needs of row i: its image and its fields `names`, image and mask undecoded."""
        return self.records.brief(int(self.rows[i]), names)

    @property
    def datasets(self) -> int:
        """Of how many datasets it is made."""
        return len(self.records.starts) - 1

    def dataset(self, i: int) -> int:
        """Which of the datasets, in the order of their paths, row i is from."""
        return self.records.part_of(int(self.rows[i]))

    def text(self, i: int, field: str) -> str:
        """A text field of row i, such as `patient_id`."""
        return _text(self[i][field])

    def labels(self, targets: Sequence[str]) -> Int8[np.ndarray, "n c"]:
        """1, 0, -1 (unknown) for every row and target; no image is decoded."""
        vocabulary = self.manifest.vocabulary
        names = fields_of(targets, vocabulary)
        rows = [target_values(self.brief(i, names), targets, vocabulary) for i in range(len(self))]
        return np.array(rows, np.int8).reshape(len(self), len(targets))

    def order(self, seed: int) -> PermutedOrder | WeightedOrder:
        """Which row stands at which position of the endless stream of records."""
        if not self.weights:
            return PermutedOrder(len(self), seed)
        # Rows rise, so those of one dataset lie side by side.
        bounds = np.searchsorted(np.asarray(self.rows), self.records.starts)
        return WeightedOrder(np.diff(bounds).tolist(), self.weights, seed)


def check_targets(targets: Sequence[str], vocabulary: Sequence[str]) -> None:
    """Raises DataError for a target that is neither in the vocabulary nor an attribute such as `sex:F`."""
    attributes = [f"{name}:{value}" for name, values in ATTRIBUTES.items() for value in values if value != "UNKNOWN"]
    for target in targets:
        if target not in vocabulary and target not in attributes and not AGE.fullmatch(target):
            legal = ", ".join((*vocabulary, *attributes, "age>=N (years)"))
            lower = {name.casefold(): name for name in (*vocabulary, *attributes)}
            near = difflib.get_close_matches(str(target).casefold(), lower, n=1)
            hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
            raise DataError(f"target {target!r} is not in the dataset; it has {legal}{hint}")


def fields_of(targets: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The fields of a record that `target_values` looks at."""

    def field(target: str) -> str:
        return "labels" if target in vocabulary else "age_years" if AGE.fullmatch(target) else target.partition(":")[0]

    return tuple(dict.fromkeys(map(field, targets)))


def target_values(record: Mapping, targets: Sequence[str], vocabulary: Sequence[str]) -> list[int]:
    """1, 0 or -1 (unknown) for each target."""
    values = []
    for target in targets:
        if target in vocabulary:
            values.append(int(record["labels"][vocabulary.index(target)]))
            continue
        if limit := AGE.fullmatch(target):
            age = float(record["age_years"])
            values.append(UNKNOWN_LABEL if age < 0 else int(age >= float(limit[1])))
            continue
        name, _, wanted = target.partition(":")
        found = _text(record[name])
        values.append(UNKNOWN_LABEL if found == "UNKNOWN" else int(found == wanted))
    return values


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def open_split(
    path: str,
    split: str,
    *,
    where: Mapping[str, str] | None = None,
    targets: Sequence[str] = (),
    weights: Sequence[int | float] = (),
    cache_dir: str = "",
    masks: bool = False,
) -> Split:
    """Open a split; keep records whose fields equal `where` and, with `targets`, that know at least one of them, and
    with `masks`, that have a mask.

    `path` names one dataset folder, or several separated by commas; one on gs:// or s3:// is brought to `cache_dir`
    first. Without `where`, `targets` and `masks` no record but the first of each dataset is touched.

    Raises DataError for a missing or unfinished folder, an unknown split, field or target, and when nothing is left of
    a dataset; ValueError for `weights` that do not fit the folders and for a remote folder without `cache_dir`.
    """
    folders = [name.strip() for name in path.split(",") if name.strip()]
    if weights and len(weights) != len(folders):
        raise ValueError(
            f"data.weights={tuple(weights)}: data.path names {len(folders)} datasets; give as many, or none"
        )
    if weights:
        whole_weights(weights)
    parts = [open_shards(local_folder(folder, split, cache_dir), split) for folder in folders]
    if not parts:
        raise DataError(f"{path!r} names no dataset folder")
    _check_different(folders, parts)
    # A single dataset is all there is, whatever its weight.
    weights = tuple(map(float, weights)) if len(parts) > 1 else ()
    manifest = union_manifest([part.manifest for part in parts], weights)
    records = Records(parts, manifest.vocabulary)
    check_targets(targets, manifest.vocabulary)
    rows = _choose(records, where or {}, targets, manifest.vocabulary, masks)
    kept = np.diff(np.searchsorted(np.asarray(rows), records.starts))
    for folder, part, left in zip(folders, parts, kept, strict=True):
        if not left:
            raise DataError(f"{folder}: {_nothing_left(part.manifest, split, where or {}, targets, masks)}")
    return Split(records, rows, manifest, split, weights)


def _nothing_left(manifest: Manifest, split: str, where: Mapping[str, str], targets: Sequence[str], masks: bool) -> str:
    """What was asked for in vain, and what could be: values of the fields in `where`, else classes with labels."""
    asked = [f"{field}={value}" for field, value in where.items()]
    asked += [f"a known label of {', '.join(targets)}"] if targets else []
    asked += ["a mask"] if masks else []
    counts = manifest.counts
    there = {
        f"the dataset has {field}": [value for value, images in counts.get(field, {}).items() if images]
        for field in where
    }
    if targets and not where:
        labels = counts.get("label_per_split", {}).get(split, {})
        known = [name for name, of in labels.items() if of["positive"] + of["negative"]]
        there = {"the split has labels of": known or ["nothing"]}
    held = [f"; {what} {', '.join(values)}" for what, values in there.items()]
    return f"no record of split {split!r} has {' and '.join(asked)}{''.join(held)}"


def _check_different(folders: Sequence[str], parts: Sequence[Shards]) -> None:
    """Raise DataError for a dataset that is named twice."""
    seen: dict[str, str] = {}
    for folder, part in zip(folders, parts, strict=True):
        before = seen.setdefault(part.manifest.fingerprint, folder)
        if before != folder or folders.count(folder) > 1:
            raise DataError(
                f"{folder} is the same dataset as {before}; name it once and give it weight in data.weights"
            )


def _choose(
    records: Records, where: Mapping[str, str], targets: Sequence[str], vocabulary: Sequence[str], masks: bool
) -> Sequence[int] | np.ndarray:
    """Numbers of the records that fit, rising."""
    for field in where:
        if field not in FIELDS:
            raise DataError(f"data.where has the field {field!r}; legal are {', '.join(FIELDS)}")
    if not where and not targets and not masks:
        return range(len(records))

    def wanted(record):
        matches = all(record[field] == value for field, value in where.items()) and (not masks or record["mask"])
        return matches and (not targets or any(v != UNKNOWN_LABEL for v in target_values(record, targets, vocabulary)))

    names = {*where, *fields_of(targets, vocabulary), *(("mask",) if masks else ())}
    return np.array([i for i in range(len(records)) if wanted(records.brief(i, tuple(names)))], int)
