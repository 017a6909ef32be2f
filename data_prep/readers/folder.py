"""Reads a folder of image files, with an optional labels.csv and an optional table of boxes.

In: `--input=DIR` and the flags of `add_flags`. Out: a `Source` whose samples are the files, in the order of their
paths. Nothing is decoded here; `make_record` reads one file and returns its record.
"""

import argparse
import functools
import re

from cxr_jax.data.records import DataError, Record
from data_prep.images import SUFFIXES, ImageSettings, store_image, store_mask
from data_prep.readers import Source, listing
from data_prep.readers.listing import Labels, ListedSample
from data_prep.storage import Location


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    listing.add_flags(parser)
    parser.add_argument(
        "--patient_pattern", type=_pattern, help="regular expression on the path, its group the patient"
    )


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the folder; raises DataError for what is missing or contradictory."""
    root: Location = args.input
    files = listing.files_below(root, args.follow_links, lambda name: name.lower().endswith(SUFFIXES))
    labels = listing.open_labels(args, files)
    notes = list(labels.notes)
    chosen = listing.choose(args, labels, files, notes)
    if not chosen:
        raise DataError(f"{root}: holds no images; legal endings: {', '.join(SUFFIXES)}")
    name = listing.dataset_name(root)
    defaults = (args.source or args.name or name, args.view or "UNKNOWN", args.patient_pattern)
    samples = [_sample(file, labels, defaults) for file in chosen]
    if all(sample.patient_id == sample.key for sample in samples):
        notes.append("no patient is named, so each image counts as a patient (--patient_pattern finds them in paths)")
    return Source(
        name=name,
        vocabulary=labels.vocabulary,
        samples=samples,
        make_record=functools.partial(make_record, root=root.absolute(), images=images),
        settings={
            "labels": labels.path.name if labels.path else "",
            "boxes": labels.boxes_path.name if labels.boxes_path else "",
        },
        notes=tuple(notes),
    )


def make_record(sample: ListedSample, root: Location, images: ImageSettings) -> Record:
    """Reads and stores one image, its mask and its boxes; raises DataError naming the file that is at fault."""
    image = store_image(listing.read_file(root, sample.key), sample.key, images)
    mask = store_mask(listing.read_file(root, sample.mask), sample.mask, image) if sample.mask else b""
    return listing.to_record(sample, image, mask)


def _sample(file: str, labels: Labels, defaults: tuple[str, str, re.Pattern[str] | None]) -> ListedSample:
    source, view, pattern = defaults
    row = labels.row(file)
    patient = row.patient_id
    if not patient and pattern is not None:
        match = pattern.search(file)
        if match is None:
            raise DataError(f"{file}: --patient_pattern {pattern.pattern!r} does not match; correct it")
        patient = match[1]
    return ListedSample(
        key=file,
        patient_id=patient or file,
        split=labels.split(row),
        study_id=row.study,
        source=row.source or source,
        view=row.view if row.view != "UNKNOWN" else view,
        sex=row.sex,
        age_years=row.age_years,
        labels=row.labels,
        mask=row.mask,
        boxes=tuple(labels.boxes.get(file, ())),
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise argparse.ArgumentTypeError(f"{text!r} must have one group, as (\\d+)_")
    return pattern
