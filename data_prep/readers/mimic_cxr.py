"""Reads MIMIC-CXR-JPG 2.0.0 and 2.1.0: 377,110 JPEGs of 65,379 patients; labels of CheXpert, NegBio or CXR-LT.

Layout (Johnson et al., arXiv 1901.07042; PhysioNet mimic-cxr-jpg): `files/p10/p10000032/s50414267/<dicom_id>.jpg`;
`mimic-cxr-2.0.0-metadata.csv.gz` (dicom_id, subject_id, study_id, ViewPosition, StudyDate, ...), `-split.csv.gz`
(dicom_id, study_id, subject_id, split: train, validate, test), `-chexpert.csv.gz` and `-negbio.csv.gz` (subject_id,
study_id, 14 findings as 1.0, 0.0, -1.0 (uncertain) or empty): labels are by study. CXR-LT (PhysioNet
cxr-lt-iccv-workshop-cvamd 2.0.0) labels images by dicom_id with 0 and 1: `cxr-lt-2024/labels.csv` (45 findings and a
column split), or `train_labeled.csv`, `development_labeled_task1.csv`, `test_labeled_task1.csv` (40), or
`cxr-lt-2023/train.csv`, `development.csv`, `test.csv` (26); its splits go with it, and images it does not list are
left out. Sex and age are not in this release: `patients.csv.gz` of MIMIC-IV has them (subject_id, gender, anchor_age,
anchor_year; ages over 89 are 91 there).
"""

import argparse

from cxr_jax.data.records import DataError
from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.published_table import table_rows
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags
from data_prep.splits import parse_split
from data_prep.storage import Location, location

NAME = "mimic-cxr-2.0.0"
CXR_LT = (  # the first of these sets of files that is there
    {"": "labels.csv"},
    {"train": "train_labeled.csv", "val": "development_labeled_task1.csv", "test": "test_labeled_task1.csv"},
    {"train": "train.csv", "val": "development.csv", "test": "test.csv"},
)
NOT_FINDINGS = (
    "dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "path", "fpath", "split",
)  # fmt: skip
SPLITS = {"validate": "val", "development": "val"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, uncertain=True, splits=True)
    parser.add_argument("--labeller", choices=("chexpert", "negbio"), default="chexpert", help="whose labels of the 14")
    parser.add_argument(
        "--cxr_lt", type=location, help="folder cxr-lt-2024 or cxr-lt-2023: its labels and splits instead"
    )
    parser.add_argument("--patients", type=location, help="patients.csv.gz of MIMIC-IV, for sex and age")


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "mimic_cxr", vocabulary="cxr_lt" if args.cxr_lt else "chexpert", suffixes=(".jpg",))
    by_image = args.cxr_lt is not None
    labels, splits = _cxr_lt(args.cxr_lt, listing) if by_image else _of_studies(args.labeller, listing)
    people = {row["subject_id"]: row for row in _patients(args.patients)}
    unlabelled = 0
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row in listing.rows(f"{NAME}-metadata.csv", columns=columns):
        dicom, subject, study = row["dicom_id"], row["subject_id"], row["study_id"]
        known = labels.get(dicom if by_image else study)
        unlabelled += known is None
        if known is None and by_image:
            continue
        if not by_image and args.splits == "published" and dicom not in splits:
            raise DataError(
                f"{row.where}: {dicom} is not in {NAME}-split.csv; get the whole table of this release, or give "
                "--splits=drawn"
            )
        person, year = people.get(subject, {}), row.get("StudyDate", "")[:4]
        listing.add(
            listing.locate(f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"),
            patient=subject,
            split=splits.get(dicom, ""),
            study=study,
            view=row["ViewPosition"],
            sex=person.get("gender", ""),
            age=int(year) - int(person["anchor_year"]) + int(person["anchor_age"]) if person and year else "",
            labels=known or listing.labels.unknown,
        )
    if unlabelled:
        what = "are not in CXR-LT and left out" if by_image else f"have no study in the {args.labeller} table: unknown"
        listing.notes.append(f"{unlabelled} images {what}")
    return listing.finish(images)


def _of_studies(labeller: str, listing: Listing) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Labels by study_id and splits by dicom_id."""
    labels = {
        row["study_id"]: listing.labels.from_cells(row.without(NOT_FINDINGS), row.where)
        for row in listing.rows(f"{NAME}-{labeller}.csv", columns=("subject_id", "study_id"))
    }
    splits = {
        row["dicom_id"]: parse_split(SPLITS.get(row["split"], row["split"]), row.where)
        for row in listing.rows(f"{NAME}-split.csv", columns=("dicom_id", "split"))
    }
    return labels, splits


def _cxr_lt(folder: Location, listing: Listing) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Labels and splits by dicom_id; the classes are those that the files have columns for."""
    files = next((names for names in CXR_LT if all((folder / name).is_file() for name in names.values())), None)
    if files is None:
        wanted = "; or ".join(", ".join(names.values()) for names in CXR_LT)
        raise DataError(f"{folder}: is no folder of CXR-LT (--cxr_lt); needs {wanted}")
    labels, splits = {}, {}
    for split, name in files.items():
        columns = ("dicom_id",) if split else ("dicom_id", "split")
        for row in table_rows(folder / name, str(folder / name), columns):
            cells = row.without(NOT_FINDINGS)
            if not labels:
                listing.labels.keep(name for column in cells for name in listing.labels.canonical(column))
            labels[row["dicom_id"]] = listing.labels.from_cells(cells, row.where)
            splits[row["dicom_id"]] = split or parse_split(SPLITS.get(row["split"], row["split"]), row.where)
    return labels, splits


def _patients(file: Location | None):
    columns = ("subject_id", "gender", "anchor_age", "anchor_year")
    return table_rows(file, str(file), columns) if file else ()
