"""Reads NIH ChestX-ray14: 112,120 PNGs of 1024 px of 30,805 patients, 14 findings mined from the reports.

Layout (Wang et al., CVPR 2017; nihcc.app.box.com/v/ChestXray-NIHCC and its copy on Kaggle): `images_001/images/` to
`images_012/images/`, or all in one folder; `Data_Entry_2017_v2020.csv`, or the first release `Data_Entry_2017.csv`
with ages as 058Y; `BBox_List_2017.csv`; `train_val_list.txt` and `test_list.txt`. Findings are joined by "|", and the
list is exhaustive: what is not in it is negative. Boxes are in pixels of the 1024 px image, their header is `Bbox
[x,y,w,h],,,` (read by position), and they write Infiltration as Infiltrate. The publisher fixes the test set; train
and val are drawn by patient. Ages over 120 are errors of the release and count as unknown.
"""

import argparse
from collections import defaultdict

from cxr_jax.data.records import Box, DataError
from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.publisher import TRAIN_OR_VAL, Listing
from data_prep.readers.publisher import add_flags as add_published_flags

LISTS = {"train_val_list.txt": TRAIN_OR_VAL, "test_list.txt": "test"}
SIDE_PX = 1024


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser, splits=True)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for tables or images that are not of this form."""
    listing = Listing(args, "nih_chestxray14")
    boxes: dict[str, list[Box]] = defaultdict(list)
    for row in listing.rows("BBox_List_2017.csv", columns=("Image Index", "Finding Label"), optional=True):
        x, y, w, h = row.numbers(*list(row)[2:6])
        for name in listing.labels.canonical(row["Finding Label"]):
            boxes[row["Image Index"]].append(Box(name, x, y, w, h))
    splits: dict[str, str] = {}
    for file, split in LISTS.items():
        for name in listing.lines(file):
            if splits.setdefault(name, split) != split:
                raise DataError(f"{file}: {name} is in the other list too; get the lists of this release")
    if not splits:
        listing.notes.append(f"no {' and '.join(LISTS)}, so all splits are drawn by patient")
    tables = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    for row in listing.rows(*tables, columns=("Image Index", "Finding Labels", "Patient ID", "View Position")):
        name = row["Image Index"]
        if splits and name not in splits:
            raise DataError(f"{row.where}: {name} is in neither {' nor '.join(LISTS)}; get the lists of this release")
        listing.add(
            listing.locate(name),
            patient=row["Patient ID"],
            split=splits.get(name, ""),
            study=f"{row['Patient ID']}/{row.get('Follow-up #', '')}",
            view=row["View Position"],
            sex=row.get("Patient Gender", row.get("Patient Sex", "")),
            age=row.get("Patient Age", ""),
            labels=listing.labels.from_list(row["Finding Labels"].split("|"), closed=row.where),
            boxes=boxes.get(name, ()),
            frame=(SIDE_PX, SIDE_PX),
        )
    return listing.finish(images)
