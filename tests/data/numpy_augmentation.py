"""The augmentation written again in float64 NumPy, from the published formulas: what the tests compare with.

In: grey pictures in 0..1 (or uint8 levels for `pil_*`) and drawn numbers. Out: the same picture after a stage.
`random_resized_crop` is torchvision's algorithm; the `pil_*` functions are what PIL does to 8-bit images.
"""

import math

import numpy as np


def cubic(x):
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resize_rows(x, out):
    """Antialiased bicubic of the first axis, output pixel by output pixel."""
    n = len(x)
    scale = n / out
    widen = max(scale, 1.0)
    rows = []
    for i in range(out):
        weights = cubic((np.arange(n) + 0.5 - (i + 0.5) * scale) / widen)
        rows.append(weights @ x / weights.sum())
    return np.array(rows)


def crop_and_resize(image, box, side):
    """Cut first, then resize what was cut, horizontally and then vertically, clipped after each."""
    top, left, height, width = (int(number) for number in box)
    crop = image[top : top + height, left : left + width]
    horizontal = np.clip(resize_rows(crop.T, side).T, 0, 1)
    return np.clip(resize_rows(horizontal, side), 0, 1)


def brighten(x, factor):
    return np.clip(factor * x, 0, 1)


def contrast(x, factor):
    return np.clip(factor * x + (1 - factor) * x.mean(), 0, 1)


def gaussian_taps(sigma):
    taps = np.array([math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-4, 5)])
    return taps / taps.sum()


def blur(x, sigma):
    """Nine taps along each axis over a picture padded by reflection."""
    taps, padded = gaussian_taps(sigma), np.pad(x, 4, mode="reflect")
    rows = sum(tap * padded[i : i + x.shape[0]] for i, tap in enumerate(taps))
    return sum(tap * rows[:, i : i + x.shape[1]] for i, tap in enumerate(taps))


def solarise(x):
    return np.where(x >= 128 / 255, 1 - x, x)


def random_resized_crop(rng, size, scale, aspect):
    """torchvision's `RandomResizedCrop.get_params`: top, left, height, width, and whether one of ten tries fitted."""
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w, True
    ratio = width / height
    if ratio < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif ratio > aspect[1]:
        w, h = round(height * aspect[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w, False


def pil_blend(other, x, factor):
    """`Image.blend`, to which both enhancers come down: other + factor (x - other), cut to 0..255, fraction dropped."""
    blended = other + np.float32(factor) * (x.astype(np.float32) - other)
    return np.clip(blended, 0, 255).astype(np.uint8)


def pil_brighten(x, factor):
    return pil_blend(np.float32(0), x, factor)


def pil_contrast(x, factor):
    """About the mean grey level, rounded."""
    return pil_blend(np.float32(int(x.mean() + 0.5)), x, factor)


def pil_blur(x, sigma):
    """torchvision blurs in floating point and rounds."""
    return np.round(blur(x.astype(np.float64), sigma)).astype(np.uint8)


def pil_solarise(x):
    return np.where(x < 128, x, 255 - x).astype(np.uint8)
