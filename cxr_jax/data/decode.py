"""JPEG bytes to a fixed grey canvas: all that a data thread does.

In: the bytes of an 8-bit grey JPEG. Out: `[H, W]` uint8 with the image at the top left and zeros beyond, and its true
size. The decoder releases the interpreter lock, so threads scale.
"""

import numpy as np
import simplejpeg

from cxr_jax.data.records import DataError


def decode_grey(data: bytes, name: str) -> np.ndarray:
    """Decode a JPEG to `[h, w]` uint8. Raises DataError naming the record for anything damaged."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)[:, :, 0]
    except ValueError as error:
        raise DataError(f"{name}: damaged JPEG ({error}); run data_prep.validate or build the dataset again") from None


def decode_to_canvas(data: bytes, canvas: np.ndarray, name: str) -> tuple[int, int]:
    """Decode into the top left of `canvas`, which is zero, and return the image's height and width.

    Raises DataError when the image is larger than the canvas.
    """
    image = decode_grey(data, name)
    height, width = image.shape
    if height > canvas.shape[0] or width > canvas.shape[1]:
        raise DataError(f"{name}: {height}x{width} px does not fit the canvas of {canvas.shape[0]}x{canvas.shape[1]}")
    canvas[:height, :width] = image
    return height, width
