"""Files below a folder, and the labels table that names them: what the readers of plain folders share.

In: `--input=DIR` and the flags of `add_flags`. Out: paths below the folder, `Labels` (the table's rows by file), and
samples with all but their pixels. Nothing outside the input folder is ever opened on the word of a table or of a
symbolic link, unless `--follow_links` allows links to leave it.
"""

import argparse
import dataclasses
import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cxr_jax.data.records import UNKNOWN_AGE, UNKNOWN_LABEL, Box, DataError, Record
from data_prep.images import StoredImage
from data_prep.parallel import at_once
from data_prep.readers import Sample
from data_prep.readers.table import COLUMNS, Row, Table, read_boxes, read_table
from data_prep.splits import parse_split
from data_prep.storage import Location, StoreError, StorePath, location, streams

DEFAULT_LABELS = "labels.csv"
TABLES = (".csv", ".tsv", ".xlsx")


@dataclasses.dataclass(frozen=True)
class ListedSample(Sample):
    """One file: `key` is its path below the folder, with "/". `boxes` are in pixels of the upright file."""

    study_id: str
    source: str
    view: str
    sex: str
    age_years: float
    labels: tuple[int, ...]
    mask: str
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Labels:
    """A labels table matched to the files it names; `path` is None without a table."""

    path: Location | None
    vocabulary: tuple[str, ...]
    rows: Mapping[str, Row]
    boxes: Mapping[str, Sequence[Box]]
    boxes_path: Location | None
    notes: tuple[str, ...]

    @functools.cached_property
    def has_split(self) -> bool:
        """Whether the table says what is in each split."""
        return any(row.split for row in self.rows.values())

    def row(self, file: str) -> Row:
        """The row of a file; where the table has none, one that knows nothing.

        A table with a split column says what is in each split; a file it does not name can only be trained on.
        """
        split = "train" if self.has_split else ""
        unknown = (UNKNOWN_LABEL,) * len(self.vocabulary)
        blank = Row(0, "", "", "", split, "", "UNKNOWN", "UNKNOWN", UNKNOWN_AGE, "", unknown)
        return self.rows.get(file, blank)

    def split(self, row: Row) -> str:
        """The split of a row in the contract's words, "" where the table has none."""
        return parse_split(row.split, f"{self.path} line {row.line}") if self.has_split else ""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of readers of a folder."""
    parser.add_argument("--input", type=location, required=True, help="folder of images, searched recursively")
    parser.add_argument("--labels", help=f"labels table, below --input or a path ('' for none); {DEFAULT_LABELS}")
    for name in COLUMNS:
        parser.add_argument(f"--{name}_column", help=f"its column that holds {name} ('' for none); recognised")
    parser.add_argument("--label_columns", type=names, help="its label columns; the longest run of 0/1 columns")
    parser.add_argument("--exclude_columns", type=names, default=(), help="columns never taken for labels")
    parser.add_argument("--boxes", help="table with the columns file, label (or finding), x, y, w, h in pixels")
    parser.add_argument(
        "--include_unlisted", action="store_true", help="take images the table does not name, as unknown"
    )
    parser.add_argument("--source", help="source of rows without one; the dataset's name")
    parser.add_argument("--view", choices=("AP", "PA", "LATERAL"), help="view of images that do not say theirs")
    parser.add_argument("--follow_links", action="store_true", help="follow symbolic links that leave the input folder")


def dataset_name(root: Location) -> str:
    """A dataset's default name: that of its folder, in lower case letters, digits and _."""
    name = re.sub(r"[^a-z0-9_]+", "_", root.resolve().name.lower()).strip("_")
    return name if name[:1].isalpha() else f"cxr_{name}"


def files_below(root: Location, follow_links: bool, wanted: Callable[[str], bool]) -> list[str]:
    """Paths below `root` of all files whose names are `wanted`, hidden ones apart, in the order of their characters.

    Links to folders are followed, but not round in a circle. Raises DataError for a missing folder, for a link that
    leaves it (unless `follow_links`), and for names that are no printable text.
    """
    if isinstance(root, StorePath):
        below = root.below()
        if not below:
            raise DataError(f"{root}: there is nothing below this address (--input)")
        found = [path for path in below if not re.search(r"(^|/)\.", path) and wanted(path.rsplit("/", 1)[-1])]
    elif not root.is_dir():
        raise DataError(f"{root}: no such folder (--input)")
    else:
        found = _local_files(root, follow_links, wanted)
    for path in found:
        if not path.isprintable():
            raise DataError(f"{root}: {path!a} is no printable UTF-8 name; rename the file")
    return sorted(found)


def _local_files(root: Path, follow_links: bool, wanted: Callable[[str], bool]) -> list[str]:
    found: list[str] = []
    todo = [("", (os.path.realpath(root),))]
    while todo:
        below, above = todo.pop()
        for entry in _entries(root / below):
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and (entry.is_dir() or wanted(entry.name)):
                inside(root, path, follow_links)
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    todo.append((path, (*above, real)))
            elif wanted(entry.name):
                found.append(path)
    return found


def inside(root: Location, path: str, follow_links: bool) -> Location:
    """The file that `path` names below `root`; raises DataError if it names one elsewhere."""
    given = PurePosixPath(path)
    if given.is_absolute() or ".." in given.parts:
        raise DataError(f"{path}: leaves the input folder; paths below {root} are legal")
    full = root / path
    if isinstance(full, StorePath):
        return full
    if not follow_links and not Path(os.path.realpath(full)).is_relative_to(os.path.realpath(root)):
        raise DataError(f"{path}: is a link that leaves the input folder {root}; --follow_links takes such links")
    return full


def read_file(root: Location, path: str) -> bytes:
    """The bytes of a listed file; raises DataError, naming `path`, where they cannot be read.

    A store that cannot be reached raises StoreError: the file may be sound.
    """
    try:
        return (root / path).read_bytes()
    except StoreError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def labels_path(args: argparse.Namespace) -> Location | None:
    """The labels table of the flags, or the folder's own, or None."""
    return _table_path(args, args.labels, DEFAULT_LABELS)


def open_labels(args: argparse.Namespace, files: Sequence[str]) -> Labels:
    """Reads the tables that the flags name and matches them to `files`; raises DataError for what contradicts them."""
    root: Location = args.input
    path = labels_path(args)
    table = Table((), (), ())
    if path is not None:
        columns = {column: getattr(args, f"{column}_column") for column in COLUMNS}
        table = read_table(path, columns, args.label_columns, args.exclude_columns)
    elif args.labels is None:
        unread = sorted(file.name for file in root.iterdir() if file.suffix.lower() in TABLES and file.is_file())
        if unread:
            what = f"not read: {', '.join(unread[:3])} (--labels=FILE names the table)"
            table = Table((), (), (f"no {DEFAULT_LABELS}, so the dataset is unlabelled; {what}",))
    rows = _match(table.rows, files, path)
    masks = sorted({row.mask for row in rows.values() if row.mask})
    there = at_once(lambda mask: inside(root, mask, args.follow_links).is_file(), masks, streams(root))
    missing = [mask for mask, is_there in zip(masks, there, strict=True) if not is_there]
    if missing:
        raise DataError(f"{path}: {len(missing)} masks it names are not there; the first: {missing[0]}")
    boxes_path = _table_path(args, args.boxes, None)
    boxes = read_boxes(boxes_path, files) if boxes_path else {}
    return Labels(path, table.vocabulary, rows, boxes, boxes_path, table.notes)


def choose(args: argparse.Namespace, labels: Labels, files: Sequence[str], notes: list[str]) -> list[str]:
    """The files that become samples: those that the table names, all without a table; says what is left out."""
    masks = {row.mask for row in labels.rows.values() if row.mask}
    unlisted = [file for file in files if file not in labels.rows and file not in masks]
    if labels.path is None or args.include_unlisted:
        return [file for file in files if file not in masks]
    if unlisted:
        notes.append(
            f"{labels.path.name}: does not name {len(unlisted)} images of the folder; they are left out "
            "(--include_unlisted takes them with unknown labels)"
        )
    return [file for file in files if file in labels.rows]


def to_record(sample: ListedSample, image: StoredImage, mask: bytes) -> Record:
    """The record of a sample and its image; boxes are scaled with the image."""
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


def names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated flag."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None


def _match(rows: tuple[Row, ...], files: Sequence[str], labels: Location | None) -> dict[str, Row]:
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


def _table_path(args: argparse.Namespace, given: str | None, default: str | None) -> Location | None:
    """Where a table is; one below the input folder is held to its links like an image."""
    root: Location = args.input
    if given is None:
        return inside(root, default, args.follow_links) if default and (root / default).is_file() else None
    if not given:
        return None
    if "://" not in given:
        if not (root / given).is_file():
            return Path(given)
        # A path that leaves the folder by its own words was meant by who gave the flag.
        leaves = PurePosixPath(given).is_absolute() or ".." in PurePosixPath(given).parts
        return root / given if leaves else inside(root, given, args.follow_links)
    try:
        return location(given)
    except argparse.ArgumentTypeError as error:
        raise DataError(str(error)) from None
