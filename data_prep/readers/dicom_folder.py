"""Reads a folder of DICOM files, with an optional labels.csv and an optional table of boxes.

In: `--input=DIR` and the flags of `add_flags`. Out: a `Source` whose samples are the chest radiographs below the folder
in the order of their paths. Listing reads headers: view, sex, age, study and patient come from the tags, and a table,
if there is one, goes before them. No pixel is decoded here; `make_record` reads one file and returns its record.

By default patient and study ids are hashes. The patient's name reaches nothing: where a path holds the name, or an id
that is hashed, that part of the path is hashed in the record's id and in every message.
"""

import argparse
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cxr_jax.data.records import VIEWS, DataError, Record
from data_prep.dicom import store_dicom
from data_prep.dicom_file import SIGNATURE_BYTES, is_dicom, pydicom
from data_prep.dicom_header import DicomHeader, read_header
from data_prep.identity import hash_id, hidden_parts, holds
from data_prep.images import ImageSettings, store_mask
from data_prep.parallel import at_once
from data_prep.readers import Source, listing
from data_prep.readers.listing import Labels, ListedSample
from data_prep.readers.table import Row
from data_prep.storage import Location, StoreError, streams

MODALITIES = ("CR", "DX", "RG", "UNSET")
BODY_PARTS = ("CHEST", "THORAX", "LUNG", "UNSET")
UNSET = "UNSET"
_SUFFIXES = (
    ".dcm",
    ".dicom",
    ".dic",
    ".ima",
)  # a file of such a name that is no DICOM is broken, any other is not ours
_HASH_DIGITS = 16
_MANY = 10
_LISTING_THREADS = 8  # a header is a few kilobytes: on network disks most of the time is waiting


@dataclasses.dataclass(frozen=True)
class DicomSample(ListedSample):
    """One file: `file` is its path below the folder, `key` the same without what identifies the patient."""

    file: str = dataclasses.field(repr=False)
    problem: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    listing.add_flags(parser)
    parser.add_argument(
        "--patient_ids", choices=("hash", "keep"), default="hash", help="store patient and study ids hashed, or as are"
    )
    parser.add_argument("--patient_salt", default="", help="secret text that enters the hash; the same gives the same")
    for name, default in (("modalities", MODALITIES), ("body_parts", BODY_PARTS)):
        text = f"take these only, {UNSET} being files that do not say ('' for all); {','.join(default)}"
        parser.add_argument(f"--{name}", type=_upper_names, default=default, help=text)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the folder; raises DataError for what is missing or contradictory."""
    pydicom()  # a missing package is told before the first file is
    root: Location = args.input
    files = listing.files_below(root, args.follow_links, lambda name: name.upper() != "DICOMDIR")
    notes: list[str] = []
    headers = _headers(root, files, listing.labels_path(args), notes)
    labels = listing.open_labels(args, list(headers))
    notes += labels.notes
    chosen = listing.choose(args, labels, list(headers), notes)
    samples = _samples(chosen, headers, labels, args, notes)
    if not samples:
        raise DataError(f"{root}: holds no DICOM image to take{''.join(f'; {note}' for note in notes)}")
    return Source(
        name=listing.dataset_name(root),
        vocabulary=labels.vocabulary,
        samples=samples,
        make_record=functools.partial(make_record, root=root.absolute(), images=images),
        settings={
            "labels": labels.path.name if labels.path else "",
            "boxes": labels.boxes_path.name if labels.boxes_path else "",
            "patient_ids": args.patient_ids,
            "patient_salt": bool(args.patient_salt),
            "modalities": list(args.modalities),
            "body_parts": list(args.body_parts),
        },
        notes=tuple(notes),
    )


def make_record(sample: DicomSample, root: Location, images: ImageSettings) -> Record:
    """Reads and stores one image, its mask and its boxes; raises DataError naming the file that is at fault."""
    if sample.problem:
        raise DataError(f"{sample.key}: {sample.problem}")
    try:
        data = (root / sample.file).read_bytes()
    except StoreError:
        raise
    except OSError as error:
        raise DataError(f"{sample.key}: cannot be read ({error.strerror})") from None
    image = store_dicom(data, sample.key, images)
    mask = store_mask(listing.read_file(root, sample.mask), sample.mask, image) if sample.mask else b""
    return listing.to_record(sample, image, mask)


def _headers(
    root: Location, files: Sequence[str], table: Location | None, notes: list[str]
) -> dict[str, DicomHeader | str]:
    """Headers by file, a text where a header cannot be read; files of other kinds are left out and counted."""
    table = table.absolute() if table else None
    files = [file for file in files if (root / file).absolute() != table]
    threads = max(_LISTING_THREADS, streams(root))
    found = dict(zip(files, at_once(functools.partial(_header, root), files, threads), strict=True))
    others = sum(header is None for header in found.values())
    if others:
        notes.append(f"{others} files are not DICOM; they are left out")
    return {file: header for file, header in found.items() if header is not None}


def _header(root: Location, file: str) -> DicomHeader | str | None:
    """One file's header, a text that says why it has none, or None for a file of another kind."""
    try:
        with (root / file).open("rb") as stream:
            if not is_dicom(stream.read(SIGNATURE_BYTES)) and not file.lower().endswith(_SUFFIXES):
                return None
            stream.seek(0)
            header = read_header(stream, file)
    except StoreError:
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except DataError as error:
        return str(error).removeprefix(f"{file}: ")
    return None if header.is_directory else header


def _samples(
    chosen: Sequence[str],
    headers: Mapping[str, DicomHeader | str],
    labels: Labels,
    args: argparse.Namespace,
    notes: list[str],
) -> list[DicomSample]:
    """The samples of the files that pass the filters; `notes` gains what was left out and what was hidden."""
    known = {file: header for file, header in headers.items() if isinstance(header, DicomHeader)}
    hide_ids = args.patient_ids == "hash"
    private = ((file, header.private_words, header.patient_id if hide_ids else "") for file, header in known.items())
    hidden = hidden_parts(private, args.patient_salt)
    left_out: Counter[str] = Counter()
    samples, without_id = [], 0
    for file in chosen:
        header, row = known.get(file), labels.row(file)
        views = (row.view, header.view if header else "", args.view)
        view = next((view for view in views if view in VIEWS[:-1]), VIEWS[-1])
        reason = _why_not(header, view, args) if header else ""
        if reason:
            left_out[reason] += 1
            continue
        key = "/".join(hidden.get(part, part) for part in file.split("/"))
        sample = _sample(file, key, view, row, header, labels, args)
        samples.append(sample if header else dataclasses.replace(sample, problem=str(headers[file])))
        without_id += sample.patient_id == key
    notes += [f"left out {number} that {reason}" for reason, number in sorted(left_out.items())]
    if any(sample.key != sample.file for sample in samples):
        notes.append("some paths hold a patient's name or id: those parts are hashed in records and messages")
    if without_id:
        notes.append(f"{without_id} images have no patient id, so each of them counts as a patient")
    patients = {sample.patient_id for sample in samples}
    if len(samples) >= _MANY and len(patients) == 1:
        notes.append("all images have the same patient id, so they all share a split; a table can name the patients")
    return samples


def _sample(
    file: str,
    key: str,
    view: str,
    row: Row,
    header: DicomHeader | None,
    labels: Labels,
    args: argparse.Namespace,
) -> DicomSample:
    """The sample of one file; what the table says goes before the header."""
    patient = row.patient_id or (header.patient_id if header else "")
    study = row.study or (header.study_uid if header else "")
    return DicomSample(
        key=key,
        patient_id=_identity(patient, header, args) or key,
        split=labels.split(row),
        study_id=_identity(study, header, args),
        source=row.source or args.source or args.name or listing.dataset_name(args.input),
        view=view,
        sex=row.sex if row.sex != "UNKNOWN" or not header else header.sex,
        age_years=row.age_years if row.age_years >= 0 or not header else header.age_years,
        labels=row.labels,
        mask=row.mask,
        boxes=tuple(labels.boxes.get(file, ())),
        file=file,
        problem="",
    )


def _why_not(header: DicomHeader, view: str, args: argparse.Namespace) -> str:
    """Why a file is left out, "" if it is not."""
    # A radiograph without rows is a broken file, which `store_dicom` refuses; a report is none.
    if not header.is_image and header.modality and header.modality not in (args.modalities or MODALITIES):
        return f"are no images ({_shown(header.modality, header)})"
    if args.modalities and (header.modality or UNSET) not in args.modalities:
        return f"have the modality {_shown(header.modality, header)} (--modalities)"
    words = {*re.split(r"[\W_]+", header.body_part), header.body_part} if header.body_part else {UNSET}
    if args.body_parts and not words & set(args.body_parts):
        return f"show {_shown(header.body_part, header)} (--body_parts)"
    if args.views and view not in args.views:
        return f"have the view {view} (--views)"
    return ""


def _shown(code: str, header: DicomHeader) -> str:
    """A code of the header as a note may show it: free text may hold anything."""
    if not code:
        return UNSET
    is_code = re.fullmatch(r"[A-Z0-9_]{2,16}", code) and not holds(code, header.private_words)
    return code if is_code else "something else"


def _identity(text: str, header: DicomHeader | None, args: argparse.Namespace) -> str:
    """A patient or study id as it is stored: hashed unless ids are kept, and always where it holds the name."""
    keep = args.patient_ids == "keep" and not (header and holds(text, header.private_words))
    return text if keep else hash_id(text, args.patient_salt)


def _upper_names(text: str) -> tuple[str, ...]:
    return tuple(name.upper() for name in listing.names(text))
