"""DICOM files to the record's image: 8-bit grey JPEG, as `images.store_image` does it for image files.

In: the bytes of a file. Out: `StoredImage`. A grey picture goes through the steps of the standard (PS3.3 C.7.6.3,
C.11.1, C.11.2), each over the values that occur, so that a picture costs one table look-up:

    stored value -> modality LUT or slope * v + intercept -> VOI LUT or first window -> 0..255 -> MONOCHROME1 inverted

LINEAR windows map x to ((x - (c - 0.5)) / (w - 1) + 0.5) * 255, LINEAR_EXACT ((x - c) / w + 0.5) * 255, SIGMOID
255 / (1 + exp(-4 (x - c) / w)). Pixels of padding count for nothing and become black. Every policy is in
data_prep/README.md. Pure functions: the same bytes in give the same bytes out.
"""

import math
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cxr_jax.data.records import DataError
from data_prep.dicom_file import pydicom, read
from data_prep.dicom_frame import COLOUR, PALETTE, PIXEL_KEYWORDS, Layout, check_layout, stored_values
from data_prep.images import DETECTOR_BITS, ImageSettings, StoredImage, store_grey

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

KEYWORDS = (
    *PIXEL_KEYWORDS, "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)  # fmt: skip


def store_dicom(data: bytes, name: str, settings: ImageSettings) -> StoredImage:
    """Converts the DICOM file `data` to the stored form; `name` is used in errors only.

    Raises DataError if the file is no DICOM image, is damaged, cut off or contradicts itself, holds several frames, is
    too large, smaller than `settings.min_side`, or of one single grey level. No message quotes a value of the file
    other than numbers and codes of its pixel description. Raises FlagError where pydicom is not installed.
    """
    return store_grey(Image.fromarray(decode_dicom(data, name)), name, settings)


def decode_dicom(data: bytes, name: str) -> np.ndarray:
    """The upright 8-bit grey picture [h, w] of a DICOM file at its full size; raises as `store_dicom` does."""
    dataset = read(data, name, KEYWORDS, pixels=True)
    try:
        layout = check_layout(dataset, name, data)
        values = stored_values(dataset, layout, name)
        if layout.photometric in COLOUR:
            return _luma(values)
        if layout.photometric == PALETTE:
            return _luma(_palette_colours(dataset, values, name))
        return _render(dataset, layout, values, name)
    except DataError:
        raise
    # Whatever else is malformed in the elements; their texts may quote values of the file.
    except Exception:
        raise DataError(f"{name}: is a damaged DICOM file: its pixel description cannot be used") from None


def _render(dataset: "Dataset", layout: Layout, stored: np.ndarray, name: str) -> np.ndarray:
    """A grey picture's stored values [h, w] to 0..255."""
    stored = stored.astype(np.int32)
    padding = _padding(dataset, layout, stored)
    kept = stored if padding is None else stored[~padding]
    if not kept.size:
        raise DataError(f"{name}: every pixel is padding, so it shows nothing")
    low, high = int(kept.min()), int(kept.max())
    occurs = np.bincount((kept - low).ravel(), minlength=high - low + 1) > 0
    values = _modality(dataset, np.arange(low, high + 1))
    grey = _voi(dataset, values)
    # A window that leaves one single grey was not made for these pixels.
    if grey is None or np.ptp(np.rint(grey[occurs])) == 0:
        grey = _full_range(layout, values, occurs)
    table = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    if layout.photometric == "MONOCHROME1":
        table = 255 - table
    picture = table[np.clip(stored, low, high) - low]
    if padding is not None:
        picture[padding] = 0
    return picture


def _padding(dataset: "Dataset", layout: Layout, stored: np.ndarray) -> np.ndarray | None:
    """True [h, w] where a pixel is padding (PS3.3 C.7.5.1.1.2), None without such pixels."""
    first = _numbers(dataset, "PixelPaddingValue")
    if not first:
        return None
    last = _numbers(dataset, "PixelPaddingRangeLimit") or first
    low, high = sorted(_as_stored(value, layout) for value in (first[0], last[0]))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def _as_stored(value: float, layout: Layout) -> int:
    """A padding value as the pixels hold it: bits above the highest masked, and the sign read from the top one."""
    masked = int(value) & ((1 << layout.bits_stored) - 1)
    return masked - (1 << layout.bits_stored) if layout.signed and masked >> (layout.bits_stored - 1) else masked


def _modality(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """Stored values to the modality's: its LUT, or slope and intercept (float64); unchanged without either."""
    if table := dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, table[0], stored)[0]
    slope, intercept = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    if not slope or not intercept or (slope[0], intercept[0]) == (1, 0) or slope[0] == 0:
        return stored
    return stored * slope[0] + intercept[0]


def _voi(dataset: "Dataset", values: np.ndarray) -> np.ndarray | None:
    """Values to 0..255 by the first VOI LUT, else by the first window; None where neither is usable."""
    if tables := dataset.get("VOILUTSequence"):
        output, depth = _look_up(dataset, tables[0], values)
        return output * (255 / (2**depth - 1))
    centres, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    if not centres or not widths:
        return None
    centre, width = centres[0], widths[0]
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if width <= 0 or (width < 1 and function == "LINEAR"):
        return None
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1) * 255
    if width == 1:
        return np.where(values <= centre - 0.5, 0.0, 255.0)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


def _full_range(layout: Layout, values: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """Without a window: 8 bits as they are, anything deeper from its smallest to its largest value."""
    if layout.bits_stored == 8 and not layout.signed and values.dtype.kind == "i":
        return values.astype(np.float64)
    low, high = float(values[occurs].min()), float(values[occurs].max())
    return (values - low) * (255 / (high - low)) if high > low else np.zeros(len(values))


def _look_up(dataset: "Dataset", table: "Dataset", values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values through a LUT item (PS3.3 C.11.1.1), and the bits of its output.

    Values outside the table meet its first or last entry. The depth is the declared one, or less where the entries use
    fewer of `DETECTOR_BITS`: writers declare 16 for 12.
    """
    entries, first, depth = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):
        little = dataset.original_encoding[1]
        wide = len(data) >= 2 * (entries or 2**16)
        data = np.frombuffer(data, ("<u2" if little else ">u2") if wide else np.uint8)
    output = np.atleast_1d(np.asarray(data, np.int64))[: entries or 2**16]
    if first >= 2**15 and values.min() < 0:  # a signed number written as an unsigned one
        first -= 2**16
    used = next(bits for bits in DETECTOR_BITS if int(output.max()) < 2**bits)
    index = np.clip(np.floor(values).astype(np.int64) - first, 0, len(output) - 1)
    return output[index], min(depth, used) if 1 <= depth <= 16 else used


def _palette_colours(dataset: "Dataset", values: np.ndarray, name: str) -> np.ndarray:
    try:
        colours = pydicom().pixels.apply_color_lut(values, dataset)
    except Exception:
        raise DataError(f"{name}: is PALETTE COLOR without a usable palette") from None
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours


def _luma(colours: np.ndarray) -> np.ndarray:
    """RGB uint8 [h, w, 3] to ITU-R 601 luma [h, w], as `images.to_grey8` does."""
    return np.asarray(Image.fromarray(colours).convert("L"))


def _numbers(dataset: "Dataset", keyword: str) -> list[float]:
    """The numbers of an optional element; none where it is absent, empty or malformed."""
    try:
        value = dataset.get(keyword)
        parts = value if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, OverflowError, NotImplementedError, struct.error):
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []
