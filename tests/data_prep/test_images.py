"""Image conversion: every quirk and every broken file of the shared data, and the pass-through of grey JPEGs."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from tiny_folder import jpeg

from cxr_jax.data.records import DataError
from data_prep.images import ImageSettings, fit_size, store_image, store_mask

SETTINGS = ImageSettings(canvas=576, quality=100)
# Files on which the shared data leaves the policy to the reader, and which ours refuses.
REFUSED_QUIRKS = ("all_black.png", "all_white.png", "one_pixel.png")


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_quirks_give_the_reference_picture(shared_data):
    reference = decoded((shared_data / "quirks/reference.png").read_bytes())
    with (shared_data / "quirks/manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["file"] not in REFUSED_QUIRKS]
    assert len(rows) > 20
    for row in rows:
        stored = store_image((shared_data / "quirks" / row["file"]).read_bytes(), row["file"], SETTINGS)
        pixels = decoded(stored.jpeg)
        assert pixels.shape == (stored.height, stored.width)
        if row["file"] == "inverted.jpg":
            pixels = 255 - pixels
        elif row["file"] == "rgba_transparent_top.png":
            assert pixels[:18].max() <= 6, "transparent pixels are laid on black"
            pixels[:24] = reference[:24]
        elif row["file"] == "letterboxed.png":
            assert pixels[:, :126].max() <= 4
            pixels = pixels[:, 128:-128]
        if row["reference"]:
            # Ours adds one encoding at quality 100 to the difference that the manifest allows.
            assert np.abs(pixels - reference).max() <= float(row["max_abs_diff"]) + 4, row["file"]


@pytest.mark.parametrize("name", REFUSED_QUIRKS)
def test_pictures_of_nothing_are_refused(shared_data, name):
    with pytest.raises(DataError, match=name):
        store_image((shared_data / "quirks" / name).read_bytes(), name, SETTINGS)


def test_every_broken_file_is_refused_in_one_line(shared_data):
    files = [file for file in sorted((shared_data / "broken").iterdir()) if file.suffix != ".csv"]
    assert len(files) == 20
    for file in files:
        with pytest.raises(DataError) as caught:
            store_image(file.read_bytes(), file.name, SETTINGS)
        assert str(caught.value).startswith(file.name) and "\n" not in str(caught.value)


def test_a_grey_jpeg_that_fits_passes_through_byte_for_byte():
    data = jpeg(0)
    assert store_image(data, "a.jpg", SETTINGS).jpeg is data


@pytest.mark.parametrize("case", ["colour", "too large", "rotated"])
def test_other_jpegs_are_encoded_anew(case):
    data = jpeg(0, mode="RGB" if case == "colour" else "L")
    settings = ImageSettings(canvas=32) if case == "too large" else SETTINGS
    if case == "rotated":
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.open(io.BytesIO(data)).save(buffer, "JPEG", exif=exif)
        data = buffer.getvalue()
    stored = store_image(data, "a.jpg", settings)
    assert stored.jpeg != data
    assert Image.open(io.BytesIO(stored.jpeg)).mode == "L"
    expected = {"colour": (40, 48), "too large": (27, 32), "rotated": (48, 40)}[case]
    assert (stored.height, stored.width) == expected
    assert decoded(stored.jpeg).shape == expected


@pytest.mark.parametrize("size", [(1000, 500), (500, 1000), (512, 512), (30, 20)])
def test_fit_size_reduces_and_never_enlarges(size):
    width, height = fit_size(*size, 512)
    assert max(width, height) == min(512, max(size))
    assert abs(width / height - size[0] / size[1]) < 0.01


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_files_are_scaled_by_the_depth_they_use(bits):
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) // 4
    stored = store_image(png(grey << (bits - 8)), "deep.png", ImageSettings(quality=100))
    assert np.abs(decoded(stored.jpeg) - grey).max() <= 2


def test_masks_follow_their_image():
    image = store_image(jpeg(0, 40, 48), "a.jpg", ImageSettings(canvas=24))
    mask = np.zeros((40, 48), np.uint8)
    mask[:20] = 255
    stored = decoded(store_mask(png(mask), "m.png", image))
    assert stored.shape == (20, 24)
    assert set(np.unique(stored)) == {0, 255}
    assert stored[:10].min() == 255 and stored[10:].max() == 0
    with pytest.raises(DataError, match="the mask is 5x5 pixels"):
        store_mask(png(mask[:5, :5]), "m.png", image)
