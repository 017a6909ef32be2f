"""The phantom's thorax: analytic organs projected along the beam.

In: a patient, an exam and a pixel grid in centimetres (x to the image's right = the patient's left, y down, origin
at the midline on the level of the lung apices). Out: `Thorax`, maps [h, w] of tissue and air path lengths in cm.
A parallel beam crosses each organ along a chord, so an ellipsoid projects to 2 c sqrt(1 - (x/a)^2 - (y/b)^2).
"""

import dataclasses

import numpy as np

from data_prep.readers.phantom_patient import Exam, Patient

RIBS = 11
CLAVICLE_BONE, SPINE_BONE, RIB_BONE = 1.0, 1.1, 1.9  # cm of bone along the beam


@dataclasses.dataclass
class Thorax:
    """Maps [h, w]: `x`, `y` in cm; `body`, `lung`, `heart`, `bone` path lengths in cm; `density` of lung
    relative to water; `vessels` path length of blood in the lung; `field`: where lung is seen clear of heart,
    mediastinum and diaphragm. `lateral` is the chest wall's half width and `dome` the diaphragm's y, both per
    pixel. `half_width` and `height` of the lungs in cm give the chest wall at any y (`chest_wall`)."""

    x: np.ndarray
    y: np.ndarray
    body: np.ndarray
    lung: np.ndarray
    heart: np.ndarray
    bone: np.ndarray
    density: np.ndarray
    vessels: np.ndarray
    field: np.ndarray
    lateral: np.ndarray
    dome: np.ndarray
    half_width: float
    height: float


def build_thorax(patient: Patient, exam: Exam, x: np.ndarray, y: np.ndarray, heart_scale: float) -> Thorax:
    """All organs of a healthy patient but for the heart, whose width is scaled by `heart_scale`."""
    height = patient.lung_height * exam.inspiration
    side, far = np.sign(x), np.abs(x)
    lateral = chest_wall(y, patient.chest_half_width, height)
    dome = _diaphragm(far, side, patient.chest_half_width, height)
    heart = _heart(patient, exam, x, y, height, heart_scale)
    middle = _mediastinum(x, y / height, patient)
    chord = np.sqrt(np.clip(1 - (far / np.maximum(lateral, 0.1)) ** 2, 0, 1))
    lung = 1.75 * patient.half_depth * chord**0.75 * np.clip(y / height + 0.35, 0, 1) ** 0.5 * (y > -1)
    # Behind the dome the lung reaches further down: seen through the liver, faintly.
    below = y - dome
    lung *= np.where(below > 0, 0.22 * np.exp(-np.maximum(below, 0) / 2.2), 1.0)
    # The mediastinum's border is sharp, but lung lies before and behind it and thickens only gradually.
    clear = 0.5 * _soft_step(far - middle, 0.15) + 0.5 * np.clip((far - middle + 0.3) / 3.5, 0, 1)
    in_front = np.clip(1 - heart / 9.5, 0.16, 1)
    field = (far < lateral) & (below < 0) & (far > middle) & (heart < 0.3) & (lung > 0.6)
    return Thorax(
        x=x,
        y=y,
        body=_body(patient, exam, x, y, height),
        lung=lung * clear * in_front,
        heart=heart,
        bone=_spine(patient, x, y) + _ribs(patient, far, y, lateral, height) + _shoulders(patient, exam, far, y),
        density=np.full_like(x, 0.25),
        vessels=np.zeros_like(x),
        field=field,
        lateral=lateral,
        dome=dome,
        half_width=patient.chest_half_width,
        height=height,
    )


def ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """Chord profile of an ellipsoid with the semi-axes a and b: 1 at its centre, 0 outside."""
    return np.sqrt(np.clip(1 - (x / a) ** 2 - (y / b) ** 2, 0, 1))


def _soft_step(distance: np.ndarray, softness: float) -> np.ndarray:
    return np.clip(0.5 + distance / (4 * softness), 0, 1)


def _bump(t: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((t - centre) / width) ** 2))


def chest_wall(y: np.ndarray, half_width: float, height: float) -> np.ndarray:
    """The chest's inner half width at y, in cm: a rounded vault."""
    return half_width * np.sin(np.pi / 2 * np.clip((y / height + 0.05) / 0.85, 0, 1)) ** 0.45


def _diaphragm(far: np.ndarray, side: np.ndarray, half_width: float, height: float) -> np.ndarray:
    top = height + np.where(side > 0, 0.9, 0.0)
    outer = np.clip((far - 6.3) / (half_width - 6.3), 0, 1.4)
    return top + 4.2 * outer**2.2 + 1.3 * np.clip((6.3 - far) / 6.3, 0, 1) ** 2


def _heart(patient: Patient, exam: Exam, x: np.ndarray, y: np.ndarray, height: float, scale: float) -> np.ndarray:
    size = patient.heart_scale * exam.heart_magnification * patient.chest_half_width / 13.3
    # A shallow breath lifts the diaphragm and lays the heart across.
    tilt = patient.heart_tilt_rad * exam.inspiration**2
    dx, dy = x - 2.0 * scale, y - (height - 3.1 * size)
    cos, sin = np.cos(tilt), np.sin(tilt)
    along, across = cos * dx + sin * dy, -sin * dx + cos * dy
    left_ventricle = ellipse(along, across, 7.6 * size * scale, 5.2 * size * scale**0.5)
    right_atrium = ellipse(dx + 2.8 * scale, dy + 1.2, 3.3 * size * scale, 5.2 * size)
    return 9.0 * size * np.maximum(left_ventricle, 0.75 * right_atrium) ** 1.25


def _mediastinum(x: np.ndarray, t: np.ndarray, patient: Patient) -> np.ndarray:
    """Half width of the mediastinum: to the left aortic knob and pulmonary trunk, to the right the vena cava."""
    age = np.clip((patient.age_years - 40) / 40, 0, 1)
    left = 2.1 + (0.9 + 0.7 * age) * _bump(t, 0.25, 0.075) + 1.1 * _bump(t, 0.43, 0.12) + 1.2 * t**2
    right = 2.3 + 0.5 * _bump(t, 0.45, 0.12) + 1.0 * np.clip(t, 0, 1) ** 2
    return np.where(x > 0, left, right) + 0.9 * np.clip(0.12 - t, 0, 1) * 6


def _body(patient: Patient, exam: Exam, x: np.ndarray, y: np.ndarray, height: float) -> np.ndarray:
    far = np.abs(x)
    chest = patient.chest_half_width * 1.03 + patient.wall + 0.06 * np.maximum(y - 15, 0)
    arms = 1 / (1 + np.exp(np.clip((y - 8.5) / 0.9, -30, 30)))
    half_width = chest + (23.0 - chest) * arms
    trunk = np.clip(1 - (far / half_width) ** 2.6, 0, 1) ** 0.5
    slope = -3.9 + 0.30 * np.maximum(far - 5.2, 0) + 0.012 * np.maximum(far - 13, 0) ** 2
    shoulder = np.sqrt(np.clip((y - slope) / 7.0, 0, 1))
    neck = 0.62 * ellipse(far, 0 * y, 5.6, 1.0) * np.clip(1 - y / 8, 0, 1)
    depth = 2 * (patient.half_depth + 0.45 * patient.wall)
    body = depth * np.maximum(trunk * shoulder * (0.72 + 0.28 * np.clip(y / 9, 0, 1)), neck)
    if patient.breast:
        body += patient.breast * ellipse(far - 8.0, y - 0.80 * height, 5.6, 5.2) ** 0.8
    if exam.stomach_gas:
        gas = ellipse(x - 7.2, y - height - 3.6, 3.6, 1.9) * (y < height + 4.3)
        body = np.maximum(body - 6.0 * gas, 0)
    # Trachea and main bronchi are air.
    fork = 0.27 * height
    bronchus = np.abs(far - 0.85 * np.maximum(y - fork, 0)) / 0.75
    trachea = np.where(y < fork, far / 0.95, np.where(y < fork + 3.5, bronchus, 9))
    fade = np.clip(1 - (y - fork) / 3.5, 0.0, 1)
    return np.maximum(body - 2.4 * fade * np.sqrt(np.clip(1 - trachea**2, 0, 1)), 0)


def _spine(patient: Patient, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - patient.spine_curve * np.sin(y / 7.0)
    vertebra = 2.05 + 0.025 * y
    phase = (y + 6.0) / vertebra
    phase -= np.round(phase)
    half_width = 1.55 + 0.02 * np.maximum(y, 0)
    profile = np.clip(1 - (np.abs(x) / half_width) ** 4, 0, 1) ** 0.5
    bone = SPINE_BONE * profile * (0.82 + 0.18 * np.tanh((0.40 - np.abs(phase)) * 22))
    far = np.abs(x)
    pedicles = ellipse(far - 0.62 * half_width, (phase - 0.05) * vertebra, 0.34, 0.45)
    process = ellipse(x, (phase - 0.25) * vertebra, 0.30, 0.62)
    transverse = ellipse(far - 2.3, (phase + 0.1) * vertebra, 1.1, 0.38)
    return bone + 0.55 * pedicles + 0.7 * process + 0.45 * transverse


def _ribs(patient: Patient, far: np.ndarray, y: np.ndarray, lateral: np.ndarray, height: float) -> np.ndarray:
    """Ribs as tilted hoops: the upper half of each projected hoop is its back, the lower half its front.

    All ribs are drawn at once: a pixel's position between neighbouring ribs is a phase.
    """
    reach = np.clip(far / np.maximum(lateral * 1.02, 0.1), 0, 0.999)
    rise = np.sqrt(1 - reach**2)
    # The beam runs along the rib near the chest wall, hence the bright rims there.
    tangent = np.clip(0.7 / (rise + 0.22), 0.7, 2.2)
    spacing = patient.rib_spacing
    bone = np.zeros_like(far)
    for back in (True, False):
        drop = patient.rib_tilt * (1 - rise) if back else patient.rib_tilt * (0.75 + 1.05 * rise)
        # The first ribs are short and steep, so the hoops are closer together at the top.
        phase = (y + 0.6 - drop) / spacing
        number = np.round(phase)
        steep = 1 / np.sqrt(1 + (patient.rib_tilt * reach / (rise + 0.25) / np.maximum(lateral, 2)) ** 2)
        half_height = 0.60 if back else 0.72
        across = (phase - number) * spacing * steep / half_height
        outer = np.sqrt(np.clip(1 - across**2, 0, 1))
        inner = np.sqrt(np.clip(1 - (across / 0.78) ** 2, 0, 1))
        rib = (outer - 0.62 * inner) * tangent
        # No two ribs are equally dense, and ribs below the diaphragm hardly show.
        varied = (0.85 + 0.25 * np.cos(2.4 * number + patient.rib_tilt * 7)) * np.where(number > 8, 0.6, 1)
        legal = (number >= 0) & (number < (RIBS if back else 7)) & (far < lateral * 1.02)
        # Cartilage in front of the bone's end does not show; behind, ribs begin at the spine.
        begin = _soft_step(far - (1.7 if back else 4.5 + 0.55 * number), 0.25 if back else 0.5)
        bone += (RIB_BONE if back else 0.5 * RIB_BONE) * rib * varied * legal * begin
    return bone


def _shoulders(patient: Patient, exam: Exam, far: np.ndarray, y: np.ndarray) -> np.ndarray:
    u = np.clip((far - 1.6) / 14.0, 0, 1)
    centre = 3.4 - 5.2 * u + 1.1 * np.sin(2 * np.pi * u) * (1 if exam.view == "PA" else 0.7)
    thick = 0.62 + 0.25 * np.abs(2 * u - 0.9)
    across = np.clip(np.abs(y - centre) * 0.92 / thick, 0, 1)
    hollow = np.sqrt(1 - across**2) - 0.5 * np.sqrt(np.clip(1 - (across / 0.75) ** 2, 0, 1))
    clavicle = hollow * _soft_step(far - 1.9, 0.25) * _soft_step(15.6 - far, 0.3)
    border = exam.scapula_x + 0.13 * np.maximum(y, 0)
    tip = exam.scapula_x + 0.5 * np.maximum(14.5 - y, 0)
    inside = (y > 0.5) & (y < 14.5)
    blade = _soft_step(far - border, 0.12) * _soft_step(tip - far, 0.2) * inside
    rim = np.exp(-(((far - border - 0.15) / 0.22) ** 2)) * inside * (tip > far)
    rim += 0.8 * np.exp(-(((far - tip) / 0.45) ** 2)) * inside * (far > border)
    head = ellipse(far - 17.6, y - 2.6, 2.3, 2.4)
    shaft = ellipse(far - 18.6 - 0.12 * (y - 4), 0 * y, 1.25, 1.0) * (y > 3)
    arm = np.maximum(head, 0.75 * shaft)
    return CLAVICLE_BONE * 2.2 * clavicle + 0.5 * blade + 0.55 * rim + 2.2 * arm
