"""What the readers of published collections read before any image: tables.

In: a CSV file (also .csv.gz), and texts of its cells. Out: rows by column, paths below the folder, ages in years. Cells
and column names lose surrounding spaces; rows may be longer than the header, as the NIH's are, never shorter than the
columns that are needed.
"""

import csv
import functools
import gzip
import io
import math
import re
import zlib
from collections.abc import Container, Iterator
from pathlib import PurePosixPath

from cxr_jax.data.records import DataError
from data_prep.readers.table import parse_age
from data_prep.storage import Location, StorePath

# Reports in cells run to thousands of characters; a cell beyond this is no table's.
csv.field_size_limit(1_000_000)
# A bound stands for itself: ">90", "90+", "85 or more".
_BOUND = re.compile(r"^>?=?\s*(\d+(?:\.\d+)?)\s*(?:\+|or more)?$")


class Row(dict[str, str]):
    """A row's cells by column; `where` names its file and line."""

    where: str

    def without(self, columns: Container[str]) -> dict[str, str]:
        """The cells of all named columns that are not among `columns`."""
        return {column: text for column, text in self.items() if column and column not in columns}

    def numbers(self, *columns: str) -> tuple[float, ...]:
        """The numbers in these columns; raises DataError for a cell that holds none."""
        try:
            numbers = tuple(float(self[column]) for column in columns)
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            found = ", ".join(f"{column} {self[column]!r}" for column in columns)
            raise DataError(f"{self.where}: needs numbers, found {found}")
        return numbers


def relative(path: str, root: Location) -> str:
    """A path of a table as a path below `root`; raises DataError if it leads out of it."""
    pure = PurePosixPath(path.strip().replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"^[A-Za-z]:", str(pure)):
        raise DataError(f"{root}: a table names {path!r}, which leads out of the folder")
    return str(pure)


def table_rows(path: Location, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a CSV file that are not blank; `name` is used in errors.

    Raises DataError if the file is no CSV file in UTF-8, lacks one of `columns`, or has a row too short for them.
    """
    try:
        # A table in a bucket is read at once, not by ranges.
        source = io.BytesIO(path.read_bytes()) if isinstance(path, StorePath) and path.suffix == ".gz" else path
        open_table = functools.partial(gzip.open, source, "rt") if path.suffix == ".gz" else path.open
        with open_table(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [column.strip() for column in next(reader, [])]
            lacking = [column for column in columns if column not in header]
            if lacking:
                raise DataError(f"{name}: has no column {', '.join(lacking)}; found {', '.join(header) or 'nothing'}")
            needed = max((header.index(column) for column in columns), default=0) + 1
            for cells in reader:
                if not any(cells):
                    continue
                where = f"{name} line {reader.line_num}"
                if len(cells) < needed:
                    raise DataError(f"{where}: {len(cells)} cells; at least {needed} are needed")
                row = Row(zip(header, (cell.strip() for cell in cells), strict=False))
                row.where = where
                yield row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: cannot be read as a CSV file in UTF-8 ({error})") from None


def parse_years(text: str) -> float:
    """Years from "58", "058Y", "58.0", "45yrs", "16month", "64days", ">90" or "85 or more"; -1 for other texts."""
    text = text.strip().lower()
    bound = _BOUND.match(text)
    if bound:
        return parse_age(bound[1])
    return parse_age(re.sub(r"(yrs?|years?|months?|days?|weeks?)\.?$", lambda match: match[0][0], text))
