"""One sample of a published collection to its record: image, united masks, boxes in the stored image's pixels.

In: a `PublishedSample` and the folder. Out: `Record`. Pure: the same files give the same record in any process.
"""

import io
import math
import typing
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from cxr_jax.data.records import UNKNOWN_AGE, Box, DataError, Record
from data_prep.dicom import store_dicom
from data_prep.dicom_header import read_header
from data_prep.images import MAX_PIXELS, ImageSettings, StoredImage, encode_mask, store_grey, store_image, to_grey8
from data_prep.readers.listing import read_file
from data_prep.storage import Location

if typing.TYPE_CHECKING:
    from data_prep.readers.publisher import PublishedSample

DICOM_SUFFIXES = (".dcm", ".dicom")
MASK_FORMATS = ("PNG", "GIF", "TIFF", "BMP", "JPEG")
SHAPE_TOLERANCE = 0.02  # a mask may be smaller than its image, but not of another shape
Store = Callable[[bytes, "PublishedSample", ImageSettings], StoredImage]


def make_record(sample: "PublishedSample", root: Location, images: ImageSettings, source: str, store: Store) -> Record:
    """Reads and stores one image with its masks and boxes; raises DataError naming the file that is at fault."""
    data = read_file(root, sample.file)
    image = store(data, sample, images)
    view, sex, age_years = sample.view, sample.sex, sample.age_years
    if sample.file.lower().endswith(DICOM_SUFFIXES):
        header = read_header(data, sample.file)
        view = header.view if view == "UNKNOWN" else view
        sex = header.sex if sex == "UNKNOWN" else sex
        age_years = header.age_years if age_years == UNKNOWN_AGE else age_years
    return Record(
        image=image.jpeg,
        height=image.height,
        width=image.width,
        image_id=sample.key,
        patient_id=sample.patient_id,
        study_id=sample.study_id,
        source=source,
        view=view,
        sex=sex,
        age_years=age_years,
        labels=sample.labels,
        mask=_united([(read_file(root, mask), mask) for mask in sample.masks], image) if sample.masks else b"",
        boxes=tuple(_scaled(box, sample, image) for box in sample.boxes),
    )


def store_file(data: bytes, sample: "PublishedSample", images: ImageSettings) -> StoredImage:
    """Stores a DICOM or image file by its ending."""
    if sample.file.lower().endswith(DICOM_SUFFIXES):
        return store_dicom(data, sample.file, images)
    stored = store_image(data, sample.file, images)
    if not sample.invert:
        return stored
    # What `store_image` took can be read; the negative is made of its full size.
    return store_grey(ImageOps.invert(to_grey8(Image.open(io.BytesIO(data)), sample.file)), sample.file, images)


def _scaled(box: Box, sample: "PublishedSample", image: StoredImage) -> Box:
    """A box in pixels of the stored image, cut at its border; raises DataError if nothing of it is left."""
    width, height = sample.frame or (image.source_width, image.source_height)
    scale_x, scale_y = image.width / width, image.height / height
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.w, width), min(box.y + box.h, height)
    if not (left < right and top < bottom):
        raise DataError(
            f"{sample.file}: the box of {box.label} at x {box.x:g}, y {box.y:g}, {box.w:g}x{box.h:g} has no part in "
            f"the {width}x{height} pixels it refers to"
        )
    return Box(box.label, left * scale_x, top * scale_y, (right - left) * scale_x, (bottom - top) * scale_y)


def _united(masks: list[tuple[bytes, str]], image: StoredImage) -> bytes:
    """PNG bytes of where any of the masks is set, in the stored image's size.

    A mask is set above half of its largest value. Raises DataError for a damaged mask or one of another shape.
    """
    united = np.zeros((image.height, image.width), bool)
    for data, name in masks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(data), formats=MASK_FORMATS)
            if math.prod(picture.size) > MAX_PIXELS:
                raise ValueError(f"it declares {picture.width}x{picture.height} pixels")
            mask = ImageOps.exif_transpose(picture).convert("L")
        # Pillow's decoders raise many types on damaged files.
        except Exception as error:
            raise DataError(f"{name}: is no mask ({' '.join(str(error).split())})") from None
        shape, expected = mask.width / mask.height, image.source_width / image.source_height
        if abs(shape / expected - 1) > SHAPE_TOLERANCE:
            raise DataError(
                f"{name}: the mask is {mask.width}x{mask.height} pixels, its image "
                f"{image.source_width}x{image.source_height}; they must have one shape"
            )
        pixels = np.asarray(mask)
        binary = Image.fromarray(np.where(pixels > pixels.max() / 2, 255, 0).astype(np.uint8))
        united |= np.asarray(binary.resize((image.width, image.height), Image.Resampling.BILINEAR)) >= 128
    return encode_mask(united)
