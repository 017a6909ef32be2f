"""What a stored picture is compared by: a digest of its pixels, a 256-bit difference hash, a 64x64 thumbnail.

In: the record's JPEG. Out: `Signature`. The difference hash reduces the picture to 16 rows of 17 grey levels and keeps
the sign of each step to the right: it survives another size, another JPEG quality, brightness and contrast, not a flip,
a crop or an inversion. Two pictures are near duplicates if their hashes differ in few bits and their thumbnails
correlate. Pure functions of the pixels.
"""

import dataclasses
import hashlib

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8, UInt64
from PIL import Image

from cxr_jax.data.records import DataError

HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE
HASH_WORDS = HASH_BITS // 64
THUMB_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Signature:
    """`pixels_sha256` 32 bytes over size and pixels, `dhash` uint64 [4], `thumb` uint8 [64, 64]."""

    pixels_sha256: bytes
    dhash: UInt64[np.ndarray, "4"]
    thumb: UInt8[np.ndarray, "64 64"]


def decode_grey(jpeg: bytes, name: str) -> UInt8[np.ndarray, "h w"]:
    """The pixels of a record's JPEG; raises DataError, naming the record, if it cannot be decoded."""
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[:, :, 0]
    except ValueError as error:
        raise DataError(f"{name}: its JPEG cannot be decoded ({str(error).strip()})") from None


def sign(pixels: UInt8[np.ndarray, "h w"]) -> Signature:
    """The signature of a decoded picture of any size."""
    digest = hashlib.sha256(np.asarray(pixels.shape, "<i4").tobytes())
    digest.update(np.ascontiguousarray(pixels))
    image = Image.fromarray(pixels)
    # Means over boxes, rounded to whole grey levels: a flat margin has no steps, so JPEG noise in it sets no bits.
    small = np.asarray(image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumb = np.asarray(image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX))
    return Signature(digest.digest(), bits.view("<u8").astype(np.uint64), thumb)


def normalised(thumbs: UInt8[np.ndarray, "n 64 64"]) -> Float32[np.ndarray, "n 4096"]:
    """Thumbnails of mean 0 and norm 1, so that a dot product is their correlation; zeros for a flat one."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
