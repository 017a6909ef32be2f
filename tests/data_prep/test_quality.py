"""The limits drop what shows no radiograph and keep every real one; each statistic is what it says."""

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageDraw

from data_prep.quality import STATISTICS, Limits, judge, measure, summary
from data_prep.signature import decode_grey, sign


def values(pixels: np.ndarray) -> dict[str, float]:
    found = measure(pixels, sign(pixels).thumb)
    return dict(zip(STATISTICS, found.tolist(), strict=True))


def reasons(pixels: np.ndarray, limits: Limits | None = None) -> list[str]:
    found = measure(pixels, sign(pixels).thumb)[None]
    return [reason.split(":")[0] for reason, rows in judge(found, limits or Limits()) if rows[0]]


def page() -> np.ndarray:
    sheet = Image.new("L", (480, 640), 255)
    draw = ImageDraw.Draw(sheet)
    for line in range(30):
        draw.text((30, 30 + 18 * line), "impression: no acute cardiopulmonary process " * 2, fill=0)
    return np.asarray(sheet)


RNG = np.random.default_rng(0)
NO_RADIOGRAPHS = {
    "blank": (np.full((200, 200), 90, np.uint8) + RNG.integers(0, 4, (200, 200), dtype=np.uint8), "blank"),
    "noise": (RNG.integers(0, 256, (200, 200), dtype=np.uint8), "too rough for a radiograph"),
    "checker": (np.uint8(np.indices((256, 256)).sum(0) // 16 % 2 * 255), "too rough for a radiograph"),
    "page": (page(), "one grey level"),
    "panorama": (np.tile(np.arange(200, dtype=np.uint8), (60, 1)).T[:, :60], "too long"),
    "thumbnail": (RNG.integers(0, 256, (12, 12), dtype=np.uint8), "too small"),
    "gradient": (np.tile(np.arange(256, dtype=np.uint8), (256, 1)), "mostly border"),
}


@pytest.mark.parametrize("name", NO_RADIOGRAPHS)
def test_what_is_no_radiograph_is_dropped(name):
    pixels, reason = NO_RADIOGRAPHS[name]
    assert reason in reasons(pixels)


def test_every_real_radiograph_stays(shared_data):
    files = sorted((shared_data / "cxr_small/images").rglob("*.jpg"))[::13]
    assert len(files) == 120
    assert {file.name: bad for file in files if (bad := reasons(decode_grey(file.read_bytes(), file.name)))} == {}


def test_a_photograph_passes_as_the_readme_says():
    photo = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).convert("L")
    assert reasons(np.asarray(photo)) == []


def test_the_border_is_the_share_of_flat_rows_and_columns():
    pixels = np.zeros((400, 300), np.uint8)
    pixels[100:300, 30:270] = RNG.integers(0, 256, (200, 240), dtype=np.uint8)
    # Measured on a reduction by two: each edge may be one reduced row or column off.
    assert values(pixels)["border"] == pytest.approx(1 - 200 * 240 / (400 * 300), abs=0.02)
    assert values(pixels)["flat"] == pytest.approx((pixels == 0).mean())
    assert values(RNG.integers(0, 256, (300, 300), dtype=np.uint8))["border"] == 0
    marked = pixels.copy()
    marked[5:9, 5:8] = 255
    assert values(marked)["border"] == values(pixels)["border"], "a marker in the margin is no picture"


def test_simple_statistics_by_hand():
    found = values(np.tile(np.arange(0, 200, dtype=np.uint8), (100, 1)))
    assert found["side_px"] == 100 and found["aspect"] == 2
    assert found["contrast"] == pytest.approx(196, abs=2)
    assert summary(np.array([[1.0] * 6, [3.0] * 6, [2.0] * 6], np.float32))["contrast"] == {
        "min": 1.0,
        "p1": 1.0,
        "median": 2.0,
        "p99": 3.0,
        "max": 3.0,
    }
