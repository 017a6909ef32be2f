"""Reads CheXpert v1.0: 224,316 JPEGs of 65,240 patients, with 14 findings mined from the reports.

Layout (Irvin et al., arXiv 1901.07031; both downloads of Stanford AIMI): `train.csv` and `valid.csv` beside `train/`
and `valid/`, for CheXpert-v1.0 and CheXpert-v1.0-small, or in the folders of the four archives, `CheXpert-v1.0 batch 2
(train 1)/patient00001/...`. Images are `patient00001/study1/view1_frontal.jpg`; the tables' paths begin with the
release's name, so only their last three parts are matched. Columns: Path, Sex, Age, Frontal/Lateral, AP/PA, then the
findings as 1.0, 0.0, -1.0 (uncertain) or empty (not mentioned, so unknown). The radiologists' test labels came later
(`test_labels.csv` of CheXlocalize, `groundtruth.csv` of the test-set repository) and have Path and findings only;
there the view is in the file's name. Splits are the publisher's. Age 0 stands on a few rows of adults and counts as
unknown.
"""

import argparse

from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags

TABLES = {
    "train": ("train.csv",),
    "val": ("valid.csv", "val_labels.csv"),
    "test": ("test_labels.csv", "groundtruth.csv", "test.csv"),
}
NOT_FINDINGS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, uncertain=True, splits=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "chexpert", suffixes=(".jpg",))
    for split, names in TABLES.items():
        for row in listing.rows(*names, columns=("Path",), optional=split != "train"):
            file = listing.locate(row["Path"], parts=3)
            patient, study, name = file.split("/")[-3:] if file.count("/") >= 2 else ("", "", file)
            lateral = row.get("Frontal/Lateral", name).lower().find("lateral") >= 0
            listing.add(
                file,
                patient=patient,
                split=split,
                study=f"{patient}/{study}",
                view="LATERAL" if lateral else row.get("AP/PA", ""),
                sex=row.get("Sex", ""),
                age="" if row.get("Age") in ("0", "0.0") else row.get("Age", ""),
                labels=listing.labels.from_cells(row.without(NOT_FINDINGS), row.where),
            )
    return listing.finish(images)
