"""Reads PadChest: 160,861 rows of 67,000 patients of a Spanish hospital, 16-bit PNGs, 193 labels.

Layout (Bustos et al., arXiv 1901.07441; BIMCV): `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (or .gz), and
the PNGs of the zips 0 to 50 and 54, each in a folder of its number (ImageDir) or all in one. Columns used: ImageID
(file), ImageDir, StudyID, PatientID, StudyDate_DICOM (yyyymmdd) and PatientBirth (a year), PatientSex_DICOM,
Projection (PA, AP, AP_horizontal, L, COSTAL, EXCLUDE), and Labels, a list as `['cardiomegaly', ' pleural effusion']`
with stray spaces. The list is exhaustive: what is not in it is negative. Three of its words are remarks, not findings:
after "exclude", "suboptimal study" and "unchanged" the list is not the whole truth, so that what is not in it is
unknown. About a hundred rows have no labels (all unknown). Some images were MONOCHROME1 in DICOM, which a PNG does not
say; whether the publisher turned them is not documented, so they are kept unless --monochrome1=invert. No splits are
published.
"""

import argparse
import re

from cxr_jax.data.records import NEGATIVE, UNKNOWN_LABEL
from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
REMARKS = {"exclude", "suboptimal study", "unchanged"}
_WORD = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser)
    parser.add_argument(
        "--monochrome1", choices=("keep", "invert"), default="keep", help="what images of MONOCHROME1 headers become"
    )


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "padchest", suffixes=(".png",))
    columns = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Labels")
    unlabelled = negatives = 0
    for row in listing.rows(TABLE, columns=columns):
        words = [(single or double).strip() for single, double in _WORD.findall(row["Labels"])]
        words = [word for word in words if word]
        findings = [word for word in words if word not in REMARKS]
        absent = UNKNOWN_LABEL if len(findings) < len(words) or not words else NEGATIVE
        negative = row.get("PhotometricInterpretation_DICOM") == "MONOCHROME1"
        unlabelled, negatives = unlabelled + (not words), negatives + negative
        born, taken = row.get("PatientBirth", "")[:4], row.get("StudyDate_DICOM", "")[:4]
        listing.add(
            listing.locate(f"{row['ImageDir']}/{row['ImageID']}"),
            patient=row["PatientID"],
            study=row["StudyID"],
            view=row["Projection"],
            sex=row.get("PatientSex_DICOM", ""),
            age=int(taken) - int(born) if born.isdecimal() and taken.isdecimal() else "",
            labels=listing.labels.from_list(findings, absent),
            invert=negative and args.monochrome1 == "invert",
        )
    if unlabelled:
        listing.notes.append(f"{unlabelled} rows have no labels: all unknown")
    if negatives and args.monochrome1 == "keep":
        listing.notes.append(
            f"{negatives} images were MONOCHROME1 in DICOM; look at some: if they are negatives, --monochrome1=invert"
        )
    return listing.finish(images)
