"""Who is radiographed and how: the phantom's patients and exams, and the pixel grid of an exam.

In: random generators. Out: `Patient` (shared by all images of a patient), `Exam` (one image), and the coordinates
of the pixels in centimetres.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Patient:
    """What stays the same in all images of a patient; lengths in cm."""

    female: bool
    age_years: float
    chest_half_width: float
    lung_height: float
    half_depth: float
    wall: float
    heart_scale: float
    heart_tilt_rad: float
    rib_spacing: float
    rib_tilt: float
    breast: float
    spine_curve: float
    vessel_seed: int


@dataclasses.dataclass(frozen=True)
class Exam:
    """What differs between images of a patient. `inspiration` scales the lungs' height; lengths in cm."""

    view: str
    inspiration: float
    rotation_rad: float
    shift_x: float
    shift_y: float
    field_width: float
    heart_magnification: float
    scapula_x: float
    stomach_gas: bool


def draw_patient(rng: np.random.Generator) -> Patient:
    """A patient of either sex; men are larger on average, women have breast shadows."""
    female = bool(rng.random() < 0.48)
    size = rng.normal(0.93 if female else 1.03, 0.05)
    return Patient(
        female=female,
        age_years=float(np.clip(rng.normal(54, 18), 18, 95).round()),
        chest_half_width=13.3 * size * rng.uniform(0.96, 1.04),
        lung_height=22.5 * size * rng.uniform(0.93, 1.06),
        half_depth=10.0 * size * rng.uniform(0.9, 1.15),
        wall=rng.uniform(1.4, 4.0),
        heart_scale=rng.uniform(0.92, 1.06),
        heart_tilt_rad=rng.uniform(0.45, 0.85),
        rib_spacing=rng.uniform(2.25, 2.6) * size,
        rib_tilt=rng.uniform(4.2, 6.0),
        breast=rng.uniform(1.2, 3.4) if female else 0.0,
        spine_curve=rng.normal(0, 0.35),
        vessel_seed=int(rng.integers(2**31)),
    )


def draw_exam(rng: np.random.Generator) -> Exam:
    """An upright PA film or a bedside AP one (larger heart, shallower breath, scapulae over the lungs)."""
    pa = rng.random() < 0.6
    return Exam(
        view="PA" if pa else "AP",
        inspiration=rng.uniform(0.93, 1.05) if pa else rng.uniform(0.78, 0.95),
        rotation_rad=rng.normal(0, 0.015 if pa else 0.035),
        shift_x=rng.normal(0, 0.5 if pa else 1.0),
        shift_y=rng.normal(0, 0.7 if pa else 1.3),
        field_width=rng.uniform(31, 36.5),
        heart_magnification=1.0 if pa else rng.uniform(1.08, 1.18),
        scapula_x=rng.uniform(13.5, 15.5) if pa else rng.uniform(10.5, 12.5),
        stomach_gas=bool(rng.random() < 0.6),
    )


def grid(height: int, width: int, exam: Exam) -> tuple[np.ndarray, np.ndarray, float]:
    """Centimetre coordinates x, y [h, w] of the pixels, and the size of a pixel in cm."""
    pixel = exam.field_width / width
    x = (np.arange(width, dtype=np.float32) - width / 2 + 0.5) * pixel - exam.shift_x
    y = (np.arange(height, dtype=np.float32) + 0.5) * pixel - 4.3 - exam.shift_y
    x, y = np.meshgrid(x, y)
    cos, sin = np.float32(np.cos(exam.rotation_rad)), np.float32(np.sin(exam.rotation_rad))
    middle = np.float32(12.0)
    return cos * x - sin * (y - middle), sin * x + cos * (y - middle) + middle, pixel
