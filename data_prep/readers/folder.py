"""Reads a folder of image files, with an optional labels.csv and an optional table of boxes.

In: `--input=DIR` and the flags of `add_flags`. Out: a `Source` whose samples are the files, in the order of their
paths. Nothing is decoded here; `make_record` reads one file and returns its record.
"""

import argparse
import dataclasses
import functools
import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from cxr_jax.data.records import UNKNOWN_AGE, UNKNOWN_LABEL, Box, DataError, Record
from data_prep.images import SUFFIXES, ImageSettings, store_image, store_mask
from data_prep.readers import Sample, Source
from data_prep.readers.table import COLUMNS, Row, Table, read_boxes, read_table
from data_prep.splits import check_patients, parse_split

DEFAULT_LABELS = "labels.csv"


@dataclasses.dataclass(frozen=True)
class FolderSample(Sample):
    """One file: `key` is its path below the folder, with "/". `boxes` are in pixels of the upright file."""

    study_id: str
    source: str
    view: str
    sex: str
    age_years: float
    labels: tuple[int, ...]
    mask: str
    boxes: tuple[Box, ...]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    parser.add_argument("--input", type=Path, required=True, help="folder of images, searched recursively")
    parser.add_argument("--labels", help=f"labels table, below --input or a path ('' for none); {DEFAULT_LABELS}")
    for name in COLUMNS:
        parser.add_argument(f"--{name}_column", help=f"its column that holds {name} ('' for none); recognised")
    parser.add_argument("--label_columns", type=_names, help="its label columns; the longest run of 0/1 columns")
    parser.add_argument("--exclude_columns", type=_names, default=(), help="columns never taken for labels")
    parser.add_argument("--boxes", help="table with the columns file, label (or finding), x, y, w, h in pixels")
    parser.add_argument(
        "--include_unlisted", action="store_true", help="take images the table does not name, as unknown"
    )
    parser.add_argument("--source", help="source of rows without one; the dataset's name")
    parser.add_argument("--view", choices=("AP", "PA", "LATERAL"), help="view of rows without one")
    parser.add_argument(
        "--patient_pattern", type=_pattern, help="regular expression on the path, its group the patient"
    )


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the folder; raises DataError for what is missing, contradictory or in two splits."""
    root: Path = args.input
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (--input)")
    name = re.sub(r"[^a-z0-9_]+", "_", root.resolve().name.lower()).strip("_")
    name = name if name[:1].isalpha() else f"cxr_{name}"
    files = _image_files(root)
    labels = _table_path(root, args.labels, DEFAULT_LABELS)
    table = Table((), (), ())
    if labels is not None:
        columns = {column: getattr(args, f"{column}_column") for column in COLUMNS}
        table = read_table(labels, columns, args.label_columns, args.exclude_columns)
    rows = _match(table.rows, files, labels)
    masks = {row.mask for row in rows.values() if row.mask}
    missing = sorted(mask for mask in masks if not (root / mask).is_file())
    if missing:
        raise DataError(f"{labels}: {len(missing)} masks it names are not there; the first: {missing[0]}")
    notes = list(table.notes)
    chosen = [file for file in files if file in rows or (labels is None and file not in masks)]
    unlisted = [file for file in files if file not in rows and file not in masks] if labels is not None else []
    if args.include_unlisted:
        chosen = sorted(chosen + unlisted)
    elif unlisted:
        notes.append(
            f"{labels.name}: does not name {len(unlisted)} images of the folder; they are left out "
            "(--include_unlisted takes them with unknown labels)"
        )
    if not chosen:
        raise DataError(f"{root}: holds no images; legal endings: {', '.join(SUFFIXES)}")
    boxes_file = _table_path(root, args.boxes, None)
    boxes = read_boxes(boxes_file, files) if boxes_file else {}
    # A table with a split column says what is in each split; a file it does not name can only be trained on.
    has_split = any(row.split for row in rows.values())
    blank = Row(0, "", "", "", "train" if has_split else "", "", "UNKNOWN", "UNKNOWN", UNKNOWN_AGE, "", ())
    blank = dataclasses.replace(blank, labels=(UNKNOWN_LABEL,) * len(table.vocabulary))
    defaults = (args.source or args.name or name, args.view or "UNKNOWN", args.patient_pattern)
    samples = [
        _sample(file, rows.get(file, blank), tuple(boxes.get(file, ())), has_split, labels, defaults) for file in chosen
    ]
    if has_split:
        check_patients(((sample.patient_id, sample.split) for sample in samples), str(labels))
    if all(sample.patient_id == sample.key for sample in samples):
        notes.append("no patient is named, so each image counts as a patient (--patient_pattern finds them in paths)")
    return Source(
        name=name,
        vocabulary=table.vocabulary,
        samples=samples,
        make_record=functools.partial(make_record, root=root.absolute(), images=images),
        settings={"labels": labels.name if labels else "", "boxes": boxes_file.name if boxes_file else ""},
        notes=tuple(notes),
    )


def make_record(sample: FolderSample, root: Path, images: ImageSettings) -> Record:
    """Reads and stores one image, its mask and its boxes; raises DataError naming the file that is at fault."""
    image = store_image(_read(root, sample.key), sample.key, images)
    mask = store_mask(_read(root, sample.mask), sample.mask, image) if sample.mask else b""
    scale_x, scale_y = image.width / image.source_width, image.height / image.source_height
    return Record(
        image=image.jpeg,
        height=image.height,
        width=image.width,
        image_id=sample.key,
        patient_id=sample.patient_id,
        study_id=sample.study_id,
        source=sample.source,
        view=sample.view,
        sex=sample.sex,
        age_years=sample.age_years,
        labels=sample.labels,
        mask=mask,
        boxes=tuple(
            Box(box.label, box.x * scale_x, box.y * scale_y, box.w * scale_x, box.h * scale_y) for box in sample.boxes
        ),
    )


def _sample(
    file: str,
    row: Row,
    boxes: tuple[Box, ...],
    has_split: bool,
    labels: Path | None,
    defaults: tuple[str, str, re.Pattern[str] | None],
) -> FolderSample:
    source, view, pattern = defaults
    patient = row.patient_id
    if not patient and pattern is not None:
        match = pattern.search(file)
        if match is None:
            raise DataError(f"{file}: --patient_pattern {pattern.pattern!r} does not match; correct it")
        patient = match[1]
    return FolderSample(
        key=file,
        patient_id=patient or file,
        split=parse_split(row.split, f"{labels} line {row.line}") if has_split else "",
        study_id=row.study,
        source=row.source or source,
        view=row.view if row.view != "UNKNOWN" else view,
        sex=row.sex,
        age_years=row.age_years,
        labels=row.labels,
        mask=row.mask,
        boxes=boxes,
    )


def _image_files(root: Path) -> list[str]:
    """Paths below `root` of all image files, hidden ones apart, in the order of their characters."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        found += [str(below / name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    for file in found:
        if not file.isprintable():
            raise DataError(f"{root}: {file!a} is no printable UTF-8 name; rename the file")
    return sorted(found)


def _match(rows: tuple[Row, ...], files: list[str], labels: Path | None) -> dict[str, Row]:
    """Rows by file; a row may give the path below the folder, or a bare name that occurs once in it."""
    known, by_name = set(files), defaultdict(list)
    for file in files:
        by_name[PurePosixPath(file).name].append(file)
    matched: dict[str, Row] = {}
    missing = []
    for row in rows:
        file = str(PurePosixPath(row.file))
        if file not in known and len(by_name.get(file, ())) == 1:
            file = by_name[file][0]
        if file not in known:
            missing.append(row.file)
        elif file in matched:
            raise DataError(f"{labels} line {row.line}: names {file} again; one row a file is legal")
        else:
            matched[file] = row
    if missing:
        raise DataError(
            f"{labels}: {len(missing)} of the {len(rows)} images it names are not in the folder; "
            f"the first: {missing[0]}; add them or drop their rows"
        )
    return matched


def _table_path(root: Path, given: str | None, default: str | None) -> Path | None:
    if given is None:
        return root / default if default and (root / default).is_file() else None
    if not given:
        return None
    return root / given if (root / given).is_file() else Path(given)


def _read(root: Path, file: str) -> bytes:
    try:
        return (root / file).read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise argparse.ArgumentTypeError(f"{text!r} must have one group, as (\\d+)_")
    return pattern
