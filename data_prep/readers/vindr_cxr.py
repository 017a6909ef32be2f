"""Reads VinDr-CXR 1.0.0: 18,000 PA radiographs of two Vietnamese hospitals with 28 labels and boxes by radiologists.

Layout (Nguyen et al., Scientific Data 2022; PhysioNet vindr-cxr/1.0.0): `train/<image_id>.dicom`, `test/`, and
`annotations/image_labels_train.csv` (image_id, rad_id, 28 labels of 0 and 1; three rows an image, one a radiologist),
`image_labels_test.csv` (one row an image, the consensus of five; "Other disease" where train has "Other diseases"),
`annotations_train.csv` and `annotations_test.csv` (image_id, rad_id in train, class_name, x_min, y_min, x_max, y_max
in pixels of the DICOM; rows of "No finding" have empty boxes). Also the form of the VinBigData challenge on Kaggle:
`train.csv` (image_id, class_name, class_id, rad_id, x_min, ...; 14 of the classes), whose test images have no labels.
Images may be PNG or JPEG copies of the same names; if they were resized, `train_meta.csv` (image_id, dim0 = height,
dim1 = width of the original) says what the boxes refer to.

Train labels: positive if two of three radiologists say so, negative if none does; one of three is the uncertain mark
of `--uncertain`. All radiologists' boxes are kept, unmerged. The publisher fixes the test set, and names no patients.
"""

import argparse
from collections import Counter, defaultdict

from cxr_jax.data.records import POSITIVE, Box
from data_prep.images import SUFFIXES, ImageSettings
from data_prep.readers import Source
from data_prep.readers.published_record import DICOM_SUFFIXES
from data_prep.readers.published_table import Row
from data_prep.readers.publisher import TRAIN_OR_VAL, Listing
from data_prep.readers.publisher import add_flags as add_published_flags

CORNERS = ("x_min", "y_min", "x_max", "y_max")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, uncertain=True, splits=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "vindr_cxr", suffixes=(*SUFFIXES, *DICOM_SUFFIXES))
    files = {file.rsplit("/", 1)[-1].rsplit(".", 1)[0]: file for file in sorted(listing.images)}
    frames = {
        row["image_id"]: (int(row["dim1"]), int(row["dim0"]))
        for row in listing.rows("train_meta.csv", columns=("image_id", "dim0", "dim1"), optional=True)
    }
    boxes: dict[str, list[Box]] = defaultdict(list)
    for table in (("annotations_train.csv", "train.csv"), ("annotations_test.csv",)):
        for row in listing.rows(*table, columns=("image_id", "class_name", *CORNERS), optional=True):
            if row["x_min"]:
                left, top, right, bottom = row.numbers(*CORNERS)
                for name in listing.labels.canonical(row["class_name"]):
                    boxes[row["image_id"]].append(Box(name, left, top, right - left, bottom - top))
    for split, labels in ((TRAIN_OR_VAL, _train_labels(listing)), ("test", _test_labels(listing, files))):
        for image, values in labels.items():
            listing.add(
                files.get(image, f"{'test' if split == 'test' else 'train'}/{image}.dicom"),
                patient="",
                split=split,
                view="PA",
                labels=listing.labels.of(values),
                boxes=boxes.get(image, ()),
                frame=frames.get(image),
            )
    return listing.finish(images)


def _train_labels(listing: Listing) -> dict[str, dict[str, int]]:
    """Labels by image from the votes of its radiologists."""
    said: dict[tuple[str, str], set[str]] = defaultdict(set)  # (image, radiologist) -> what is positive
    if listing.find("image_labels_train.csv"):
        for row in listing.rows("image_labels_train.csv", columns=("image_id", "rad_id")):
            values = _values(row, listing)
            said[row["image_id"], row["rad_id"]] = {name for name, value in values.items() if value == POSITIVE}
    else:
        for row in listing.rows("train.csv", columns=("image_id", "class_name", "rad_id")):
            said[row["image_id"], row["rad_id"]] |= set(listing.labels.canonical(row["class_name"]))
        listing.labels.keep(name for names in said.values() for name in names)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for (image, _), names in said.items():
        votes[image].update({"": 1, **dict.fromkeys(names, 1)})  # "" counts the radiologists
    return {
        image: {name: listing.labels.votes(count[name], count[""]) for name in listing.labels.classes}
        for image, count in votes.items()
    }


def _test_labels(listing: Listing, files: dict[str, str]) -> dict[str, dict[str, int]]:
    """Labels by image; of the challenge's test images nothing is known."""
    rows = listing.rows("image_labels_test.csv", columns=("image_id",), optional=True)
    labels = {row["image_id"]: _values(row, listing) for row in rows}
    return labels or {image: {} for image, file in files.items() if "test" in file.split("/")[:-1]}


def _values(row: Row, listing: Listing) -> dict[str, int]:
    """A row's label by canonical name."""
    return {
        name: listing.labels.value(text, column, row.where)
        for column, text in row.without(("image_id", "rad_id")).items()
        for name in listing.labels.canonical(column)
    }
