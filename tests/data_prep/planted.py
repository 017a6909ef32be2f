"""Pictures for the tests of curation: a crude chest that no other one resembles, and its near duplicates."""

import io

import numpy as np
from PIL import Image


def chest(seed: int, side: int = 96) -> Image.Image:
    """Smooth noise of a radiograph's smoothness; two seeds give hashes far apart."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(20, 236, (9, 9), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int = 92, **more) -> bytes:
    """JPEG bytes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **more)
    return buffer.getvalue()


def smaller(image: Image.Image) -> Image.Image:
    """Two thirds of the size."""
    return image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)


def brighter(image: Image.Image) -> Image.Image:
    """Another brightness and contrast."""
    return image.point(lambda value: min(255, int(value * 0.8 + 30)))
