"""Image conversion: the pass-through of grey JPEGs, sizes, depths, masks. Real odd files: test_shared_files.py."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_folder import jpeg

from cxr_jax.data.records import DataError
from data_prep.images import ImageSettings, encode_jpeg, fit_size, store_image, store_mask

SETTINGS = ImageSettings(canvas=576, quality=100)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer: fetch the file"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (bytes(128) + b"DICM" + bytes(200), "--reader=dicom_folder"),
        (b"file", "legal formats: JPEG, PNG"),
    ],
)
def test_files_without_a_picture_are_called_what_they_are(data, message):
    with pytest.raises(DataError) as caught:
        store_image(data, "a.png", SETTINGS)
    assert str(caught.value).startswith("a.png: ") and message in str(caught.value)


def test_a_grey_jpeg_that_fits_passes_through_byte_for_byte():
    data = jpeg(0)
    assert store_image(data, "a.jpg", SETTINGS).jpeg is data


def test_pictures_are_stored_in_fewer_bytes_at_no_loss():
    picture, plain = Image.open(io.BytesIO(jpeg(0))), io.BytesIO()
    picture.save(plain, "JPEG", quality=92)
    ours = encode_jpeg(picture, 92)
    assert len(ours) < len(plain.getvalue())
    np.testing.assert_array_equal(decoded(ours), decoded(plain.getvalue()))


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
