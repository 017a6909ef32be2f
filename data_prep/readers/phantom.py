"""Procedural chest radiographs: any number of images with labels, lung masks and boxes, from a seed alone.

In: `--num_images`, `--seed`, `--image_px`. Out: a `Source` whose samples are computed on access. Each image depends
only on (seed, index). A crude thorax (phantom_anatomy) gets findings (phantom_findings), is projected by Beer-Lambert's
law and shown as a film (phantom_film). For demos, tests and debugging: no claim about patients holds on it.
"""

import argparse
import dataclasses
import functools
import re

import numpy as np
from PIL import Image

from cxr_jax.data.records import UNKNOWN_LABEL, Box, Record
from data_prep.images import ImageSettings, encode_jpeg, encode_mask
from data_prep.readers import FlagError, Sample, Source
from data_prep.readers.phantom_anatomy import build_thorax
from data_prep.readers.phantom_film import add_vessels, expose, finish, smooth_noise
from data_prep.readers.phantom_findings import FINDINGS, apply_findings, draw_findings
from data_prep.readers.phantom_patient import draw_exam, draw_patient, grid

# Images are dealt to patients in blocks, so that an index alone tells its patient.
BLOCK = 12
MIN_PX = 64  # below this, ribs and vessels alias
_BLOCK_STREAM, _PATIENT_STREAM, _IMAGE_STREAM = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class PhantomSample(Sample):
    """Image `index`, the `study`-th of patient number `patient` in its block."""

    index: int
    patient: int
    study: int


@dataclasses.dataclass(frozen=True)
class Phantom:
    """One rendered image: uint8 `pixels` [h, w], bool lung `mask` [h, w], boxes and what is in it."""

    pixels: np.ndarray
    mask: np.ndarray
    boxes: tuple[Box, ...]
    present: frozenset[str]
    view: str
    sex: str
    age_years: float


class PhantomSamples:
    """The sequence of samples; holds nothing but its length."""

    def __init__(self, num_images: int, seed: int):
        self._num_images, self._seed = num_images, seed

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> PhantomSample:
        if not 0 <= index < self._num_images:
            raise IndexError(index)
        block, place = divmod(index, BLOCK)
        owners = _owners(self._seed, block)
        patient = owners[place]
        study = place - owners.index(patient)
        return PhantomSample(f"phantom-{index:08d}", f"phantom-{block:06d}-{patient:02d}", "", index, patient, study)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this reader."""
    parser.add_argument("--num_images", type=_positive, required=True, help="how many images to draw")
    parser.add_argument("--image_px", type=_positive, default=256, help=f"longest side in pixels, from {MIN_PX}")
    parser.add_argument("--unknown_prob", type=_prob, default=0.0, help="share of labels to hide as unknown")


def open_source(args: argparse.Namespace, images: ImageSettings) -> Source:
    """The phantom with the flags' number of images and seed."""
    size = args.image_px
    if not MIN_PX <= size <= images.canvas:
        raise FlagError(f"--image_px={size} must lie between {MIN_PX} and --canvas={images.canvas}")
    settings = {"num_images": args.num_images, "image_px": size, "unknown_prob": args.unknown_prob}
    return Source(
        name="phantom",
        vocabulary=FINDINGS,
        samples=PhantomSamples(args.num_images, args.seed),
        make_record=functools.partial(
            make_record, seed=args.seed, size=size, quality=images.quality, unknown_prob=args.unknown_prob
        ),
        settings=settings,
    )


def make_record(sample: PhantomSample, seed: int, size: int, quality: int, unknown_prob: float) -> Record:
    """Draws and encodes one image; `size` is its longest side in pixels."""
    phantom = render(sample, seed, size)
    height, width = phantom.pixels.shape
    hidden = _generator(seed, _IMAGE_STREAM, sample.index, 1).random(len(FINDINGS)) < unknown_prob
    labels = [
        UNKNOWN_LABEL if hide else int(name in phantom.present) for name, hide in zip(FINDINGS, hidden, strict=True)
    ]
    return Record(
        image=encode_jpeg(Image.fromarray(phantom.pixels), quality),
        height=height,
        width=width,
        image_id=sample.key,
        patient_id=sample.patient_id,
        study_id=f"{sample.patient_id}-{sample.study}",
        source="phantom",
        view=phantom.view,
        sex=phantom.sex,
        age_years=phantom.age_years,
        labels=tuple(labels),
        mask=encode_mask(phantom.mask),
        boxes=phantom.boxes,
    )


def render(sample: PhantomSample, seed: int, size: int) -> Phantom:
    """One image of a patient: the patient's anatomy, this exam's position and exposure, and its findings."""
    block = sample.index // BLOCK
    patient_rng = _generator(seed, _PATIENT_STREAM, block, sample.patient)
    patient = draw_patient(patient_rng)
    rng = _generator(seed, _IMAGE_STREAM, sample.index, 0)
    exam = draw_exam(rng)
    drawn = draw_findings(patient_rng, rng)
    aspect = rng.uniform(0.84, 1.0) if rng.random() < 0.5 else 1.0
    height, width = (size, round(size * aspect)) if rng.random() < 0.7 else (round(size * aspect), size)
    x, y, pixel = grid(height, width, exam)
    thorax = build_thorax(patient, exam, x, y, drawn.heart_scale)
    vessel_rng = np.random.default_rng(patient.vessel_seed)
    add_vessels(thorax, vessel_rng, pixel, patient.lung_height * exam.inspiration)
    maps = apply_findings(thorax, drawn, rng, smooth_noise(rng, (height, width), 28))
    pixels = finish(expose(thorax, rng, exam.view == "AP"), rng)
    return Phantom(
        pixels=pixels,
        mask=thorax.field,
        boxes=tuple(_bounds(name, where) for name, found in maps.items() for where in found),
        present=drawn.present,
        view=exam.view,
        sex="F" if patient.female else "M",
        age_years=patient.age_years + sample.study,
    )


def _bounds(name: str, where: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return Box(
        name, float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)
    )


@functools.lru_cache(maxsize=64)
def _owners(seed: int, block: int) -> tuple[int, ...]:
    """The patient number of each place in a block; patients have one to four images."""
    rng = _generator(seed, _BLOCK_STREAM, block, 0)
    counts = rng.choice(4, size=BLOCK, p=(0.55, 0.25, 0.12, 0.08)) + 1
    return tuple(np.repeat(np.arange(BLOCK), counts)[:BLOCK].tolist())


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([abs(seed), int(seed < 0), *stream])


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _prob(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value
