"""Proves a dataset folder: re-opens every shard, decodes every record, and counts everything again.

    python -m data_prep.validate --data=DIR

In: a dataset folder. Out: a table of checks on the screen, and each fault on a line of its own. Nothing that the
manifest says is believed: hashes, counts, schema, splits, duplicates across splits and fingerprint are computed from
the files. Exit codes: 0 sound, 2 bad flags, 3 faults.
"""

import dataclasses
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cxr_jax.data.records import SPLITS, DataError, Manifest, features, read_manifest
from cxr_jax.data.remote import SHARD_NAME
from data_prep import columns as columns_of
from data_prep import counts as counts_of
from data_prep.build_flags import Parser, at_least, correlation, distance, num_cores
from data_prep.columns import Columns
from data_prep.dedup import near_pairs
from data_prep.manifest_checks import dropped_faults, form_faults, kept_all_the_same, strays
from data_prep.parallel import quiet_libraries, run_ordered
from data_prep.progress import progress
from data_prep.record_checks import Checked, Span, check_span, parse, read_payload, shard_facts, thumb_of
from data_prep.scratch import local_folder_copy
from data_prep.storage import location

RECORDS_PER_SPAN = 256
REPEATS = 3  # so many faults of a kind are told, the others counted
# Checks that find one kind of fault, and checks whose faults all differ.
_ONE_KIND = ("image ids", "splits", "left out", "exact duplicates", "near duplicates")
_ALL_DIFFER = ("manifest", "counts")


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table: what was proved, on how much, and the faults found."""

    name: str
    looked_at: str
    faults: list[str]

    def told(self) -> Iterator[str]:
        """The faults, of each kind the first few and the number of the others."""
        kinds = [self._kind(fault) for fault in self.faults]
        seen: Counter[str] = Counter()
        for fault, kind in zip(self.faults, kinds, strict=True):
            seen[kind] += 1
            if seen[kind] <= REPEATS:
                yield fault
            if seen[kind] == kinds.count(kind) > REPEATS:
                yield f"and {seen[kind] - REPEATS} more of {self.name} like this"

    def _kind(self, fault: str) -> str:
        """What faults of different records or files have in common."""
        if self.name in _ONE_KIND:
            return self.name
        return fault if self.name in _ALL_DIFFER else re.sub(r"\w*\d\w*|'[^']*'", "#", fault.rpartition(": ")[2])


@dataclasses.dataclass(frozen=True)
class Found:
    """All records that were read: columns, split, hashes of ids, and where each is."""

    columns: Columns
    split: np.ndarray
    image: np.ndarray
    patient: np.ndarray
    span: np.ndarray
    row: np.ndarray
    spans: Sequence[Span]

    def record(self, place: int):
        """The record at a place, read again."""
        span = self.spans[self.span[place]]
        return parse(read_payload(span.shard, int(self.row[place])), self.columns.labels.shape[1])

    def name(self, place: int) -> str:
        """Image id and split of the record at a place."""
        return f"{self.record(place).image_id} ({SPLITS[self.split[place]]})"

    def thumbs(self, places: np.ndarray) -> np.ndarray:
        """Thumbnails of the records at these places."""
        where = [(self.spans[self.span[place]].shard, int(self.row[place])) for place in places]
        return np.stack([thumb_of(shard, row, self.columns.labels.shape[1]) for shard, row in where])


def validate(folder: Path, workers: int, dedup: str, bits: int, least_correlation: float) -> Iterator[Check]:
    """Yields the checks of a dataset folder as they are done; raises DataError if its manifest is no good."""
    manifest = read_manifest(folder)
    what = f"fingerprint {manifest.fingerprint[:16]}"
    malformed = form_faults(manifest)
    if malformed:
        # Nothing that it names is opened.
        yield Check("manifest", what, malformed)
        return
    faults, left_out = dropped_faults(folder, manifest)
    yield Check("manifest", what, faults)
    for name in strays(folder, manifest):
        print(f"warning: {name!a}: is no part of the dataset", file=sys.stderr)
    files = [folder / name for name in manifest.shards]
    facts = dict(zip(manifest.shards, run_ordered(shard_facts, files, workers), strict=True))
    size = sum(file.stat().st_size for file in files if file.is_file())
    yield Check("shards", f"{len(facts)} files, {size / 2**20:.0f} MiB", _shard_faults(folder, manifest, facts))
    lengths = {name: max(length, 0) for name, (_, length) in facts.items()}
    yield Check("metadata", "what TFDS opens", _metadata_faults(folder, manifest, lengths))
    spans = _spans(folder, lengths)
    total = sum(lengths.values())
    function = functools.partial(
        check_span, num_labels=len(manifest.vocabulary), canvas=(manifest.canvas["height"], manifest.canvas["width"])
    )
    done = run_ordered(function, spans, workers)
    checked = list(progress(done, "record", 0, total, lambda one: one.span.stop - one.span.start))
    faults = [f"{one.span.shard.name}: record {row}: {what}" for one in checked for row, what in one.faults]
    yield Check("records", f"{total} decoded", faults)
    found = _gather(checked, len(manifest.vocabulary))
    yield Check("image ids", f"{len(found.image)} unique", _repeated_ids(found))
    yield Check("left out", f"{len(left_out)} files, none a record", kept_all_the_same(left_out, found.image))
    yield Check("splits", f"{len(np.unique(found.patient))} patients", _crossing_patients(found))
    if len(found.image) == total == sum(manifest.counts["split"].values()):
        yield Check("counts", f"{len(found.image)} records against the manifest", _count_faults(manifest, found))
    else:
        said = sum(manifest.counts["split"].values())
        yield Check("counts", "number of records only", [f"{len(found.image)} good records, the manifest says {said}"])
    if dedup != "none":
        yield Check("exact duplicates", "across splits, by pixels", _exact_duplicates(found))
    if dedup == "near":
        what = f"across splits, {bits} bits, correlation {least_correlation:g}"
        yield Check("near duplicates", what, _near_duplicates(found, bits, least_correlation))


def _shard_faults(folder: Path, manifest: Manifest, facts: dict[str, tuple[str, int]]) -> list[str]:
    faults = []
    for name, (sha256, length) in facts.items():
        if not sha256:
            faults.append(f"{name}: is missing")
        elif sha256 != manifest.shards[name]:
            faults.append(f"{name}: its sha256 is {sha256[:16]}..., the manifest says {manifest.shards[name][:16]}...")
        if sha256 and length < 0:
            faults.append(f"{name}: is damaged, it cannot be opened")
    strangers = sorted(file.name for file in folder.glob("*.array_record*") if file.name not in manifest.shards)
    return faults + [f"{name}: is not in the manifest" for name in strangers]


def _metadata_faults(folder: Path, manifest: Manifest, lengths: dict[str, int]) -> list[str]:
    absent = [name for name in ("dataset_info.json", "features.json") if not (folder / name).is_file()]
    if absent:
        return [f"{name}: is missing" for name in absent]
    try:
        builder = tfds.builder_from_directory(str(folder))
        shards = {
            name: ([Path(file).name for file in split.filenames], list(split.shard_lengths))
            for name, split in builder.info.splits.items()
        }
    except Exception as error:  # tfds and its parsers raise many types
        return [f"TFDS cannot open the folder ({type(error).__name__}: {str(error).splitlines()[0]})"]
    faults = []
    if builder.info.features.to_json() != features(len(manifest.vocabulary)).to_json():
        faults.append("features.json: is not the contract's")
    for name, (files, told) in shards.items():
        found = [lengths.get(file) for file in files]
        if found != told:
            faults.append(f"dataset_info.json: {name} has {told} records by shard, found {found}")
    unnamed = set(lengths) - {file for files, _ in shards.values() for file in files}
    return faults + [f"dataset_info.json: does not name {name}" for name in sorted(unnamed)]


def _spans(folder: Path, lengths: dict[str, int]) -> list[Span]:
    spans = []
    for name, length in lengths.items():
        split = SPLITS.index(SHARD_NAME.fullmatch(name)["split"])
        for start in range(0, length, RECORDS_PER_SPAN):
            spans.append(Span(folder / name, split, start, min(start + RECORDS_PER_SPAN, length)))
    return spans


def _gather(checked: Sequence[Checked], num_labels: int) -> Found:
    """The good records of all spans."""
    sizes = [len(one.columns) for one in checked]
    whole = columns_of.concatenate([one.columns for one in checked], num_labels)
    good = whole.made
    whole = dataclasses.replace(whole, **{name: getattr(whole, name)[good] for name in columns_of.ARRAYS})

    def joined(values) -> np.ndarray:
        values = list(values)
        return np.concatenate(values)[good] if values else np.empty(0, np.int64)

    return Found(
        columns=whole,
        split=joined(np.full(size, one.span.split, np.uint8) for one, size in zip(checked, sizes, strict=True)),
        image=joined(one.image for one in checked),
        patient=joined(one.patient for one in checked),
        span=joined(np.full(size, number) for number, size in enumerate(sizes)),
        row=joined(np.arange(one.span.start, one.span.stop) for one in checked),
        spans=[one.span for one in checked],
    )


def _repeated_ids(found: Found) -> list[str]:
    _, first, group = np.unique(found.image, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[group] != np.arange(len(group)))
    return [
        f"{found.name(int(place))}: its image_id occurs before, in {found.name(first[group[place]])}" for place in again
    ]


def _crossing_patients(found: Found) -> list[str]:
    return [
        f"patient {found.record(one).patient_id} is in two splits: {found.name(one)} and {found.name(two)}"
        for one, two in _across_splits(found, found.patient)
    ]


def _exact_duplicates(found: Found) -> list[str]:
    digests = np.ascontiguousarray(found.columns.pixels).view("V16").ravel()
    return [f"{found.name(one)} and {found.name(two)} have equal pixels" for one, two in _across_splits(found, digests)]


def _across_splits(found: Found, values: np.ndarray) -> Iterator[tuple[int, int]]:
    """For every value that is in two splits, the first record of it in each of them, two by two."""
    _, group = np.unique(values, return_inverse=True)
    _, first = np.unique(group.ravel() * len(SPLITS) + found.split, return_index=True)
    groups = group.ravel()[first]
    for place in np.flatnonzero(groups[1:] == groups[:-1]):
        yield int(first[place]), int(first[place + 1])


def _near_duplicates(found: Found, bits: int, least_correlation: float) -> list[str]:
    """Pairs of two splits; of equal hashes in one split the first stands for all."""
    hashes = found.columns.dhash
    whole = np.concatenate([hashes, found.split[:, None].astype(np.uint64)], axis=1)
    _, first = np.unique(np.ascontiguousarray(whole).view("V40").ravel(), return_index=True)
    one, two = near_pairs(np.sort(first), hashes, found.thumbs, bits, least_correlation, found.split)
    distances = np.bitwise_count(hashes[one] ^ hashes[two]).sum(1)
    digests = found.columns.pixels
    return [
        f"{found.name(a)} and {found.name(b)} are near duplicates ({d} of 256 bits apart)"
        for a, b, d in zip(one.tolist(), two.tolist(), distances.tolist(), strict=True)
        if not (digests[a] == digests[b]).all()
    ]


def _count_faults(manifest: Manifest, found: Found) -> list[str]:
    if not len(found.image):
        return ["no record can be read"]
    rows = np.arange(len(found.image))
    counts = counts_of.count(found.columns, rows, found.split, found.patient, manifest.vocabulary)
    said = {name: value for name, value in manifest.counts.items() if name != "curation"}
    faults = [
        f"counts.{name}: the manifest says {json.dumps(said.get(name))}, found {json.dumps(value)}"
        for name, value in counts.items()
        if said.get(name) != value
    ]
    canvas = counts_of.canvas(found.columns, rows)
    if canvas != manifest.canvas:
        faults.append(f"canvas: the manifest says {manifest.canvas}, found {canvas}")
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Parser(prog="python -m data_prep.validate", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=location, required=True, help="dataset folder, on disk or in a bucket")
    parser.add_argument("--workers", type=at_least(0), default=num_cores(), help="processes (0 or 1: in this one)")
    parser.add_argument("--dedup", choices=("none", "exact", "near"), default="near", help="duplicates looked for")
    parser.add_argument("--dedup_distance", type=distance, default=14, help="bits of 256 in which hashes may differ")
    parser.add_argument("--dedup_correlation", type=correlation, default=0.98, help="least correlation of thumbnails")
    args = parser.parse_args(argv)
    quiet_libraries()
    told: list[str] = []
    number = 0
    try:
        with local_folder_copy(args.data) as folder:
            try:
                for check in validate(folder, args.workers, args.dedup, args.dedup_distance, args.dedup_correlation):
                    result = f"{len(check.faults)} faults" if check.faults else "ok"
                    print(f"{check.name:<17} {check.looked_at:<44} {result}", flush=True)
                    told += check.told()
                    number += len(check.faults)
            except DataError as error:
                told.append(str(error).replace(str(folder), str(args.data)))
                number += 1
    except BrokenProcessPool:
        print("error: a worker process died, perhaps for want of memory; try fewer --workers", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.data}: {error.strerror or error}", file=sys.stderr)
        return 1
    for fault in told:
        print(f"fault: {fault}", file=sys.stderr)
    if told:
        print(f"{args.data}: {number} {'fault' if number == 1 else 'faults'}; build the dataset again", file=sys.stderr)
        return 3
    print(f"{args.data}: sound")
    return 0


if __name__ == "__main__":
    sys.exit(main())
