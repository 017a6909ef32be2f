"""Image files to the record's image: 8-bit grey JPEG, longest side at most the canvas, never enlarged.

In: the bytes of a file (JPEG, PNG, TIFF, BMP or WebP; 8 or 16 bits; grey, RGB, palette, CMYK; with alpha; with
an EXIF orientation). Out: `StoredImage`, JPEG bytes and size. A grey 8-bit JPEG that already fits passes through
byte for byte; it is decoded once all the same, so that no damaged file reaches training. Every policy for odd
files is in data_prep/README.md. Pure functions: the same bytes in give the same bytes out.
"""

import dataclasses
import io
import math
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from cxr_jax.data.records import DataError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
# Detectors deliver these depths; a 16-bit file says nothing of how many of its bits are used.
DETECTOR_BITS = (8, 10, 12, 14, 16)
MAX_PIXELS = 100_000_000  # four times the largest detectors; more is a forged or broken header
MASK_THRESHOLD = 128
_EXIF_ORIENTATION = 0x0112
_LFS_START = b"version https://git-lfs.github.com/spec/"
_PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How images are stored.

    Attributes:
      canvas: largest stored side in pixels; larger images are reduced, smaller ones kept.
      quality: JPEG quality 1-100 of images that are encoded anew.
      min_side: images with a shorter side below this many pixels are refused.
    """

    canvas: int = 512
    quality: int = 92
    min_side: int = 16


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """`jpeg` bytes, stored `height` and `width`, and the upright source's size (`source_height`, ...), in pixels."""

    jpeg: bytes
    height: int
    width: int
    source_height: int
    source_width: int


def store_image(data: bytes, name: str, settings: ImageSettings) -> StoredImage:
    """Converts the file contents `data` to the stored form; `name` is used in errors only.

    Raises DataError if the file is empty, truncated, damaged, of another format, multi-page, too large, smaller
    than `settings.min_side`, or of one single grey level.
    """
    image, upright = _decode(data, name)
    is_grey_jpeg = image.format == "JPEG" and image.mode == "L" and upright
    grey = to_grey8(image, name) if upright else to_grey8(ImageOps.exif_transpose(image), name)
    _check_picture(grey, name, settings)
    width, height = grey.size
    if is_grey_jpeg and max(width, height) <= settings.canvas:
        return StoredImage(data, height, width, height, width)
    return _fit_and_encode(grey, settings)


def store_grey(grey: Image.Image, name: str, settings: ImageSettings) -> StoredImage:
    """Stores a decoded upright mode "L" image; raises DataError as `store_image` does for what shows nothing."""
    _check_picture(grey, name, settings)
    return _fit_and_encode(grey, settings)


def _check_picture(grey: Image.Image, name: str, settings: ImageSettings) -> None:
    width, height = grey.size
    if min(width, height) < settings.min_side:
        raise DataError(f"{name}: is {width}x{height} pixels; the shorter side must be at least {settings.min_side}")
    low, high = grey.getextrema()
    if low == high:
        raise DataError(f"{name}: every pixel is {low}, so it shows nothing")


def _fit_and_encode(grey: Image.Image, settings: ImageSettings) -> StoredImage:
    stored = grey.resize(fit_size(*grey.size, settings.canvas), Image.Resampling.LANCZOS)
    return StoredImage(encode_jpeg(stored, settings.quality), stored.height, stored.width, grey.height, grey.width)


def store_mask(data: bytes, name: str, image: StoredImage) -> bytes:
    """Converts a mask file to a PNG of 0 and 255 with the size of the stored image.

    Raises DataError if the file cannot be decoded or has not the size of the source image.
    """
    mask, _ = _decode(data, name)
    if mask.size != (image.source_width, image.source_height):
        found, expected = f"{mask.width}x{mask.height}", f"{image.source_width}x{image.source_height}"
        raise DataError(f"{name}: the mask is {found} pixels, its image {expected}; they must be equal")
    grey = to_grey8(mask, name).resize((image.width, image.height), Image.Resampling.BILINEAR)
    return encode_mask(np.asarray(grey) >= MASK_THRESHOLD)


def fit_size(width: int, height: int, canvas: int) -> tuple[int, int]:
    """(width, height) in pixels reduced to a longest side of `canvas`; unchanged if that already fits."""
    scale = min(1.0, canvas / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Baseline grey JPEG of a mode "L" image."""
    buffer = io.BytesIO()
    # Huffman tables of its own: the same pixels in 4 to 6 % fewer bytes, which every epoch reads and decodes faster.
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """PNG bytes of a boolean mask [h, w]: 255 where True."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(data: bytes, name: str) -> tuple[Image.Image, bool]:
    """The wholly decoded image, and whether it is upright as stored (no EXIF orientation)."""
    if not data:
        raise DataError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if math.prod(image.size) > MAX_PIXELS:
            raise DataError(f"{name}: declares {image.width}x{image.height} pixels; at most {MAX_PIXELS} are legal")
        if image.format != "JPEG" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"{name}: holds {image.n_frames} pages; one picture a file is legal")
        image.load()
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: {_why_no_image(data)}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: declares far more pixels than the {MAX_PIXELS} that are legal") from None
    # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise DataError(f"{name}: is damaged ({' '.join(str(error).split()) or type(error).__name__})") from None
    return image, upright


def git_lfs_pointer(data: bytes) -> str:
    """What to do about a file that is a Git LFS pointer; "" for any other file."""
    return "is a Git LFS pointer: fetch the file itself (git lfs pull)" if data.startswith(_LFS_START) else ""


def _why_no_image(data: bytes) -> str:
    """What a file without a picture is instead, from its first bytes."""
    start = data[:256].lstrip().lower()
    if pointer := git_lfs_pointer(data):
        return pointer
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page, so its download failed; fetch the file itself"
    if data[128:132] == b"DICM":
        return "is a DICOM file; --reader=dicom_folder reads those"
    if data.startswith(_PNG_START):
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        return f"is a PNG of {width}x{height} pixels with no readable picture"
    return f"is no image; legal formats: {', '.join(FORMATS)}"


def to_grey8(image: Image.Image, name: str) -> Image.Image:
    """Mode "L" of a decoded image: alpha is laid on black, colour goes by ITU-R 601 luma, 16 bits are shifted.

    A 16-bit image is shifted right by its depth minus 8; its depth is the smallest of `DETECTOR_BITS` that holds
    its maximum, so a 12-bit detector stored in 16 bits is not shown almost black. Raises DataError for
    floating-point pixels and for more than 16 bits.
    """
    if image.mode.startswith(("I", "F")):
        return _shift_to_8_bits(np.asarray(image), name)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.composite(rgba.convert("L"), Image.new("L", rgba.size, 0), rgba.getchannel("A"))
    if image.mode == "P":
        return image.convert("RGB").convert("L")
    return image.convert("L")


def _shift_to_8_bits(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype.kind == "f":
        raise DataError(f"{name}: has floating-point pixels; 8 or 16 bits are legal")
    if pixels.min() < 0 or int(pixels.max()).bit_length() > DETECTOR_BITS[-1]:
        raise DataError(f"{name}: has pixels from {pixels.min()} to {pixels.max()}; 0 to 65535 are legal")
    used = int(pixels.max()).bit_length()
    depth = next(bits for bits in DETECTOR_BITS if bits >= used)
    return Image.fromarray((pixels >> (depth - 8)).astype(np.uint8))
