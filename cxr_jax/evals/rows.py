"""Which rows are judged: lists of images.

In: a split and a file of image ids. Out: the rows of the split that the file names.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np

from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split

COLUMN = "image_id"


def read_ids(file: str, key: str = "only_images") -> set[str]:
    """The image ids of a list: one a line, or the column `image_id` of a CSV file. Raises DataError naming `key`."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise DataError(f"config.data.{key}={file}: cannot be read ({why})") from None
    lines = [line for line in text.splitlines() if line.strip()]
    header = next(csv.reader(lines[:1]), [])
    if len(header) > 1 and COLUMN not in header:
        raise DataError(f"config.data.{key}={file}: has no column {COLUMN}; it has {', '.join(header)}")
    if COLUMN in header:
        return {row[COLUMN] for row in csv.DictReader(lines)}
    return {line.strip() for line in lines}


def keep_images(split: Split, file: str, key: str = "only_images") -> Split:
    """The rows of `split` whose image the list `file` names. Raises DataError when it names none of them."""
    wanted = read_ids(file, key)
    kept = np.array([split.text(i, COLUMN) in wanted for i in range(len(split))], bool)
    if not kept.any():
        raise DataError(
            f"config.data.{key}={file}: none of its {len(wanted)} image ids is among the {len(split)} rows of split "
            f"{split.name!r}; an id there is such as {split.text(0, COLUMN)}"
        )
    return dataclasses.replace(split, rows=np.asarray(split.rows)[kept])
