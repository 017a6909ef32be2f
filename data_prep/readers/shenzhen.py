"""Reads the Shenzhen Hospital set: 662 radiographs, 336 of them with manifestations of tuberculosis.

Layout (Jaeger et al., QIMS 2014; NLM, ChinaSet_AllFiles.zip): `CXR_png/CHNCXR_0001_0.png`, and `ClinicalReadings/`
with a text file of each name. The lung masks of Stirenko et al. (2018; Kaggle), `mask/CHNCXR_0001_0_mask.png` for 566
images, are taken where they lie below the folder; NLM's later region annotations are not read. View PA for all: its
readings do not say which children were taken AP. No patient ids, no splits.
"""

import argparse

from data_prep.images import ImageSettings
from data_prep.readers import Source
from data_prep.readers.nlm_tuberculosis import add_images
from data_prep.readers.publisher import Listing
from data_prep.readers.publisher import add_flags as add_published_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    add_published_flags(parser)


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """Lists the collection; raises DataError for images that are not of this form."""
    listing = Listing(args, "shenzhen", suffixes=(".png",))
    masks = {file.rsplit("/", 1)[-1]: file for file in listing.images if file.endswith("_mask.png")}
    add_images(listing, "CHNCXR", lambda name: [masks[f"{name}_mask.png"]] if f"{name}_mask.png" in masks else [])
    return listing.finish(images)
