"""What audits look at in the pixels: borders, and thumbnails to tell copies by.

In: a split. Out: `Pixels`, one row an image, from one pass that decodes each image once.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from cxr_jax.data.source import Split
from cxr_jax.data.steps import load_rows

THUMBNAIL = 32  # px
MARGIN, CORNER = 0.04, 0.12  # shares of the shorter side
BLACK, WHITE = 8, 247  # grey levels that count as black (collimation, padding) and white (letters)
CHUNK, THREADS = 64, 4
BORDER_FEATURES = 4 * 4 + 4 * 2


@dataclass(frozen=True)
class Pixels:
    """`borders`: `border_statistics` of each image; `thumbnails`: stretched to a square, mean 0 and length 1."""

    borders: Float[np.ndarray, "n 24"]
    thumbnails: Float[np.ndarray, "n 32 32"]


def read_pixels(split: Split) -> Pixels:
    """Decode every image of the split once."""
    borders = np.empty((len(split), BORDER_FEATURES))
    thumbnails = np.empty((len(split), THUMBNAIL, THUMBNAIL), np.float32)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(split), CHUNK):
            rows = range(start, min(start + CHUNK, len(split)))
            loaded = load_rows(split, rows, pool=pool, threads=THREADS)
            for at, canvas, (height, width) in zip(rows, loaded["image"], loaded["size"], strict=True):
                image = canvas[:height, :width]
                borders[at], thumbnails[at] = border_statistics(image), thumbnail(image)
    return Pixels(borders, thumbnails)


def border_statistics(image: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "24"]:
    """Mean, deviation, share of black and of white of the four border strips; mean and deviation of the four
    corners."""
    margin, corner = (max(1, round(share * min(image.shape))) for share in (MARGIN, CORNER))
    strips = (image[:margin], image[-margin:], image[:, :margin], image[:, -margin:])
    corners = [
        image[y, x] for y in (slice(corner), slice(-corner, None)) for x in (slice(corner), slice(-corner, None))
    ]
    values = [(s.mean(), s.std(), 255 * (s <= BLACK).mean(), 255 * (s >= WHITE).mean()) for s in strips]
    values += [(c.mean(), c.std()) for c in corners]
    return np.concatenate([np.array(value, np.float64) for value in values]) / 255


def thumbnail(image: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "32 32"]:
    """Area average of the image, centred and scaled to length 1, so that products of thumbnails are correlations.

    An image without contrast becomes zeros, which are like nothing.
    """
    rows, columns = (_shares(length) for length in image.shape)
    small = rows @ image.astype(np.float32) @ columns.T
    small -= small.mean()
    length = np.linalg.norm(small)
    return small / length if length > 1e-3 else np.zeros_like(small)


def _shares(length: int) -> Float[np.ndarray, "32 length"]:
    """Share of each pixel of a side in each pixel of the thumbnail's side; rows sum to 1."""
    edges, starts = np.arange(THUMBNAIL + 1) * length / THUMBNAIL, np.arange(length)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.clip(covered, 0, None) * THUMBNAIL / length).astype(np.float32)
