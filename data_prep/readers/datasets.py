"""Merges datasets of this tool into one: `--inputs=A,B,...`; images, masks and boxes pass undecoded.

In: dataset folders; what lies in a bucket is brought to `--cache_dir` first, on every machine that makes records, since
records are read from all over it. Out: a `Source` of all their records. The vocabulary is the union of theirs by name,
in order of appearance; a class that a record's dataset lacks is unknown (-1). Splits are those of the inputs. Ids that
occur in two inputs get the input's name in front: image ids always, patient ids unless `--patient_scope=global` says
that equal ids mean the same person.
"""

import argparse
import dataclasses
import functools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cxr_jax.data.records import SPLITS, UNKNOWN_LABEL, Box, DataError, Manifest, Record, read_manifest
from cxr_jax.data.remote import local_folder
from data_prep.images import ImageSettings
from data_prep.readers import FlagError, Sample, Source
from data_prep.storage import Location, in_store, location

_TEXTS = ("image_id", "patient_id", "study_id", "source", "view", "sex")


@dataclasses.dataclass(frozen=True)
class DatasetsSample(Sample):
    """Record `row` of a split of input number `dataset`, whose id there is `image_id`."""

    dataset: int
    row: int
    image_id: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    parser.add_argument("--inputs", type=_folders, required=True, help="dataset folders, as A,B,C")
    cache = Path(tempfile.gettempdir()) / f"data_prep_datasets_{os.getuid()}"
    parser.add_argument("--cache_dir", default=str(cache), help="local folder for inputs that lie in a bucket")
    parser.add_argument(
        "--patient_scope",
        choices=("source", "global"),
        default="source",
        help="whether equal patient ids of two inputs are two persons (source) or one (global)",
    )


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists all records of the inputs; raises DataError for an input that is no whole dataset."""
    manifests = [read_manifest(_local(folder, "", args.cache_dir)) for folder in args.inputs]
    vocabulary = tuple(dict.fromkeys(name for manifest in manifests for name in manifest.vocabulary))
    found = [
        _ids(folder, manifest, number, args.cache_dir)
        for number, (folder, manifest) in enumerate(zip(args.inputs, manifests, strict=True))
    ]
    keys = Counter(sample.key for samples in found for sample in samples)
    patients = Counter(patient for samples in found for patient in {sample.patient_id for sample in samples})
    names = _distinct([manifest.name for manifest in manifests])
    notes, samples = [], []
    for name, manifest, listed in zip(names, manifests, found, strict=True):
        notes.append(f"{name}: {len(listed)} records, {len(manifest.vocabulary)} classes")
        for sample in listed:
            key = f"{name}/{sample.key}" if keys[sample.key] > 1 else sample.key
            patient = sample.patient_id
            if args.patient_scope == "source" and patients[patient] > 1:
                patient = f"{name}/{patient}"
            samples.append(dataclasses.replace(sample, key=key, patient_id=patient))
    shared = sum(number > 1 for number in patients.values())
    if shared:
        taken = "one person each" if args.patient_scope == "global" else "different persons"
        notes.append(f"{shared} patient ids occur in more than one input and are taken for {taken} (--patient_scope)")
    return Source(
        name="merged",
        vocabulary=vocabulary,
        samples=samples,
        make_record=functools.partial(
            make_record,
            folders=tuple(folder.absolute() for folder in args.inputs),
            vocabularies=tuple(manifest.vocabulary for manifest in manifests),
            vocabulary=vocabulary,
            cache_dir=args.cache_dir,
        ),
        settings={
            "canvas": None,
            "quality": None,
            "min_side": None,
            "inputs": {name: manifest.fingerprint for name, manifest in zip(names, manifests, strict=True)},
            "patient_scope": args.patient_scope,
        },
        notes=tuple(notes),
    )


def make_record(
    sample: DatasetsSample,
    folders: tuple[Location, ...],
    vocabularies: tuple[tuple[str, ...], ...],
    vocabulary: tuple[str, ...],
    cache_dir: str,
) -> Record:
    """Reads one record of an input; raises DataError if its shard is damaged."""
    folder = folders[sample.dataset]
    try:
        stored = _records(folder, sample.split, cache_dir)[sample.row]
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise DataError(f"{folder}: {sample.image_id} cannot be read, its shard is damaged ({why})") from None
    record = record_of(stored)
    if record.image_id != sample.image_id:
        raise DataError(f"{folder}: {sample.image_id} is not where it was listed; the dataset was changed meanwhile")
    known = dict(zip(vocabularies[sample.dataset], record.labels, strict=True))
    labels = tuple(known.get(name, UNKNOWN_LABEL) for name in vocabulary)
    return dataclasses.replace(record, image_id=sample.key, patient_id=sample.patient_id, labels=labels)


def record_of(stored: Mapping[str, Any]) -> Record:
    """The contract's record of what TFDS reads, its image undecoded."""
    boxes = stored["boxes"]
    columns = (boxes["label"], boxes["x"], boxes["y"], boxes["w"], boxes["h"])
    return Record(
        image=bytes(stored["image"]),
        height=int(stored["height"]),
        width=int(stored["width"]),
        age_years=float(stored["age_years"]),
        labels=tuple(np.asarray(stored["labels"]).tolist()),
        mask=bytes(stored["mask"]),
        boxes=tuple(Box(_text(label), *map(float, numbers)) for label, *numbers in zip(*columns, strict=True)),
        **{name: _text(stored[name]) for name in _TEXTS},
    )


@functools.lru_cache(maxsize=64)
def _local(folder: Location, split: str, cache_dir: str) -> Path:
    """A local folder with the metadata and that split ("": none) of an input."""
    try:
        return local_folder(str(folder), split, cache_dir)
    except ValueError as error:
        raise FlagError(str(error).replace("data.cache_dir", "--cache_dir", 1)) from None


@functools.lru_cache(maxsize=64)
def _records(folder: Location, split: str, cache_dir: str) -> Any:
    """A split of an input, opened once a process."""
    builder = tfds.builder_from_directory(str(_local(folder, split, cache_dir)))
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _ids(folder: Location, manifest: Manifest, number: int, cache_dir: str) -> list[DatasetsSample]:
    """A sample of each record of one input, with the ids it has there."""
    here = [] if in_store(folder) else manifest.shards  # bringing them here finds what is missing there
    absent = [name for name in here if not (folder / name).is_file()]
    if absent:
        raise DataError(f"{folder}: the shard {absent[0]} is missing; build the dataset again")
    return list(_listed(folder, manifest, number, cache_dir))


def _listed(folder: Location, manifest: Manifest, number: int, cache_dir: str) -> Iterator[DatasetsSample]:
    for split in SPLITS:
        if split not in manifest.counts["split"]:
            continue
        records = _records(folder, split, cache_dir)
        for row in range(len(records)):
            try:
                stored = records[row]
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                why = str(error).strip().splitlines()[0]
                what = f"{folder}: record {row} of {split} cannot be read ({why})"
                raise DataError(f"{what}; data_prep.validate says what else is damaged") from None
            image_id = _text(stored["image_id"])
            yield DatasetsSample(image_id, _text(stored["patient_id"]), split, number, row, image_id)


def _distinct(names: list[str]) -> list[str]:
    """The names, a number behind those that occur again."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _folders(text: str) -> tuple[Location, ...]:
    folders = tuple(location(part) for part in text.split(",") if part)
    if not folders or len(set(folders)) < len(folders):
        raise argparse.ArgumentTypeError(f"{text!r} must be different folders, as A,B,C")
    return folders
