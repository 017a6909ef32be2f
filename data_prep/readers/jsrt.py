"""Reads the JSRT database: 247 radiographs of 2048 x 2048, 154 with a lung nodule, 93 without.

Layout (Shiraishi et al., AJR 2000; All247images.zip and Clinical_Information.zip of db.jsrt.or.jp): `JPCLN001.IMG` to
`JPCLN154.IMG` (nodule) and `JPCNN001.IMG` to `JPCNN093.IMG` (none), 12 bits in 16, big-endian, no header, white where
the film is black (turned here). `CLNDAT_EN.txt`, tab-separated without header: file, subtlety, size in mm, age, sex,
x, y, malignant or benign, place, diagnosis; `CNNDAT_EN.TXT`, separated by spaces: file, age, sex, "non-nodule"; line
ends are old Mac's, and unknown numbers "?". PNG or JPEG copies of the same names are taken as they look. The nodule's
box is a square of its size (0.175 mm a pixel) about its centre, in pixels of 2048. The lung masks of SCR (van Ginneken
et al., 2006; `fold1/masks/left lung/JPCLN001.gif`, 1024 px) are taken where they lie below the folder. No splits.
"""

import argparse
import re

import numpy as np
from PIL import Image

from cxr_jax.data.records import NEGATIVE, POSITIVE, Box, DataError
from data_prep.images import SUFFIXES, ImageSettings, StoredImage, store_grey
from data_prep.readers import Source
from data_prep.readers.published_record import store_file
from data_prep.readers.publisher import Listing, PublishedSample
from data_prep.readers.publisher import add_flags as add_published_flags

SIDE_PX = 2048
MAX_VALUE = 4095
MM_PER_PX = 0.175
_NAME = re.compile(r"^JPC([LN])N\d{3}$")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "jsrt", suffixes=(".img", *SUFFIXES))
    masks = {"/".join(file.split("/")[-2:]).lower(): file for file in listing.files if " lung/" in file}
    ordered = sorted(listing.images, key=lambda file: (file.lower().endswith(".img"), file))  # a raw file wins
    files = {file.rsplit("/", 1)[-1].rsplit(".", 1)[0].upper(): file for file in ordered}
    files = {name: file for name, file in files.items() if _NAME.match(name)}
    about = {}
    for table, separator in (("CLNDAT_EN.txt", "\t"), ("CNNDAT_EN.txt", None)):
        for line in listing.lines(table):
            cells = [cell.strip() for cell in line.split(separator)]
            about[cells[0].upper().removesuffix(".IMG")] = cells
    if not about:
        listing.notes.append("no CLNDAT_EN.txt and CNNDAT_EN.txt: no age, sex and boxes")
    for name in sorted({*files, *about}):
        nodule, cells = name.startswith("JPCLN"), about.get(name, [])
        age, sex = [*(cells[3:5] if nodule else cells[1:3]), "", ""][:2]
        both = [masks.get(f"{side} lung/{name}.gif".lower()) for side in ("left", "right")]
        listing.add(
            files.get(name, f"{name}.IMG"),
            patient="",
            view="PA",
            sex=sex,
            age="" if age == "?" else age,
            labels=listing.labels.of({"Nodule": POSITIVE if nodule else NEGATIVE}),
            masks=both if all(both) else (),
            boxes=_box(cells, name) if nodule else (),
            frame=(SIDE_PX, SIDE_PX),
        )
    return listing.finish(images, store=store)


def store(data: bytes, sample: PublishedSample, images: ImageSettings) -> StoredImage:
    """Stores a raw .IMG file, or another by its ending; raises DataError for a raw file of another form."""
    if not sample.file.lower().endswith(".img"):
        return store_file(data, sample, images)
    if len(data) != 2 * SIDE_PX**2:
        raise DataError(f"{sample.file}: holds {len(data)} bytes; a raw image of JSRT has {2 * SIDE_PX**2}")
    values = np.frombuffer(data, ">u2").reshape(SIDE_PX, SIDE_PX)
    if values.max() > MAX_VALUE:
        raise DataError(f"{sample.file}: holds the value {values.max()}; 12 bits, big-endian, end at {MAX_VALUE}")
    return store_grey(Image.fromarray(((MAX_VALUE - values) >> 4).astype(np.uint8)), sample.file, images)


def _box(cells: list[str], name: str) -> tuple[Box, ...]:
    try:
        size_mm, x, y = (float(cells[place]) for place in (2, 5, 6))
    except (IndexError, ValueError):
        if cells and "?" not in cells[2:7]:
            raise DataError(f"CLNDAT_EN.txt: {name} has no size, x and y; found {cells[1:7]}") from None
        return ()
    side = size_mm / MM_PER_PX
    return (Box("Nodule", x - side / 2, y - side / 2, side, side),)
