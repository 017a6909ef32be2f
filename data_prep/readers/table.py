"""labels.csv: which column means what, and each row's values in the contract's words.

In: a CSV file and the flags that name its columns. Out: `Table`, rows of plain values keyed by file, and the label
classes. Empty means unknown everywhere. Rules: README.md of data_prep, "labels.csv".
"""

import csv
import dataclasses
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cxr_jax.data.records import NEGATIVE, POSITIVE, UNKNOWN_AGE, UNKNOWN_LABEL, Box, DataError
from data_prep.storage import Location

# The contract's name of a column -> the headers it is recognised by, in lower case without spaces and _ - /.
COLUMNS = {
    "file": ("file", "filename", "path", "image", "imagepath", "imageindex", "imagefile"),
    "patient_id": ("patientid", "patient", "subjectid", "subject"),
    "study": ("study", "studyid"),
    "split": ("split",),
    "source": ("source", "dataset"),
    "view": ("view", "viewposition", "projection", "ap/pa", "appa"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "ageyears", "patientage"),
    "mask": ("mask", "maskfile", "maskpath"),
}
SLIPS = 0.1  # up to this share of other cells, a column of 0 and 1 is a label with mistakes
_LABEL_WORDS = {
    "": UNKNOWN_LABEL, "na": UNKNOWN_LABEL, "n/a": UNKNOWN_LABEL, "nan": UNKNOWN_LABEL,
    "yes": POSITIVE, "true": POSITIVE, "no": NEGATIVE, "false": NEGATIVE,
}  # fmt: skip
_LEGAL_LABELS = "1, yes, true; 0, no, false; -1, NA or empty (unknown)"
_SEPARATORS = ",;\t"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F"}
_MAX_AGE_YEARS = 120


@dataclasses.dataclass(frozen=True)
class Row:
    """One row in the contract's words; texts are "" and `mask` None where the table does not know."""

    line: int
    file: str
    patient_id: str
    study: str
    split: str
    source: str
    view: str
    sex: str
    age_years: float
    mask: str
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a labels file, its label classes, and what the user should know of how it was read."""

    rows: tuple[Row, ...]
    vocabulary: tuple[str, ...]
    notes: tuple[str, ...]


def read_table(
    file: Location,
    columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None,
    exclude_columns: Sequence[str],
) -> Table:
    """Reads a labels file.

    Args:
      file: a CSV file with a header, UTF-8, separated by commas, semicolons or tabs.
      columns: for each name of `COLUMNS` the header given by flag, "" for none, None to recognise it.
      label_columns: the label classes, or None to find them.
      exclude_columns: headers that are never taken for labels.

    Raises DataError for a missing or malformed file, an unknown column, two possible columns, or a bad label.
    """
    notes: list[str] = []
    header, lines = _read_csv(file, notes)
    chosen = {name: _choose(name, columns.get(name), header, file) for name in COLUMNS}
    if chosen["file"] is None:
        raise DataError(f"{file}: no column names the image file; found {', '.join(header)}; give --file_column")
    for flag, given in (("--label_columns", label_columns or ()), ("--exclude_columns", exclude_columns)):
        for name in given:
            if name not in header:
                raise DataError(f"{file}: has no column {name!r} ({flag}); found {', '.join(header)}")
    if label_columns is None:
        taken = {header.index(name) for name in chosen.values() if name} | {
            header.index(name) for name in exclude_columns
        }
        label_columns = _find_labels(file, header, lines, taken, notes)
    position = {name: header.index(column) if column else None for name, column in chosen.items()}
    label_positions = [header.index(name) for name in label_columns]
    rows, bad_ages = [], 0
    if chosen["patient_id"] is not None:
        _check_patients(file, position["patient_id"], lines, notes)
    for number, cells in lines:
        where = f"{file} line {number}"
        text = {name: cells[at].strip() if at is not None else "" for name, at in position.items()}
        if not text["file"]:
            raise DataError(f"{where}: the column {chosen['file']} is empty")
        for name, cell in text.items():
            _check_text(cell, where, chosen[name] or name)
        age = parse_age(text["age"])
        bad_ages += age == UNKNOWN_AGE and text["age"] not in ("", "-1")
        rows.append(
            Row(
                line=number,
                file=text["file"],
                patient_id=text["patient_id"],
                study=text["study"],
                split=text["split"],
                source=text["source"],
                view=parse_view(text["view"]),
                sex=parse_sex(text["sex"]),
                age_years=age,
                mask=text["mask"],
                labels=tuple(_parse_label(cells[at], header[at], where) for at in label_positions),
            )
        )
    if bad_ages:
        notes.append(f"{file.name}: {bad_ages} ages are no number from 0 to {_MAX_AGE_YEARS} and count as unknown")
    return Table(tuple(rows), tuple(label_columns), tuple(notes))


def read_boxes(file: Location, files: Sequence[str]) -> dict[str, list[Box]]:
    """Boxes by image of a table with the columns file, label or finding, x, y, w, h (pixels).

    Raises DataError for a file that is no such table or names an image that is not among `files`.
    """
    known, boxes = set(files), defaultdict(list)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except UnicodeDecodeError as error:
        raise DataError(_not_utf_8(file, error)) from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a table of boxes ({error})") from None
    for number, row in enumerate(rows, 2):
        try:
            label = row["finding"] if "finding" in row else row["label"]
            x, y, w, h = (float(row[name]) for name in "xywh")
            image = row["file"]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{file} line {number}: needs file, label or finding, and the numbers x, y, w, h") from None
        _check_text(label, f"{file} line {number}", "the label")
        _check_text(image, f"{file} line {number}", "file")
        if image not in known:
            raise DataError(f"{file} line {number}: {image} is not in the folder")
        boxes[image].append(Box(label, x, y, w, h))
    return boxes


def parse_view(text: str) -> str:
    """AP, PA, LATERAL or UNKNOWN from the many ways sources write a view."""
    word = text.strip().upper()
    if word.startswith(("AP", "PA")):
        return word[:2]
    return "LATERAL" if word in ("L", "LL", "RL", "LAT") or "LATERAL" in word else "UNKNOWN"


def parse_sex(text: str) -> str:
    """M, F or UNKNOWN from a letter or a word."""
    return _SEX.get(text.strip().lower(), "UNKNOWN")


def parse_age(text: str) -> float:
    """Years from "58", "058Y" or "8M"; -1 where that is not an age."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    if match is None:
        return UNKNOWN_AGE
    years = float(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]]
    return years if years <= _MAX_AGE_YEARS else UNKNOWN_AGE


def _read_csv(file: Location, notes: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line number, cells) of each row that is not blank."""
    lines = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            separator = max(_SEPARATORS, key=stream.readline().count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            for cells in reader:
                if any(cells):
                    lines.append((reader.line_num, cells))
    except FileNotFoundError:
        raise DataError(f"{file}: no such labels file") from None
    except UnicodeDecodeError as error:
        raise DataError(_not_utf_8(file, error)) from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{file}: is no CSV file ({error})") from None
    if not header or not lines:
        raise DataError(f"{file}: holds no rows")
    for name in header:
        _check_text(name, str(file), "a column's name")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{file}: two columns are called {twice[0]!r}; rename one")
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{file} line {number}: {len(cells)} cells, but the header has {len(header)}")
    if separator != ",":
        notes.append(f"{file.name}: its cells are separated by {'tabs' if separator == chr(9) else 'semicolons'}")
    return header, lines


def _not_utf_8(file: Location, error: UnicodeDecodeError) -> str:
    """What to say of a table in another encoding."""
    if error.start == 0 and error.object[:2] in _UTF_16:
        return f"{file}: is in UTF-16; turn it into UTF-8: iconv -f utf-16 -t utf-8"
    return (
        f"{file}: is not in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as CSV in "
        "UTF-8, as iconv -f latin1 -t utf-8 does for a table in Latin-1"
    )


def _check_text(text: str, where: str, column: str) -> None:
    """Refuses ends of lines, control and invisible characters: two ids that look alike, a screen that obeys a table."""
    if not text.isprintable():
        odd = [one for one in text if unicodedata.category(one)[0] == "C" or unicodedata.category(one) in ("Zl", "Zp")]
        if odd:
            raise DataError(f"{where}: {column} is {text!a}; the character {odd[0]!a} is not legal there, remove it")


def _check_patients(file: Location, at: int, lines: Sequence[tuple[int, list[str]]], notes: list[str]) -> None:
    """Refuses one id written as a whole number and as a decimal one; says how many rows name no patient."""
    ids = {cells[at].strip() for _, cells in lines}
    decimal = next((text for text in sorted(ids) if re.fullmatch(r"\d+\.0+", text) and text.split(".")[0] in ids), "")
    if decimal:
        raise DataError(
            f"{file}: the patient {decimal.split('.')[0]} is also written {decimal}, which would be another one; write "
            "each id in one way"
        )
    blank = sum(not cells[at].strip() for _, cells in lines)
    if blank:
        notes.append(f"{file.name}: {blank} rows name no patient; each such image counts as a patient of its own")


def _choose(name: str, given: str | None, header: Sequence[str], file: Location) -> str | None:
    if given == "":
        return None
    flag = f"--{name}_column"
    if given is not None:
        if given not in header:
            raise DataError(f"{file}: has no column {given!r} ({flag}); found {', '.join(header)}")
        return given
    found = [column for column in header if re.sub(r"[ _-]", "", column.lower()) in COLUMNS[name]]
    if len(found) > 1:
        raise DataError(f"{file}: {' and '.join(found)} could both be the column {name}; choose with {flag}")
    return found[0] if found else None


def _find_labels(
    file: Location, header: Sequence[str], lines: Sequence[tuple[int, list[str]]], taken: set[int], notes: list[str]
) -> list[str]:
    """The longest run of neighbouring columns that hold nothing but labels (`_LABEL_WORDS` and 1, 0, -1).

    Label columns stand together in every public table, while a lone 0/1 column elsewhere is a remark on the file.
    Columns with another known meaning do not break a run, wholly empty ones neither break nor join it.
    """
    runs: list[list[str]] = [[]]
    for at, name in enumerate(header):
        if at in taken:
            continue
        values = {cells[at].strip() for _, cells in lines}
        if not all(_label_value(value) is not None for value in values):
            _look_at_spoilt_labels(file, name, [(number, cells[at].strip()) for number, cells in lines], notes)
            runs.append([])
        elif values != {""}:
            runs[-1].append(name)
    longest = max(runs, key=len)
    if longest and sum(len(run) == len(longest) for run in runs) > 1:
        raise DataError(f"{file}: cannot tell which 0/1 columns are labels; name them with --label_columns")
    apart = [name for run in runs if run is not longest for name in run]
    if longest:
        notes.append(f"{file.name}: {len(longest)} label columns, {longest[0]} to {longest[-1]}")
    else:
        rest = [name for at, name in enumerate(header) if at not in taken]
        what = f"; {', '.join(rest)} hold other cells than {_LEGAL_LABELS}" if rest else ""
        notes.append(f"{file.name}: no label columns, so the dataset is unlabelled{what}")
    if apart:
        notes.append(f"{file.name}: not taken for labels: {', '.join(apart)} (--label_columns names labels)")
    return longest


def _look_at_spoilt_labels(file: Location, name: str, cells: Sequence[tuple[int, str]], notes: list[str]) -> None:
    """A column of 0 and 1 with few other cells, or one, is a label with slips; it must not vanish in silence."""
    filled = [(number, text) for number, text in cells if text]
    odd = [(number, text) for number, text in filled if _label_value(text) is None]
    known = sum(_label_value(text) in (POSITIVE, NEGATIVE) for _, text in filled)
    number, text = odd[0]
    if len(odd) <= SLIPS * len(filled) or (len(odd) == 1 and known > 1):
        raise DataError(
            f"{file} line {number}: {name} holds {text!a} where its other cells are labels (1, 0, yes, no); mend it, "
            f"or give --exclude_columns={name}"
        )
    if known > len(odd):
        notes.append(
            f"{file.name}: {name} is not taken for a label: {len(odd)} of {len(filled)} cells are none, the first is "
            f"{text!a} in line {number} (--label_columns={name} insists)"
        )


def _label_value(text: str) -> int | None:
    word = text.strip().lower()
    if word in _LABEL_WORDS:
        return _LABEL_WORDS[word]
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number in (1, 0, -1) else None


def _parse_label(text: str, column: str, where: str) -> int:
    label = _label_value(text)
    if label is None:
        raise DataError(f"{where}: {column} is {text!r}; legal: {_LEGAL_LABELS}")
    return label
