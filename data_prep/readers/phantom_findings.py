"""The phantom's findings: each changes the thorax and says where it is.

In: a healthy `Thorax` and the list of findings drawn for the image. Out: the thorax changed in place and, for each
focal finding, a boolean map [h, w] whose bounds become its box. Cardiomegaly is a wider heart and so belongs to
the building of the thorax; here it only gets its map.
"""

import dataclasses

import numpy as np

from data_prep.readers.phantom_anatomy import Thorax, chest_wall, ellipse

FINDINGS = ("Cardiomegaly", "Effusion", "Nodule", "Consolidation", "Pneumothorax")
_PROBS = (0.22, 0.20, 0.18, 0.20, 0.13)
FLUID = 1.0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is drawn: which findings, and the widening of the heart (1 for a normal one)."""

    present: frozenset[str]
    heart_scale: float


def draw_findings(patient_rng: np.random.Generator, rng: np.random.Generator) -> Drawn:
    """Findings of one image. A large heart is the patient's and stays; the others come and go."""
    large_heart = patient_rng.random() < _PROBS[0]
    heart_scale = patient_rng.uniform(1.28, 1.55) if large_heart else patient_rng.uniform(0.92, 1.06)
    present = {name for name, prob in zip(FINDINGS[1:], _PROBS[1:], strict=True) if rng.random() < prob}
    if large_heart:
        present.add(FINDINGS[0])
    return Drawn(frozenset(present), float(heart_scale))


def apply_findings(
    thorax: Thorax, drawn: Drawn, rng: np.random.Generator, noise: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """Draws the findings into `thorax`; `noise` [h, w] is smooth, of mean 0 and deviation 1.

    Returns the maps of each finding, one for each place it is seen at.
    """
    maps: dict[str, list[np.ndarray]] = {}
    if "Cardiomegaly" in drawn.present:
        maps["Cardiomegaly"] = [thorax.heart > 0.3]
    if "Consolidation" in drawn.present:
        maps["Consolidation"] = [_consolidation(thorax, rng, noise)]
    if "Nodule" in drawn.present:
        maps["Nodule"] = [_nodule(thorax, rng) for _ in range(rng.integers(1, 3))]
    if "Effusion" in drawn.present:
        sides = (-1, 1) if rng.random() < 0.35 else (rng.choice((-1, 1)),)
        maps["Effusion"] = [_effusion(thorax, side, rng) for side in sides]
    if "Pneumothorax" in drawn.present:
        maps["Pneumothorax"] = [_pneumothorax(thorax, rng)]
    return {name: [where for where in found if where.any()] for name, found in maps.items()}


def _place(thorax: Thorax, rng: np.random.Generator, inset: float) -> tuple[float, float]:
    """A point of the lung field, `inset` cm from the chest wall and the diaphragm."""
    room = thorax.field & (np.abs(thorax.x) < thorax.lateral - inset) & (thorax.y < thorax.dome - inset)
    spots = np.flatnonzero(room if room.any() else thorax.field)
    spot = spots[rng.integers(len(spots))] if len(spots) else thorax.x.size // 2
    return float(thorax.x.flat[spot]), float(thorax.y.flat[spot])


def _consolidation(thorax: Thorax, rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    """Air spaces full of fluid: a patchy cloud with ragged edges in which vessels vanish."""
    x, y = _place(thorax, rng, 2.0)
    a, b = rng.uniform(2.0, 4.8), rng.uniform(2.0, 4.8)
    distance = np.sqrt(((thorax.x - x) / a) ** 2 + ((thorax.y - y) / b) ** 2)
    cloud = np.clip(1.35 - distance + 0.28 * noise, 0, 1)
    same_side = np.sign(thorax.x) == np.sign(x)
    share = rng.uniform(0.30, 0.62) * cloud * same_side
    thorax.density += (FLUID - thorax.density) * share
    thorax.vessels *= 1 - cloud * same_side
    return thorax.field & same_side & (cloud > 0.4)


def _nodule(thorax: Thorax, rng: np.random.Generator) -> np.ndarray:
    """A solid ball: 0.5 to 1.6 cm in radius, denser than water where it is calcified."""
    x, y = _place(thorax, rng, 1.0)
    radius = rng.uniform(0.55, 1.6)
    ball = ellipse(thorax.x - x, thorax.y - y, radius, radius * rng.uniform(0.85, 1.15))
    thorax.vessels += 2 * radius * ball * rng.uniform(1.2, 1.9)
    return ball > 0


def _effusion(thorax: Thorax, side: int, rng: np.random.Generator) -> np.ndarray:
    """Fluid at the base: its border is a meniscus that climbs towards the chest wall."""
    here = np.sign(thorax.x) == side
    base = thorax.dome[thorax.field & here]
    if not base.size:
        return np.zeros_like(thorax.field)
    level = float(np.median(base)) - rng.uniform(0.5, 7.0)
    reach = np.clip(np.abs(thorax.x) / np.maximum(thorax.lateral, 0.1), 0, 1)
    border = level - 4.5 * np.clip((reach - 0.45) / 0.55, 0, 1) ** 2.5 + 1.2 * (1 - reach)
    fluid = np.clip(0.5 + (thorax.y - border) / 1.0, 0, 1) * here
    where = thorax.field & (fluid > 0.5)
    thorax.lung *= 1 - 0.93 * fluid
    thorax.vessels *= 1 - fluid
    thorax.field &= ~where
    return where


def _pneumothorax(thorax: Thorax, rng: np.random.Generator) -> np.ndarray:
    """Air between lung and chest wall: no vessels beyond a thin pleural line, the lung behind it a little denser."""
    side = rng.choice((-1, 1))
    here = np.sign(thorax.x) == side
    far = np.abs(thorax.x)
    gap = rng.uniform(1.2, 4.5)
    # The collapsed lung keeps its vault, moved down and inwards.
    vault = chest_wall(thorax.y - gap * rng.uniform(0.7, 1.3), thorax.half_width, thorax.height)
    depth = vault - 0.8 * gap * np.clip(1.2 - thorax.y / thorax.height, 0.15, 1) - far
    where = thorax.field & here & (depth < 0)
    thorax.density[where] = 0.06
    thorax.vessels[where] = 0
    collapsed = thorax.field & here & (depth >= 0)
    thorax.density[collapsed] *= 1.0 + 0.06 * gap
    line = np.exp(-((depth / 0.11) ** 2)) * (thorax.field & here)
    thorax.vessels += 0.55 * line
    thorax.field &= ~where
    return where
