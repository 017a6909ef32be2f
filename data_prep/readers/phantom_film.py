"""From path lengths to a film: vessels, attenuation, scatter, noise, exposure, collimation, marker.

In: a `Thorax` and the image's random generator. Out: 8-bit grey pixels [h, w], dense tissue white. The detector sees
I = exp(-sum_i mu_i t_i) (Beer-Lambert) plus scatter; the film shows its logarithm through an S-shaped curve.
"""

import numpy as np
from PIL import Image, ImageDraw

from data_prep.readers.phantom_anatomy import Thorax

MU_WATER, MU_BONE = 0.20, 0.36  # per cm, at the effective energy of a chest exposure; bone beyond the water it replaces
_SUPERSAMPLE = 2
_BRANCH_LEVELS = 5
# Strokes of the side markers on a 4 x 6 grid.
_LETTERS = {
    "R": ((0, 6), (0, 0), (3, 0), (4, 1), (4, 2), (3, 3), (0, 3), (1, 3), (4, 6)),
    "L": ((0, 0), (0, 6), (4, 6)),
}


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise [h, w] of mean 0 and deviation 1 that varies over 1/`cells` of the height."""
    h, w = shape
    small = rng.standard_normal((cells, max(2, round(cells * w / h))), dtype=np.float32)
    noise = _resized(small, (w, h))
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def add_vessels(thorax: Thorax, rng: np.random.Generator, pixel: float, height: float) -> None:
    """Draws the vessels that branch from both hila into `thorax.vessels`, path lengths in cm."""
    h, w = thorax.x.shape
    canvas = Image.new("F", (w * _SUPERSAMPLE, h * _SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    to_column, to_row = _pixel_of(thorax)
    for side in (-1, 1):
        x, y, angle, length, radius = _vessel_tree(rng, side, 0.42 * height)
        order = np.argsort(radius)
        x1, y1 = x + length * np.cos(angle) * side, y + length * np.sin(angle)
        ends = np.stack([to_column(x, y), to_row(x, y), to_column(x1, y1), to_row(x1, y1)], 1) * _SUPERSAMPLE
        for end, r in zip(ends[order].tolist(), radius[order].tolist(), strict=True):
            thickness = 2 * r * _SUPERSAMPLE / pixel
            draw.line(end, fill=9.0 * r * min(1.0, thickness), width=max(1, round(thickness)))
    vessels = np.asarray(canvas.reduce(_SUPERSAMPLE))
    thorax.vessels += vessels * np.clip(thorax.lung / 6, 0, 1)
    for side in (-1, 1):
        distance = ((thorax.x - side * 3.7) / 1.5) ** 2 + ((thorax.y - 0.44 * height) / 2.4) ** 2
        thorax.vessels += 1.6 * np.exp(-distance)


def expose(thorax: Thorax, rng: np.random.Generator, bedside: bool) -> np.ndarray:
    """The displayed film, float32 [h, w] in 0..1, of the thorax under a random exposure and processing."""
    h, w = thorax.x.shape
    texture = 1 + 0.05 * smooth_noise(rng, (h, w), h // 3) + 0.06 * smooth_noise(rng, (h, w), 24)
    air = np.minimum(thorax.lung, thorax.body) * (1 - thorax.density * texture)
    water = np.maximum(thorax.body - air, 0) + thorax.vessels + 0.25 * thorax.heart
    water *= 1 + 0.012 * smooth_noise(rng, (h, w), 12)
    direct = np.exp(-(MU_WATER * water + MU_BONE * thorax.bone))
    scatter = rng.uniform(0.10, 0.22) if bedside else rng.uniform(0.03, 0.10)
    signal = direct + scatter * _blurred(direct, 9)
    photons = rng.uniform(4000, 12000) if bedside else rng.uniform(10000, 50000)
    grain = rng.standard_normal((h, w), dtype=np.float32) * np.sqrt(signal / photons)
    density = -np.log(np.maximum(signal + grain, 2e-3))
    low, high = np.percentile(density[thorax.body > 2][::7], (1, 99))
    # Processing evens out large differences of brightness and keeps local contrast.
    density = density + rng.uniform(0.1, 0.6) * (density - _blurred(density, 20))
    centre = low + (high - low) * rng.uniform(0.40, 0.56)
    slope = rng.uniform(2.9, 4.4) / (high - low)
    return 1 / (1 + np.exp(-slope * (density - centre)))


def finish(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [h, w]: brightness range, collimation borders and a side marker."""
    film = np.clip((film - 0.06) / 0.88, 0, 1) ** rng.uniform(0.8, 1.2)
    h, w = film.shape
    pixels = (film * rng.uniform(225, 255)).astype(np.uint8)
    if rng.random() < 0.3:
        top, bottom = (int(h * rng.uniform(0, 0.05)) for _ in range(2))
        left, right = (int(w * rng.uniform(0, 0.05)) for _ in range(2))
        black = np.ones((h, w), bool)
        black[top : h - bottom, left : w - right] = False
        pixels[black] = rng.integers(0, 12)
    if rng.random() < 0.8:
        letter = "R" if rng.random() < 0.35 else "L"
        size = h * rng.uniform(0.005, 0.009)
        column = w * (rng.uniform(0.04, 0.12) if letter == "R" else rng.uniform(0.85, 0.92))
        row = h * rng.uniform(0.03, 0.10)
        image = Image.fromarray(pixels)
        strokes = [(column + size * x, row + size * y) for x, y in _LETTERS[letter]]
        ImageDraw.Draw(image).line(strokes, fill=int(rng.integers(230, 256)), width=max(1, round(size)))
        pixels = np.asarray(image)
    return pixels


def _vessel_tree(rng: np.random.Generator, side: int, hilum_y: float) -> tuple[np.ndarray, ...]:
    """Start x, y, angle, length and radius of every vessel of one lung, in cm; angle 0 points to the side."""
    count = 13
    angle = np.linspace(-1.45, 1.35, count) + rng.normal(0, 0.12, count)
    x, y = np.full(count, 3.0 * side), hilum_y + rng.normal(0, 0.9, count)
    length, radius = rng.uniform(1.2, 2.6, count), rng.uniform(0.13, 0.27, count)
    levels = []
    for _ in range(_BRANCH_LEVELS):
        levels.append((x, y, angle, length, radius))
        x, y = x + length * np.cos(angle) * side, y + length * np.sin(angle)
        spread = rng.uniform(0.1, 0.55, len(x))
        angle = np.concatenate([angle + spread, angle - rng.uniform(0.1, 0.5, len(x))])
        x, y = np.tile(x, 2), np.tile(y, 2)
        length = np.tile(length, 2) * rng.uniform(0.7, 1.05, len(x))
        radius = np.tile(radius, 2) * rng.uniform(0.62, 0.84, len(x))
    return tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))


def _pixel_of(thorax: Thorax):
    """Functions from cm to fractional column and row: the grid is an affine map."""
    h, w = thorax.x.shape
    rows, columns = np.array([0, 0, h - 1]), np.array([0, w - 1, 0])
    known = np.stack([thorax.x[rows, columns], thorax.y[rows, columns], np.ones(3)], 1).astype(np.float64)
    column, row = np.linalg.solve(known, columns + 0.5), np.linalg.solve(known, rows + 0.5)
    return (
        lambda x, y: column[0] * x + column[1] * y + column[2],
        lambda x, y: row[0] * x + row[1] * y + row[2],
    )


def _blurred(values: np.ndarray, cells: int) -> np.ndarray:
    h, w = values.shape
    image = Image.fromarray(values.astype(np.float32))
    small = image.resize((max(2, round(cells * w / h)), cells), Image.Resampling.BOX)
    return _resized(np.asarray(small), (w, h))


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
