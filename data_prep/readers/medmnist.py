"""Reads a two-dimensional MedMNIST file: small grey images with labels in one npz.

In: `--input=FILE.npz` with `train_images` uint8 [n, h, w] and `train_labels` [n, c] integers, and the same for `val`
and `test`. Out: a `Source` whose samples are the images of the published splits in the file's order.

Labels come in two forms. One column holds the number of the row's class; several columns hold 0 or 1 each
(ChestMNIST). A single name stands for class 1 of a 0/1 column, several names for the classes or columns in order.
The publisher gives no patient ids, so each image is its own patient. The arrays are held in memory once, and workers
are sent single images. Images are stored at quality 100 unless `--quality` says otherwise: at 28 px a compression
artefact is as large as a finding.
"""

import argparse
import dataclasses
import functools
import io
import re
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from cxr_jax.data.records import NEGATIVE, POSITIVE, SPLITS, DataError, Record
from data_prep.images import ImageSettings, store_image
from data_prep.readers import FlagError, Sample, Source
from data_prep.scratch import local_copy
from data_prep.storage import Location, location

QUALITY = 100
# By file stem without the size (pneumoniamnist_224 is pneumoniamnist). ChestMNIST is made of NIH ChestX-ray14; its
# columns have the canonical names of data_prep/vocabulary.py.
CLASS_NAMES = {
    "pneumoniamnist": ("Pneumonia",),
    "chestmnist": (
        "Atelectasis", "Cardiomegaly", "Pleural Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
        "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural Thickening", "Hernia",
    ),
}  # fmt: skip
MAX_CLASSES = 1000  # a column with more values than this holds no classes
ONE_PATIENT_AN_IMAGE = (
    "the publisher gives no patient ids, so each image counts as a patient: splits and intervals are by image"
)


@dataclasses.dataclass(frozen=True)
class MedmnistSample(Sample):
    """One image: `pixels` uint8 [h, w] and `labels` of 1 and 0 by class."""

    pixels: np.ndarray
    labels: tuple[int, ...]


class MedmnistSamples:
    """The images of all splits, one after the other; a sample is made on access."""

    def __init__(self, stem: str, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]):
        self._stem, self._images, self._labels = stem, images, labels
        self._ends = np.cumsum([len(images[split]) for split in SPLITS])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> MedmnistSample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._ends, index, side="right"))
        split = SPLITS[place]
        row = index - (int(self._ends[place - 1]) if place else 0)
        key = f"{self._stem}/{split}/{row:06d}"
        labels = tuple(POSITIVE if value else NEGATIVE for value in self._labels[split][row])
        return MedmnistSample(key, key, split, self._images[split][row], labels)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    parser.add_argument("--input", type=location, required=True, help="npz file of MedMNIST, grey and two-dimensional")
    parser.add_argument("--class_names", type=_names, help="names of the classes, as A,B (default: by the file's name)")
    parser.set_defaults(quality=QUALITY)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Reads the file; raises DataError for a file, an array or labels that are not of this form."""
    stem = args.input.stem
    pixels, raw = _read(args.input)
    given = args.class_names or CLASS_NAMES.get(re.sub(r"_\d+$", "", stem.lower()), ())
    vocabulary, labels = _by_class(raw, given, f"{args.input}", bool(args.class_names))
    name = re.sub(r"[^a-z0-9_]+", "_", stem.lower()).strip("_")
    return Source(
        name=name if name[:1].isalpha() else f"medmnist_{name}",
        vocabulary=vocabulary,
        samples=MedmnistSamples(stem, pixels, labels),
        make_record=functools.partial(make_record, source=stem, images=images),
        settings={"file": args.input.name},
        notes=(ONE_PATIENT_AN_IMAGE,),
    )


def make_record(sample: MedmnistSample, source: str, images: ImageSettings) -> Record:
    """Stores one image by the policies for files (`store_image`); raises DataError for one that shows nothing."""
    buffer = io.BytesIO()
    Image.fromarray(sample.pixels).save(buffer, "PNG")
    image = store_image(buffer.getvalue(), sample.key, images)
    return Record(
        image=image.jpeg,
        height=image.height,
        width=image.width,
        image_id=sample.key,
        patient_id=sample.patient_id,
        source=source,
        labels=sample.labels,
    )


def _read(file: Location) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images and labels by split, of checked types and shapes."""
    needed = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with local_copy(file) as local:
            arrays = np.load(local, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{file}: holds a single array; expected an npz with {', '.join(needed)}")
            with arrays:
                missing = [key for key in needed if key not in arrays]
                if missing:
                    found = ", ".join(arrays.files) or "nothing"
                    what = f"lacks {', '.join(missing)}; it holds {found}; legal are MedMNIST's npz files"
                    raise DataError(f"{file}: {what}")
                read = {key: np.asarray(arrays[key]) for key in needed}
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); --input names an npz file") from None
    # What NumPy says of such a file is advice to allow pickles.
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{file}: is no npz file of plain arrays, or is damaged; download it again") from None
    for split in SPLITS:
        _check(file, split, read[f"{split}_images"], read[f"{split}_labels"])
    images, labels = ({split: read[f"{split}_{kind}"] for split in SPLITS} for kind in ("images", "labels"))
    columns = {split: labels[split].shape[1] for split in SPLITS}
    if len(set(columns.values())) > 1:
        raise DataError(f"{file}: the splits' labels have {columns} columns; they must have as many each")
    return images, labels


def _check(file: Location, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    where = f"{file}: {split}_images"
    if images.ndim == 4 and images.shape[-1] == 3:
        raise DataError(f"{where} are in colour {images.shape}; grey images [n, h, w] are legal")
    if images.ndim != 3:
        raise DataError(f"{where} have the shape {images.shape}; grey images [n, h, w] are legal")
    if images.dtype != np.uint8:
        raise DataError(f"{where} are {images.dtype}; uint8 is legal")
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or not labels.shape[1]:
        raise DataError(f"{file}: {split}_labels are {labels.dtype} {labels.shape}; integers [n, c] are legal")
    if len(images) != len(labels):
        raise DataError(f"{where} are {len(images)}, their labels {len(labels)}; the numbers must be equal")


def _by_class(
    raw: Mapping[str, np.ndarray], names: tuple[str, ...], file: str, by_flag: bool
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The vocabulary, and for every split bool [n, classes]."""
    values = np.concatenate([raw[split] for split in SPLITS])
    if not values.size:
        raise DataError(f"{file}: holds no images")
    low, high, columns = int(values.min()), int(values.max()), values.shape[1]
    if low < 0 or high >= MAX_CLASSES or (columns > 1 and high > 1):
        legal = "0 and 1" if columns > 1 else f"0 to {MAX_CLASSES - 1}"
        raise DataError(f"{file}: labels run from {low} to {high}; legal in {columns} column(s) are {legal}")
    if columns > 1:
        classes, labels = columns, {split: raw[split] > 0 for split in SPLITS}
    elif len(names) == 1 and high <= 1:
        classes, labels = 1, {split: raw[split] == 1 for split in SPLITS}
    else:
        classes = max(high + 1, len(names))
        labels = {split: raw[split] == np.arange(classes) for split in SPLITS}
    if names and len(names) != classes:
        if by_flag:
            raise FlagError(f"--class_names={','.join(names)}: {len(names)} names, but {file} has {classes} classes")
        raise DataError(f"{file}: has {classes} classes, the file of that name {len(names)}; give --class_names")
    return names or tuple(f"class_{index}" for index in range(classes)), labels


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} must be different names, as Normal,Pneumonia")
    return names
