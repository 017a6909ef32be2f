"""JPEG bytes to a fixed grey canvas: all that a data thread does, and PNG masks to one where they are asked for.

In: the bytes of an 8-bit grey JPEG, or of a PNG mask of 0 and 255. Out: `[H, W]` uint8 with the image at the top left
and zeros beyond, and its true size. The JPEG decoder releases the interpreter lock, so threads scale.
"""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from cxr_jax.data.records import DataError


def decode_grey(data: bytes | memoryview, name: str) -> UInt8[np.ndarray, "h w"]:
    """Decode a JPEG to `[h, w]` uint8. Raises DataError naming the record for anything damaged."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)[:, :, 0]
    except ValueError as error:
        raise DataError(f"{name}: damaged JPEG ({error}); run data_prep.validate or build the dataset again") from None


def decode_to_canvas(data: bytes | memoryview, canvas: UInt8[np.ndarray, "H W"], name: str) -> tuple[int, int]:
    """Decode into the top left of `canvas`, which is contiguous, zeros beyond; return the image's height and width.

    Raises DataError when the image is damaged or larger than the canvas.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if height > canvas.shape[0] or width > canvas.shape[1]:
            raise DataError(
                f"{name}: {height}x{width} px does not fit the canvas of {canvas.shape[0]}x{canvas.shape[1]}"
            )
        if width == canvas.shape[1]:
            # The decoder's rows are the canvas's rows: nothing is copied.
            simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True, buffer=canvas[:height])
        else:
            canvas[:height, :width] = simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)[:, :, 0]
            canvas[:height, width:] = 0
    except ValueError as error:
        raise DataError(f"{name}: damaged JPEG ({error}); run data_prep.validate or build the dataset again") from None
    canvas[height:] = 0
    return height, width


def decode_mask_to_canvas(data: bytes, canvas: UInt8[np.ndarray, "H W"], size: tuple[int, int], name: str) -> None:
    """Decode a mask of 0 and 255 into the top left of `canvas`, zeros beyond.

    Raises DataError when it is no PNG or has another height and width than its image's `size`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            mask = np.asarray(picture.convert("L"))
    # Pillow's decoder raises many types on damaged files (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise DataError(
            f"{name}: damaged mask ({type(error).__name__}); run data_prep.validate or build the dataset again"
        ) from None
    if mask.shape != size:
        found, expected = (f"{height}x{width}" for height, width in (mask.shape, size))
        raise DataError(f"{name}: its mask is {found} px, its image {expected}; build the dataset again")
    canvas[: size[0], : size[1]] = mask
    canvas[size[0] :] = 0
    canvas[: size[0], size[1] :] = 0
