"""The base of the readers of published collections: tables and files of a folder to samples and records.

In: `--input=DIR`, the collection as its publisher ships it, unpacked. Out: a `Source`. A reader makes one `Listing`,
reads the publisher's tables with `Listing.rows`, calls `Listing.add` once an image, and returns `Listing.finish()`.
The listing knows every file below the folder before it reads a row, so a row can name no file outside it; it tells
the user what did not fit: rows without files, files without rows, repeated rows, unmapped words, unreadable ages.
"""

import argparse
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator

from cxr_jax.data.records import UNKNOWN_AGE, Box, DataError
from data_prep.dicom_file import pydicom
from data_prep.images import SUFFIXES, ImageSettings
from data_prep.readers import Sample, Source, listing
from data_prep.readers.labels import UNCERTAIN, Labels
from data_prep.readers.published_record import DICOM_SUFFIXES, make_record, store_file
from data_prep.readers.published_table import Row, parse_years, relative, table_rows
from data_prep.readers.table import parse_sex, parse_view
from data_prep.splits import draw_split
from data_prep.storage import Location, location

TRAIN_OR_VAL = "train or val"  # the publisher fixes the test set only
NAMED_IN_NOTES = 12  # so many unmapped words are named on the screen; the manifest has all


@dataclasses.dataclass(frozen=True)
class PublishedSample(Sample):
    """One image: `file` is its path below the folder. `masks` are united; `boxes` are in pixels of `frame`.

    `frame` is the (width, height) that the publisher's boxes refer to; None means the upright image file's own.
    `invert` asks for the negative. Texts that the tables lack are "" or UNKNOWN; of a DICOM file the header tells.
    """

    file: str
    study_id: str
    view: str
    sex: str
    age_years: float
    labels: tuple[int, ...]
    masks: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    frame: tuple[int, int] | None = None
    invert: bool = False


def add_flags(parser: argparse.ArgumentParser, *, uncertain: bool = False, splits: bool = False) -> None:
    """The flags of every published collection, with those for uncertain marks and published splits where it has any."""
    parser.add_argument("--input", type=location, required=True, help="folder of the collection, unpacked")
    parser.add_argument(
        "--on_missing", choices=("stop", "skip"), default="stop", help="what rows without an image file do"
    )
    parser.add_argument("--follow_links", action="store_true", help="follow symbolic links that leave the input folder")
    if uncertain:
        parser.add_argument(
            "--uncertain", choices=tuple(UNCERTAIN), default="unknown", help="what an uncertain mark becomes"
        )
    if splits:
        parser.add_argument(
            "--splits",
            choices=("published", "drawn"),
            default="published",
            help="whose splits: the publisher's or ours",
        )


class Listing:
    """One collection under way from its tables to samples.

    Args:
      args: the parsed flags, of which it takes the ones of `add_flags` and of every build.
      source: the reader's name: `source` of its records, and a prefix of its ids, so that ids of two sources differ.
      vocabulary: the source whose words the tables use, where that is not `source`.
      suffixes: endings of the collection's image files.

    Attributes: `files` all files below the folder, `images` those with such an ending, `labels` the words' labels.
    """

    def __init__(
        self, args: argparse.Namespace, source: str, *, vocabulary: str = "", suffixes: tuple[str, ...] = SUFFIXES
    ):
        self.root: Location = args.input
        self._args, self._source = args, source
        self.files = frozenset(listing.files_below(self.root, args.follow_links, lambda name: True))
        self.images = frozenset(file for file in self.files if file.lower().endswith(suffixes))
        self.uncertain = getattr(args, "uncertain", "unknown")
        self.labels = Labels(vocabulary or source, self.uncertain)
        self.notes: list[str] = []
        self._samples: dict[str, PublishedSample] = {}
        self._patients: dict[str, str] = {}
        self._missing: list[str] = []
        self._repeated = self._bad_ages = 0
        self._tables: list[str] = []
        self._places: dict[int, dict[str, list[str]]] = {}

    def find(self, *names: str) -> str | None:
        """The shallowest file of one of these names (with .gz or without), the first name first; None if none is."""
        for name in names:
            wanted = (name.lower(), f"{name.lower()}.gz")
            found = [file for file in self.files if file.rsplit("/", 1)[-1].lower() in wanted]
            if found:
                chosen = min(found, key=lambda file: (file.count("/"), file))
                if f"{chosen}.gz" in found:
                    raise DataError(f"{self.root}: holds {chosen} and {chosen}.gz; remove the one that is not whole")
                return chosen
        return None

    def rows(self, *names: str, columns: Iterable[str], optional: bool = False) -> Iterator[Row]:
        """The rows of the first of these tables that is there; `columns` must be in it.

        Raises DataError if none is there (unless `optional`: no rows then) or if it is no such table.
        """
        file = self.find(*names)
        if file is None:
            if optional:
                return
            raise DataError(f"{self.root}: holds no {' or '.join(names)}; is this the folder of {self._source}?")
        if file not in self._tables:
            self._tables.append(file)
        row = None
        for row in table_rows(self.root / file, file, tuple(columns)):
            yield row
        if row is None and not optional:
            raise DataError(f"{file}: holds no rows; get the whole table")

    def text(self, file: str) -> str:
        """A small text file below the folder, whatever its encoding; raises DataError if it cannot be read."""
        try:
            return (self.root / file).read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None

    def lines(self, *names: str) -> list[str]:
        """The lines of the first of these lists that is there, without spaces around them; none if none is there."""
        file = self.find(*names)
        return [line.strip() for line in self.text(file).splitlines() if line.strip()] if file else []

    def locate(self, path: str, parts: int = 1) -> str:
        """The image whose path ends in the last `parts` parts of `path`; `path` itself if there is none.

        Publishers' tables and folders disagree on the leading folders. Raises DataError if two images end so.
        """
        path = relative(path, self.root)
        if path in self.images:
            return path
        if parts not in self._places:
            places: dict[str, list[str]] = defaultdict(list)
            for file in self.images:
                places["/".join(file.split("/")[-parts:])].append(file)
            self._places[parts] = places
        found = sorted(self._places[parts].get("/".join(path.split("/")[-parts:]), ()))
        if len(found) > 1:
            raise DataError(f"{self.root}: {found[0]} and {found[1]} could both be {path}; remove one")
        return found[0] if found else path

    def add(
        self,
        file: str,
        *,
        patient: str,
        labels: tuple[int, ...],
        split: str = "",
        study: str = "",
        view: str = "",
        sex: str = "",
        age: str | float = "",
        masks: Iterable[str] = (),
        boxes: Iterable[Box] = (),
        frame: tuple[int, int] | None = None,
        invert: bool = False,
        patient_source: str = "",
    ) -> None:
        """Takes one image; texts as the publisher writes them.

        Args:
          file: path below the folder, from the table or from `locate`.
          patient: the publisher's id; an image without one is its own patient ("").
          split: "train", "val", "test", `TRAIN_OR_VAL`, or "" where the publisher fixes none.
          patient_source: the reader whose patients these are, where the collection reuses another's images.
        """
        file = relative(file, self.root)
        if file not in self.images:
            self._missing.append(file)
            return
        years = parse_years(str(age))
        self._bad_ages += years == UNKNOWN_AGE and str(age).strip().lower() not in ("", "-1", "nan")
        patient_id = f"{patient_source or self._source}/{patient or file}"
        sample = PublishedSample(
            key=f"{self._source}/{file}",
            patient_id=patient_id,
            split=self._split(split, patient_id),
            file=file,
            study_id=study,
            view=parse_view(view),
            sex=parse_sex(sex),
            age_years=years,
            labels=labels,
            masks=tuple(masks),
            boxes=tuple(boxes),
            frame=frame,
            invert=invert,
        )
        other = self._samples.setdefault(file, sample)
        if other is not sample:
            if other != sample:
                raise DataError(f"{self.root}: the tables name {file} twice, with different values; mend them")
            self._repeated += 1

    def finish(self, images: ImageSettings, store=store_file, notes: Iterable[str] = ()) -> Source:
        """The source of all that was added; raises DataError for no image, missing ones, or patients in two splits."""
        samples = [self._samples[file] for file in sorted(self._samples)]
        if any(file.lower().endswith(DICOM_SUFFIXES) for file in self._samples):
            pydicom()  # a missing package is told before the first file is
        self._tell_missing(len(samples))
        if not samples:
            raise DataError(f"{self.root}: holds no image that its tables name; is this the folder of {self._source}?")
        used = {mask for sample in samples for mask in sample.masks}
        unlisted = sorted(self.images - self._samples.keys() - used)
        if unlisted:
            self.notes.append(f"{len(unlisted)} images have no row and are left out; the first: {unlisted[0]}")
        if self._repeated:
            self.notes.append(f"{self._repeated} rows repeat another and are dropped")
        if self._bad_ages:
            self.notes.append(f"{self._bad_ages} ages are no number from 0 to 120 and count as unknown")
        if all(sample.patient_id == sample.key for sample in samples):
            self.notes.append("the publisher names no patients, so each image counts as a patient")
        unmapped = dict(self.labels.unmapped.most_common())
        if unmapped:
            named = [f"{word!r} {count}" for word, count in unmapped.items()][:NAMED_IN_NOTES]
            rest = f" and {len(unmapped) - len(named)} more (all in the manifest)" if len(unmapped) > len(named) else ""
            self.notes.append(f"not in the vocabulary, so in no label: {', '.join(named)}{rest}")
        settings = {"tables": sorted(self._tables), "uncertain": self.uncertain, "unmapped": unmapped}
        settings |= {"splits": getattr(self._args, "splits", "drawn"), "images_missing": len(self._missing)}
        return Source(
            name=self._source,
            vocabulary=self.labels.classes,
            samples=samples,
            make_record=functools.partial(
                make_record, root=self.root.absolute(), images=images, source=self._source, store=store
            ),
            settings=settings,
            notes=tuple(f"{self._source}: {note}" for note in (*self.notes, *notes)),
        )

    def _split(self, published: str, patient_id: str) -> str:
        if not published or self._args.splits == "drawn":
            return ""
        split = published
        if published == TRAIN_OR_VAL:
            train, val, _ = self._args.split_fractions
            share = train / (train + val) if train + val else 1.0
            split = draw_split(patient_id, self._args.seed, (share, 1 - share, 0.0))
        other = self._patients.setdefault(patient_id, split)
        if other != split and self._args.on_crossing == "stop":
            raise DataError(
                f"{self.root}: the published splits put patient {patient_id} into {other} and {split}; "
                "give --splits=drawn to draw them by patient, or --on_crossing=drop to keep those of test, else val"
            )
        return split

    def _tell_missing(self, present: int) -> None:
        if not self._missing:
            return
        count, first = len(self._missing), self._missing[0]
        words = f"{count} of the {count + present} images that the tables name are not there; the first: {first}"
        if self._args.on_missing == "stop":
            raise DataError(f"{self.root}: {words}; complete the folder, or give --on_missing=skip")
        self.notes.append(f"{words}; skipped")
