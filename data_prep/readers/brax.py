"""Reads BRAX 1.1.0: 40,967 PNGs of 19,351 patients of a Brazilian hospital, with the 14 findings of CheXpert.

Layout (Reis et al., Scientific Data 2022; PhysioNet brax/1.1.0): `master_spreadsheet_update.csv` (in 1.0.0
`master_spreadsheet.csv`) and `images/id_<patient>/Study_<uid>/Series_<uid>/image-<uid>.png`. Columns used: PngPath
(path below the folder), PatientID, PatientSex, PatientAge (five-year groups, "85 or more"), AccessionNumber (the
study), ViewPosition (AP, PA, L, LL, RL, ...), and the findings as 1, 0, -1 (uncertain) or empty (not mentioned). The
release holds the same images in DICOM below `Anonymized_DICOMs/`, which are not read. The publisher fixes no splits.
"""

import argparse

from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags

# Columns that are no findings, as far as releases have them; others that the vocabulary lacks are told to the user.
NOT_FINDINGS = (
    "DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate", "ViewPosition",
    "Rows", "Columns", "Manufacturer",
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, uncertain=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "brax", vocabulary="chexpert", suffixes=(".png",))
    tables = ("master_spreadsheet_update.csv", "master_spreadsheet.csv")
    for row in listing.rows(*tables, columns=("PngPath", "PatientID", "AccessionNumber", "ViewPosition")):
        listing.add(
            listing.locate(row["PngPath"], parts=4),
            patient=row["PatientID"],
            study=row["AccessionNumber"],
            view=row["ViewPosition"],
            sex=row.get("PatientSex", ""),
            age=row.get("PatientAge", ""),
            labels=listing.labels.from_cells(row.without(NOT_FINDINGS), row.where),
        )
    return listing.finish(images)
