"""Reads the RSNA Pneumonia Detection Challenge, stage 2: 26,684 labelled radiographs of NIH ChestX-ray14, with boxes.

Layout (Shih et al., Radiology: AI 2019; the Kaggle download): `stage_2_train_images/<patientId>.dcm`,
`stage_2_test_images/`, `stage_2_train_labels.csv` (patientId, x, y, width, height, Target; a row a box, empty boxes
where Target is 0), `stage_2_detailed_class_info.csv` (patientId, class, repeated as often). Images may be PNG or JPEG
copies of the same names in folders of the same names; boxes are in pixels of the original 1024 x 1024.

`Target` is Pneumonia. The class "Lung Opacity" is the opacity that speaks for it, "Normal" is No Finding without
opacity, and of "No Lung Opacity / Not Normal" the opacities are unknown (other opacities occur there). View, sex and
age stand in the DICOM headers. What the challenge calls patientId is an image.
`pneumonia-challenge-dataset-mappings_2018.json` of the RSNA (subset_img_id, img_id = NIH file name) gives the
patients, the NIH's, so that merging with `nih_chestxray14` keeps a patient in one split; without it each image counts
as a patient. The test images have no published labels.
"""

import argparse
import json
from collections import defaultdict

from cxr_jax.data.records import NEGATIVE, POSITIVE, Box, DataError
from data_prep.images import SUFFIXES, ImageSettings
from data_prep.readers import Source
from data_prep.readers.published_record import DICOM_SUFFIXES
from data_prep.readers.publisher import TRAIN_OR_VAL, Listing
from data_prep.readers.publisher import add_flags as add_published_flags

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
SIDE_PX = 1024
OTHER = "No Lung Opacity / Not Normal"
CLASSES = {  # class -> what it says beside Target
    "Normal": {"No Finding": POSITIVE, "Lung Opacity": NEGATIVE},
    "Lung Opacity": {"No Finding": NEGATIVE, "Lung Opacity": POSITIVE},
    OTHER: {"No Finding": NEGATIVE},
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, splits=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "rsna_pneumonia", suffixes=(*SUFFIXES, *DICOM_SUFFIXES))
    files = {file.rsplit("/", 1)[-1].rsplit(".", 1)[0]: file for file in sorted(listing.images)}
    classes = {
        row["patientId"]: row["class"]
        for row in listing.rows("stage_2_detailed_class_info.csv", columns=("patientId", "class"), optional=True)
    }
    target: dict[str, int] = {}
    boxes: dict[str, list[Box]] = defaultdict(list)
    columns = ("x", "y", "width", "height")
    for row in listing.rows("stage_2_train_labels.csv", columns=("patientId", *columns, "Target")):
        target[row["patientId"]] = listing.labels.value(row["Target"], "Target", row.where)
        if row["x"]:
            boxes[row["patientId"]].append(Box("Lung Opacity", *row.numbers(*columns)))
    patients = _patients(listing)
    unlabelled = [image for image, file in files.items() if image not in target and "test" in file.rsplit("/", 1)[0]]
    for image in (*target, *unlabelled):
        positive = target.get(image)
        said = CLASSES.get(classes.get(image, "Lung Opacity" if positive else ""), {})
        listing.add(
            files.get(image, f"stage_2_train_images/{image}.dcm"),
            patient=patients.get(image, ""),
            patient_source="nih_chestxray14" if image in patients else "",
            split="test" if positive is None else TRAIN_OR_VAL,
            labels=listing.labels.unknown if positive is None else listing.labels.of({"Pneumonia": positive, **said}),
            boxes=boxes.get(image, ()),
            frame=(SIDE_PX, SIDE_PX),
        )
    return listing.finish(images)


def _patients(listing: Listing) -> dict[str, str]:
    """The NIH's patient by the challenge's image."""
    file = listing.find(MAPPING)
    if not file:
        listing.notes.append(f"no {MAPPING}: images of one patient may fall into several splits")
        return {}
    try:
        entries = json.loads(listing.text(file))
        return {entry["subset_img_id"]: str(int(entry["img_id"].split("_")[0])) for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: is no list of subset_img_id and img_id; download it again") from None
