"""Reads the Montgomery County set: 138 PA radiographs, 58 of them with manifestations of tuberculosis, and lung masks.

Layout (Jaeger et al., QIMS 2014; NLM, NLM-MontgomeryCXRSet.zip): `MontgomerySet/CXR_png/MCUCXR_0001_0.png`,
`ManualMask/leftMask/` and `rightMask/` with a mask of each name (united here), and `ClinicalReadings/` with a text
file of each name. No patient ids, no splits.
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
    listing = Listing(args, "montgomery", suffixes=(".png",))
    masks = {"/".join(file.split("/")[-2:]): file for file in listing.images if "ManualMask" in file.split("/")}

    def masks_of(name: str) -> list[str]:
        both = [masks.get(f"{side}Mask/{name}.png") for side in ("left", "right")]
        return both if all(both) else []  # one lung alone is no lung mask

    add_images(listing, "MCUCXR", masks_of)
    return listing.finish(images)
