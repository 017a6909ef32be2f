"""The record contract: what `data_prep` writes and `cxr_jax.data` reads.

In: one image with what is known about it (`Record`). Out: the bytes of one ArrayRecord entry
(`encode_record`), the TFDS features that describe them (`features`), and the manifest of a dataset folder
(`Manifest`, `read_manifest`). A dataset folder is readable by plain
`tfds.builder_from_directory(folder).as_data_source(split)` without TensorFlow. `manifest.json` is written last,
so a folder without one is not a dataset. This module imports nothing of ours.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

VIEWS = ("AP", "PA", "LATERAL", "UNKNOWN")
SEXES = ("M", "F", "UNKNOWN")
SPLITS = ("train", "val", "test")
POSITIVE, NEGATIVE, UNKNOWN_LABEL = 1, 0, -1
UNKNOWN_AGE = -1.0
MANIFEST_NAME = "manifest.json"


class DataError(Exception):
    """Data that cannot be used. The message is one line naming the file; entry points exit with 3."""


class WorkerError(Exception):
    """A data worker process ended on its own. The message is one line; entry points exit with 1."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A finding's box in pixels of the stored image: left `x`, top `y`, width `w`, height `h`."""

    label: str
    x: float
    y: float
    w: float
    h: float


@dataclasses.dataclass(frozen=True)
class Record:
    """One image. `image` is an 8-bit grey JPEG, `mask` a PNG of 0 and 255, b"" where absent.

    `labels` holds one of 1 (positive), 0 (negative), -1 (unknown) for each class of the dataset's vocabulary;
    `age_years` is -1 where unknown.
    """

    image: bytes
    height: int
    width: int
    image_id: str
    patient_id: str
    study_id: str = ""
    source: str = ""
    view: str = "UNKNOWN"
    sex: str = "UNKNOWN"
    age_years: float = UNKNOWN_AGE
    labels: tuple[int, ...] = ()
    mask: bytes = b""
    boxes: tuple[Box, ...] = ()


@functools.cache
def features(num_classes: int) -> tfds.features.FeaturesDict:
    """The TFDS features of a dataset with `num_classes` classes (0 for an unlabelled dataset)."""
    f = tfds.features
    box = {"label": f.Text(), "x": np.float32, "y": np.float32, "w": np.float32, "h": np.float32}
    return f.FeaturesDict(
        {
            "image": f.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="jpeg"),
            "height": np.int32,
            "width": np.int32,
            "image_id": f.Text(),
            "patient_id": f.Text(),
            "study_id": f.Text(),
            "source": f.Text(),
            "view": f.Text(),
            "sex": f.Text(),
            "age_years": np.float32,
            "labels": f.Tensor(shape=(num_classes,), dtype=np.int8),
            "mask": f.Tensor(shape=(), dtype=np.object_),
            "boxes": f.Sequence(box),
        }
    )


@functools.cache
def _serializer(num_classes: int) -> example_serializer.ExampleSerializer:
    return example_serializer.ExampleSerializer(features(num_classes).get_serialized_info())


def encode_record(record: Record) -> bytes:
    """The bytes of one ArrayRecord entry; the same record always gives the same bytes.

    Raises DataError for a value outside the contract (view, sex, label, size, age).
    """
    _check_record(record)
    example = dataclasses.asdict(record)
    example["labels"] = np.asarray(record.labels, np.int8)
    example["boxes"] = [dataclasses.asdict(box) for box in record.boxes]
    num_classes = len(record.labels)
    encoded = features(num_classes).encode_example(example)
    # A protobuf map has no fixed order unless asked for, and two builds must give the same bytes.
    return _serializer(num_classes).get_tf_example(encoded).SerializeToString(deterministic=True)


def _check_record(record: Record) -> None:
    legal: dict[str, Sequence[Any]] = {"view": VIEWS, "sex": SEXES}
    for name, values in legal.items():
        found = getattr(record, name)
        if found not in values:
            raise DataError(f"{record.image_id}: {name} is {found!r}; legal: {', '.join(values)}")
    if any(label not in (POSITIVE, NEGATIVE, UNKNOWN_LABEL) for label in record.labels):
        raise DataError(f"{record.image_id}: labels are {record.labels}; each must be 1, 0 or -1 (unknown)")
    if record.height < 1 or record.width < 1:
        raise DataError(f"{record.image_id}: size is {record.height}x{record.width}; both must be at least 1")
    if not math.isfinite(record.age_years):
        raise DataError(f"{record.image_id}: age_years is {record.age_years}; unknown is {UNKNOWN_AGE:g}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a dataset folder says of itself.

    Attributes:
      name: the dataset's name.
      tool_version: version of the builder's output; another version may write other bytes for the same input.
      vocabulary: the classes of `labels`, in order.
      canvas: {"height", "width"}: the largest stored height and width, in pixels.
      counts: "images", "patients", and per "source", "split", "view", "sex", "label", ...
      shards: file name -> sha256 of its bytes.
      skipped: [{"file", "reason"}] of images left out because they could not be read.
      settings: the builder's settings that shape the output (reader, canvas, quality, seed, ...).
      fingerprint: sha256 over all of the above; identifies the dataset in run.json and in checkpoints.
    """

    name: str
    tool_version: str
    vocabulary: tuple[str, ...]
    canvas: dict[str, int]
    counts: dict[str, Any]
    shards: dict[str, str]
    skipped: tuple[dict[str, str], ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    def to_json(self) -> str:
        """The text of manifest.json, with the fingerprint filled in."""
        fields = dataclasses.asdict(self) | {"fingerprint": fingerprint(dataclasses.asdict(self))}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def fingerprint(fields: Mapping[str, Any]) -> str:
    """sha256 over the manifest's fields other than `fingerprint`, independent of the order of keys."""
    content = {name: value for name, value in fields.items() if name != "fingerprint"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Reads and checks the manifest of the dataset folder `path`.

    Raises DataError if the folder is missing, if it holds no manifest (the build did not finish), if the
    manifest is not JSON or lacks a field, or if it was changed after the build.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such dataset folder; data_prep.build --output={folder} makes one")
    file = folder / MANIFEST_NAME
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: has no {MANIFEST_NAME}, so it is no dataset or its build did not finish") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: damaged, not JSON ({error}); build the dataset again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    return _manifest_from(fields, file)


def _manifest_from(fields: Any, file: Path) -> Manifest:
    names = [field.name for field in dataclasses.fields(Manifest)]
    if not isinstance(fields, dict):
        raise DataError(f"{file}: holds a {type(fields).__name__}, not a table of {', '.join(names)}; build it again")
    for verb, odd in (("lacks", set(names) - set(fields)), ("has the unknown", set(fields) - set(names))):
        if odd:
            raise DataError(f"{file}: {verb} {', '.join(sorted(odd))}; build it again")
    try:
        true = fingerprint(fields)
    except UnicodeEncodeError:  # half a character, which JSON can write
        true = ""
    if not true or fields["fingerprint"] != true:
        raise DataError(f"{file}: changed after the build (another fingerprint); build it again")
    for name, (legal, what) in _FORMS.items():
        if not legal(fields[name]):
            found = json.dumps(fields[name])
            raise DataError(f"{file}: {name} is {found[:60]}{'...' * (len(found) > 60)}; legal: {what}; build it again")
    for name in ("vocabulary", "skipped"):
        fields[name] = tuple(fields[name])
    return Manifest(**fields)


def _all(values: Any, container: type, kind: type) -> bool:
    """Whether this is a list, or a table, of values of one kind."""
    if not isinstance(values, container):
        return False
    # To Python, True is a number.
    return all(type(value) is kind for value in (values.values() if isinstance(values, dict) else values))


# What the fields of a manifest may be, for one that was written by hand.
_FORMS = {
    "name": (lambda value: isinstance(value, str), "a text"),
    "tool_version": (lambda value: isinstance(value, str), "a text"),
    "vocabulary": (lambda value: _all(value, list, str), "a list of texts"),
    "canvas": (lambda value: _all(value, dict, int), "height and width, whole numbers"),
    "counts": (lambda value: isinstance(value, dict), "a table"),
    "shards": (lambda value: _all(value, dict, str), "a table of names and their sha256"),
    "skipped": (lambda value: _all(value, list, dict) and all(_all(v, dict, str) for v in value), "file and reason"),
    "settings": (lambda value: isinstance(value, dict), "a table"),
}
