"""The stored pixel values of a DICOM data set, once its layout has been checked.

In: a data set with its pixel data. Out: `Layout` (what the tags say, checked against each other and against limits) and
the stored values as integers [h, w], or [h, w, 3] in colour. Everything is checked before anything is allocated:
rows and columns, the length of native pixel data, the size that a compressed picture declares of itself. The decoder of
each transfer syntax is fixed, so that the same file gives the same bytes on every machine.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from cxr_jax.data.records import DataError
from data_prep.dicom_codestream import codestream_size, is_whole
from data_prep.dicom_file import INSTALL, pydicom, transfer_syntax
from data_prep.images import MAX_PIXELS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PIXEL_KEYWORDS = (
    "SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "FloatPixelData", "DoubleFloatPixelData", "PixelData",
)  # fmt: skip
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little and big endian
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
# Pillow refuses damaged scans, which libjpeg's other wrapper fills in silence; RLE is pydicom's own.
_JPEG_BASELINE, _JPEG_EXTENDED, _RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"
_MISSING_PACKAGE = re.compile(r"missing (required )?dependenc|no plugin named", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How pixels are stored: `rows` and `columns` in pixels, samples a pixel, bits, and what they mean."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str


def check_layout(dataset: "Dataset", name: str, file: bytes) -> Layout:
    """The data set's layout; raises DataError for what is no single picture that can be read.

    `file` only tells pixel data that is missing from that which is cut off: pydicom drops both.
    """
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DataError(f"{name}: has floating-point pixels; 8 or 16 bits are legal")
    if "PixelData" not in dataset:
        if any(tag in file for tag in _PIXEL_DATA_TAGS):
            raise DataError(f"{name}: its pixel data is cut off")
        is_image = "Rows" in dataset or "Columns" in dataset
        what = "has no pixel data" if is_image else f"is no image ({_code(dataset, 'Modality')} object)"
        raise DataError(f"{name}: {what}")
    rows, columns = _integer(dataset, "Rows", name), _integer(dataset, "Columns", name)
    samples = _integer(dataset, "SamplesPerPixel", name, 1)
    if rows < 1 or columns < 1:
        raise DataError(f"{name}: is {columns}x{rows} pixels; both sides must be at least 1")
    if rows * columns * samples > MAX_PIXELS:
        raise DataError(f"{name}: declares {columns}x{rows} pixels; at most {MAX_PIXELS} are legal")
    frames = _integer(dataset, "NumberOfFrames", name, 1)
    if frames > 1:
        raise DataError(f"{name}: holds {frames} frames; one picture a file is legal, so split it or leave it out")
    photometric = _code(dataset, "PhotometricInterpretation")
    expected = 3 if photometric in COLOUR else 1
    if photometric not in (*GREY, PALETTE, *COLOUR) or samples != expected:
        raise DataError(
            f"{name}: is {photometric} with {samples} samples a pixel; legal: {', '.join((*GREY, PALETTE))} with 1, "
            f"{', '.join(COLOUR)} with 3"
        )
    allocated = _integer(dataset, "BitsAllocated", name)
    stored = _integer(dataset, "BitsStored", name, allocated)
    high = _integer(dataset, "HighBit", name, stored - 1)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise DataError(
            f"{name}: stores {stored} of {allocated} bits, the highest bit {high}; legal: 8 or 16 allocated, and the "
            "highest bit one less than those stored"
        )
    if samples > 1 and stored != 8:
        raise DataError(f"{name}: is in colour of {stored} bits; 8 are legal")
    signed = _integer(dataset, "PixelRepresentation", name, 0) == 1
    return Layout(rows, columns, samples, allocated, stored, signed, photometric)


def stored_values(dataset: "Dataset", layout: Layout, name: str) -> np.ndarray:
    """Integers [h, w] or RGB uint8 [h, w, 3], as stored: no rescale, no window, bits above the highest masked.

    Raises DataError for a length or a declared size that contradicts the tags, for transfer syntaxes that nothing here
    decodes, and for pictures that are cut off or damaged.
    """
    dicom = pydicom()
    uid = dicom.uid.UID(transfer_syntax(dataset))
    kind = uid.name if uid.is_transfer_syntax else "an unknown transfer syntax"
    try:
        decoder = dicom.pixels.get_decoder(uid)
    except (NotImplementedError, ValueError):
        raise DataError(f"{name}: is stored as {kind}, which cannot be decoded; convert it") from None
    plugin = ""
    if uid.is_encapsulated:
        _check_compressed(dataset, layout, uid, kind, name)
        plugin = _plugin(str(uid), layout)
    else:
        _check_native(dataset, layout, kind, name)
    try:
        values, _ = decoder.as_array(dataset, raw=False, decoding_plugin=plugin)
    # The texts of pydicom's errors may quote values of the file; only what is missing on this machine is looked for.
    except Exception as error:
        if plugin and (not decoder.is_available or _MISSING_PACKAGE.search(str(error))):
            raise DataError(f"{name}: is stored as {kind}, whose decoder is not installed; {INSTALL}") from None
        raise DataError(f"{name}: its pixel data is damaged and cannot be decoded as {kind}") from None
    expected = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    if values.shape != expected:
        raise DataError(f"{name}: decodes to {values.shape}, but its tags say {expected}")
    return values


def _plugin(uid: str, layout: Layout) -> str:
    if uid == _RLE:
        return "pydicom"
    return "pillow" if uid == _JPEG_BASELINE or (uid == _JPEG_EXTENDED and layout.bits_stored == 8) else "pylibjpeg"


def _check_native(dataset: "Dataset", layout: Layout, kind: str, name: str) -> None:
    """Native pixel data must be as long as the tags say; up to a row of padding at its end is passed over."""
    if dataset["PixelData"].is_undefined_length:
        raise DataError(f"{name}: says {kind}, but its pixels are compressed")
    samples = 2 if layout.photometric == "YBR_FULL_422" else layout.samples
    row = layout.columns * samples * layout.bits_allocated // 8
    found, needed = len(dataset.PixelData), layout.rows * row
    if not needed <= found < needed + max(row, 2):
        raise DataError(
            f"{name}: has {found} bytes of pixel data, but {layout.columns}x{layout.rows} pixels need {needed}"
        )


def _check_compressed(dataset: "Dataset", layout: Layout, uid: str, kind: str, name: str) -> None:
    """A compressed picture must be whole and of the size that the tags say."""
    if not dataset["PixelData"].is_undefined_length:
        raise DataError(f"{name}: says {kind}, but its pixels are not compressed")
    try:
        frame = next(iter(pydicom().encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
    except Exception:
        raise DataError(f"{name}: its compressed pixel data has no readable frame") from None
    if uid == _RLE:
        # Each two bytes of a run give at most 128; less than that cannot hold the picture.
        if len(frame) * 64 < math.prod((layout.rows, layout.columns, layout.samples, layout.bits_allocated // 8)):
            raise DataError(f"{name}: its pixel data is too short for {layout.columns}x{layout.rows} pixels")
        return
    size = codestream_size(frame)
    if size is None:
        raise DataError(f"{name}: its pixel data is no {kind} picture")
    if (size.rows, size.columns, size.components) != (layout.rows, layout.columns, layout.samples):
        raise DataError(
            f"{name}: its {kind} picture is {size.columns}x{size.rows} pixels of {size.components} samples, but its "
            f"tags say {layout.columns}x{layout.rows} of {layout.samples}"
        )
    if not is_whole(frame):
        raise DataError(f"{name}: its {kind} picture is cut off")


def _integer(dataset: "Dataset", keyword: str, name: str, default: int | None = None) -> int:
    try:
        value = dataset.get(keyword)
        return int(value) if value not in (None, "") else _required(keyword, name, default)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name}: its {keyword} is no whole number") from None


def _required(keyword: str, name: str, default: int | None) -> int:
    if default is None:
        raise DataError(f"{name}: has no {keyword}")
    return default


def _code(dataset: "Dataset", keyword: str) -> str:
    """A coded value, or "unknown" for what is none: free text of a file must not reach a message."""
    try:
        value = str(dataset.get(keyword) or "")
    except Exception:
        value = ""
    return value if re.fullmatch(r"[A-Z0-9_]{2,16}( COLOR)?", value) else "unknown"
