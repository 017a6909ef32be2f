"""What a reader is: a module of this folder with `add_flags(parser)` and `open_source(args) -> Source`.

A reader lists its samples cheaply in the main process; `make_record` does the image work in any process. It is
pure (the same sample always gives the same record) and picklable, so process pools and Beam can both call it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxr_jax.data.records import Record

READERS = (
    "folder", "dicom_folder", "datasets", "medmnist", "phantom", "brax", "chexpert", "jsrt", "mimic_cxr", "montgomery",
    "nih_chestxray14", "padchest", "rsna_pneumonia", "shenzhen", "tbx11k", "vindr_cxr",
)  # fmt: skip


class FlagError(Exception):
    """Flags that are legal one by one but not together; the command exits with 2."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image to be made. Readers add fields by subclassing.

    Attributes:
      key: unique and stable in the source; becomes `image_id` and decides the place in the shuffled order.
      patient_id: images of one patient always share a split.
      split: "train", "val" or "test" where the source fixes it, "" to draw it from the patient's hash.
    """

    key: str
    patient_id: str
    split: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
      name: default name of the dataset.
      vocabulary: the label classes in order.
      samples: all samples; may compute them on access, so that its memory does not grow with their number.
      make_record: sample -> Record; raises DataError, naming the file, for an image that cannot be used.
      settings: the reader's settings that shape the output, for the manifest.
      notes: what the user should know of the listing, one line each.
    """

    name: str
    vocabulary: tuple[str, ...]
    samples: Sequence[Sample]
    make_record: Callable[[Any], Record]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
