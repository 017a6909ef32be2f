"""Reads TBX11K: 11,200 radiographs of 512 px, healthy, sick without tuberculosis, or with it and its boxes.

Layout (Liu et al., CVPR 2020; the release of mmcheng.net/tb): `imgs/health/`, `imgs/sick/`, `imgs/tb/`, `imgs/test/`
(no published labels), `imgs/extra/` (DA, DB, Montgomery and Shenzhen; left out, have their own readers or none);
`lists/TBX11K_train.txt` and `TBX11K_val.txt` name the splits as `tb/tb0003.png`, `lists/all_test.txt` the test images;
`annotations/json/TBX11K_trainval.json` (or `_train` and `_val`; COCO, boxes in 512 px; categories ActiveTuberculosis,
ObsoletePulmonaryTuberculosis, PulmonaryTuberculosis). The XML annotations are in pixels of the originals and are not
read. Also the simplified form of Kaggle, `images/` and `data.csv` (fname, image_height, image_width, source, bbox,
target, tb_type, image_type; a row a box, the box as `{'xmin': 1, 'ymin': 2, 'width': 3, 'height': 4}` or none).

Active, latent and uncertain tuberculosis come from the boxes; of a tuberculous image without a box (one is) they are
unknown. No patient ids.
"""

import argparse
import json
import re
from collections import defaultdict

from cxr_jax.data.records import NEGATIVE, POSITIVE, UNKNOWN_LABEL, Box, DataError
from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags
from data_prep.splits import parse_split

KINDS = {"health": "health", "healthy": "health", "sick": "sick", "sick_but_no_tb": "sick", "tb": "tb"}
_NUMBER = re.compile(r"'(xmin|ymin|width|height)':\s*(-?\d+(?:\.\d+)?)")
Boxes = dict[str, list[Box]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, splits=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "tbx11k", suffixes=(".png", ".jpg"))
    simplified = not listing.find("TBX11K_train.txt") and listing.find("data.csv")
    entries, boxes, frames = _simplified(listing) if simplified else _released(listing)
    for file, (kind, split) in entries.items():
        found = {box.label for box in boxes.get(file, ())}
        kinds = {name: POSITIVE if name in found else NEGATIVE for name in listing.labels.classes if " T" in name}
        if kind == "tb" and not found:
            kinds = {}
        tb = {"health": NEGATIVE, "sick": NEGATIVE, "tb": POSITIVE}.get(kind, UNKNOWN_LABEL)
        healthy = {"health": POSITIVE, "sick": NEGATIVE, "tb": NEGATIVE}.get(kind, UNKNOWN_LABEL)
        known = {"Tuberculosis": tb, "No Finding": healthy, **kinds} if kind else {}
        listing.add(
            file,
            patient="",
            split=split,
            labels=listing.labels.of(known),
            boxes=boxes.get(file, ()),
            frame=frames.get(file),
        )
    return listing.finish(images)


def _released(listing: Listing) -> tuple[dict[str, tuple[str, str]], Boxes, dict[str, tuple[int, int]]]:
    """(kind, split), boxes and frame by file of the original release."""
    entries = {}
    for split, names in {"train": "TBX11K_train.txt", "val": "TBX11K_val.txt", "test": "all_test.txt"}.items():
        lines = listing.lines(names)
        if not lines and split != "test":
            raise DataError(f"{listing.root}: holds no list {names}; is this the folder of tbx11k?")
        for line in lines:
            kind = line.split("/")[0]
            if kind != "extra":
                entries[listing.locate(f"imgs/{line}", parts=2)] = (KINDS.get(kind, ""), split)
    boxes, frames = defaultdict(list), {}
    tables = (
        ["TBX11K_trainval.json"] if listing.find("TBX11K_trainval.json") else ["TBX11K_train.json", "TBX11K_val.json"]
    )
    for table in tables:
        file = listing.find(table)
        if not file:
            raise DataError(f"{listing.root}: holds no {table} (annotations/json), which has the boxes")
        try:
            coco = json.loads(listing.text(file))
            names = {entry["id"]: entry["name"] for entry in coco["categories"]}
            images = {entry["id"]: entry for entry in coco["images"]}
            for entry in images.values():
                place = listing.locate(f"imgs/{entry['file_name']}", parts=2)
                frames[place] = (int(entry["width"]), int(entry["height"]))
            for entry in coco["annotations"]:
                place = listing.locate(f"imgs/{images[entry['image_id']]['file_name']}", parts=2)
                for name in listing.labels.canonical(names[entry["category_id"]]):
                    boxes[place].append(Box(name, *(float(value) for value in entry["bbox"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: is no COCO file of TBX11K ({type(error).__name__}: {error})") from None
    return entries, boxes, frames


def _simplified(listing: Listing) -> tuple[dict[str, tuple[str, str]], Boxes, dict[str, tuple[int, int]]]:
    """(kind, split), boxes and frame by file of the simplified form."""
    entries, boxes, frames = {}, defaultdict(list), {}
    columns = ("fname", "image_height", "image_width", "source", "bbox", "target", "tb_type", "image_type")
    for row in listing.rows("data.csv", columns=columns):
        file = listing.locate(row["fname"])
        kind = "tb" if row["target"] == "tb" else KINDS.get(row["image_type"], "")
        entries[file] = (kind, parse_split(row["source"], row.where))
        frames[file] = tuple(int(number) for number in row.numbers("image_width", "image_height"))
        box = dict(_NUMBER.findall(row["bbox"]))
        if len(box) == 4:
            for name in listing.labels.canonical(row["tb_type"]):
                boxes[file].append(Box(name, *(float(box[key]) for key in ("xmin", "ymin", "width", "height"))))
    return entries, boxes, frames
