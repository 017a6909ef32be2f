"""Tiny inputs for the tests of data_prep, and ways to run its command."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[2]


def jpeg(seed: int, height: int = 40, width: int = 48, mode: str = "L") -> bytes:
    """A small JPEG of smooth noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_folder(folder: Path, num_images: int, images_per_patient: int = 2, **columns: list[str]) -> Path:
    """A folder of small images with a labels.csv; `columns` adds or replaces columns."""
    (folder / "images").mkdir(parents=True)
    files = [f"images/{index:04d}.jpg" for index in range(num_images)]
    for index, file in enumerate(files):
        (folder / file).write_bytes(jpeg(index))
    table = {
        "file": files,
        "patient_id": [f"p{index // images_per_patient}" for index in range(num_images)],
        "Edema": [("1", "0", "")[index % 3] for index in range(num_images)],
        "Mass": [("-1", "1.0", "0")[index % 3] for index in range(num_images)],
        **columns,
    }
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return folder


def command(*flags: str) -> list[str]:
    """The build command with `flags`."""
    return [sys.executable, "-m", "data_prep.build", *flags]


def run(*flags: str) -> subprocess.CompletedProcess:
    """Runs the build command to its end in a process of its own."""
    return subprocess.run(
        command(*flags), cwd=REPOSITORY, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )


def run_validate(*flags: str) -> subprocess.CompletedProcess:
    """Runs the validate command to its end in a process of its own."""
    called = [sys.executable, "-m", "data_prep.validate", *flags]
    return subprocess.run(called, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def one_error_line(text: str) -> str:
    """The error line of a command's stderr, checked to be the only thing it says apart from progress."""
    lines = [line for line in text.splitlines() if " images, " not in line]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: "), text
    return lines[0]
