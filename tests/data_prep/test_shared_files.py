"""Every file of the shared data's `dicom`, `quirks` and `broken` against its manifest: each row is a case.

What a row says decides what is asked of its file; where it leaves the choice to the reader ("policy"), `POLICY` says
what we chose, and data_prep/README.md tells the user.
"""

import csv
import hashlib
import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.records import DataError
from data_prep import build
from data_prep.dicom import KEYWORDS, decode_dicom, store_dicom
from data_prep.dicom_file import read, transfer_syntax
from data_prep.dicom_frame import check_layout, stored_values
from data_prep.dicom_header import read_header
from data_prep.images import ImageSettings, store_image
from data_prep.readers import dicom_folder

SETTINGS = ImageSettings(canvas=2048, quality=100)
ENCODING = 4  # grey levels that one JPEG of quality 100 may add

# Rows that leave the choice to the reader: refused with these words, or stored in this way.
POLICY = {
    "dicom/nih_mono2_two_frames.dcm": "refused: holds 2 frames",
    "quirks/rgba_transparent_top.png": "laid on black",
    "quirks/exif_orientation_6.jpg": "as the reference",
    "quirks/tiny_32.png": "stored",
    "quirks/wide_strip.png": "stored",
    "quirks/all_black.png": "refused: shows nothing",
    "quirks/all_white.png": "refused: shows nothing",
    "quirks/one_pixel.png": "refused: at least 16",
    "broken/truncated_half.jpg": "refused: damaged",
    "broken/truncated_tail.jpg": "refused: damaged",
    "broken/truncated_half.png": "refused: damaged",
    "broken/noise_in_scan.jpg": "refused: damaged",
    "broken/dicom_wrong_transfer_syntax.dcm": "refused: not compressed",
    "broken/dicom_palette_without_lut.dcm": "refused: without a usable palette",
    "broken/dicom_structured_report.dcm": "refused: is no image (SR object)",
}
# A word of each message that tells the user what is wrong, where the manifest says no more than "error".
REASONS = {
    "empty.jpg": "empty",
    "html_error_page.jpg": "web page",
    "lfs_pointer.png": "is a Git LFS pointer: fetch the file",
    "bomb_60000x60000.png": "far more pixels than",
    "zero_width.png": "0x64 pixels",
    "dicom_truncated_pixels.dcm": "bytes of pixel data, but",
    "dicom_no_pixels.dcm": "has no pixel data",
    "dicom_rows_too_large.dcm": "bytes of pixel data, but",
    "dicom_no_rows.dcm": "has no Rows",
    "random_bytes.dcm": "is no DICOM file",
}
# Lossy syntaxes, in grey levels of the rendered picture.
LOSSY = {
    "1.2.840.10008.1.2.4.50": 1,
    "1.2.840.10008.1.2.4.51": 1,
    "1.2.840.10008.1.2.4.81": 1,
    "1.2.840.10008.1.2.4.91": 4,
}
FRONTAL = ("AP", "PA")


def rows(folder, name):
    with (folder / name / "manifest.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def pytest_generate_tests(metafunc):
    """Cases are the manifests' rows, so the folder is looked for as the fixture `shared_data` does."""
    if "row" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__.removeprefix("test_").split("_")[0]
    folder = Path(os.environ.get("CXR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    found = rows(folder, name) if folder.is_dir() else []
    metafunc.parametrize("row", found, ids=[row["file"] for row in found])


@cache
def picture(path):
    data = path.read_bytes()
    image = decode_dicom(data, path.name) if path.suffix == ".dcm" else np.asarray(Image.open(io.BytesIO(data)))
    return image.astype(int)


def reason_of_refusal(path, store):
    with pytest.raises(DataError) as caught:
        store(path.read_bytes(), path.name, SETTINGS)
    text = str(caught.value)
    assert text.startswith(f"{path.name}: ") and "\n" not in text
    return text


def test_dicom_files_meet_their_manifest(shared_data, row):
    path = shared_data / "dicom" / row["file"]
    policy = POLICY.get(f"dicom/{row['file']}", "")
    if policy.startswith("refused: "):
        assert policy.removeprefix("refused: ") in reason_of_refusal(path, store_dicom)
        return
    _stored_values_are_those_of(row, path)
    _header_is_that_of(row, path)
    ours, stored = picture(path), store_dicom(path.read_bytes(), path.name, SETTINGS)
    assert ours.shape == (int(row["rows"]), int(row["columns"])) == (stored.height, stored.width)
    assert np.abs(picture_of_jpeg(stored.jpeg) - ours).max() <= ENCODING
    if row["reference"]:
        _renders_as_its_reference(row, ours, picture(shared_data / "dicom" / row["reference"]))


def picture_of_jpeg(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def _stored_values_are_those_of(row, path):
    dataset = read(path.read_bytes(), path.name, KEYWORDS, pixels=True)
    layout = check_layout(dataset, path.name, b"")
    values = stored_values(dataset, layout, path.name)
    assert transfer_syntax(dataset) == (row["transfer_syntax"] or "1.2.840.10008.1.2")
    assert (layout.bits_allocated, layout.bits_stored) == (int(row["bits_allocated"]), int(row["bits_stored"]))
    assert (layout.signed, layout.photometric) == (row["signed"] == "1", row["photometric"])
    assert (values.min(), values.max()) == (int(row["stored_min"]), int(row["stored_max"]))
    assert hashlib.sha256(values.astype("<i4").tobytes()).hexdigest() == row["stored_sha256"]


def _header_is_that_of(row, path):
    header = read_header(path.read_bytes(), path.name)
    assert (header.modality, header.body_part) == (row["modality"], row["body_part"])
    assert header.view == {"LL": "LATERAL"}.get(row["view"], row["view"])


def _renders_as_its_reference(row, ours, reference):
    if row["expect"] == "ok (shows inverted)":
        assert (ours == 255 - reference).all()
    elif row["voi_lut"] == "1":
        assert (ours == np.round(255 * (reference / 255) ** 0.6)).all()
    elif "pixel_padding" in row["file"]:
        border = (len(ours) - len(reference)) // 2
        assert (ours[border:-border] == reference).all() and ours[:border].max() == ours[-border:].max() == 0
    elif "twin" in row["note"]:
        # Without a window the twin is spread over its own range: the same picture up to one stretch of its contrast.
        scale, offset = np.polyfit(ours.ravel(), reference.ravel(), 1)
        assert scale > 0 and np.abs(ours * scale + offset - reference).max() <= 2
    elif row["window"].startswith("["):
        # The window is 4096 wide, the picture 4081: the brightest pixel is 254.
        assert np.abs(ours - reference).max() <= 1
    else:
        assert np.abs(ours - reference).max() <= LOSSY.get(row["transfer_syntax"], 0)


def test_quirks_meet_their_manifest(shared_data, row):
    path = shared_data / "quirks" / row["file"]
    policy = POLICY.get(f"quirks/{row['file']}", "")
    assert (row["expect"] == "policy") == bool(policy)
    if policy.startswith("refused: "):
        assert policy.removeprefix("refused: ") in reason_of_refusal(path, store_image)
        return
    stored = store_image(path.read_bytes(), path.name, SETTINGS)
    ours = picture_of_jpeg(stored.jpeg)
    assert ours.shape == (stored.height, stored.width) and ours.max() > ours.min()
    if not row["reference"]:
        with Image.open(path) as image:
            assert (stored.width, stored.height) == image.size
        return
    reference = picture(shared_data / "quirks" / "reference.png")
    if policy == "laid on black":
        # An eight-pixel block of the JPEG straddles the edge of the transparent rows.
        assert ours[:16].max() <= ENCODING
        ours, reference = ours[24:], reference[24:]
    elif row["reference"].endswith("(inside)"):
        assert ours[:, :120].max() <= ENCODING and ours[:, -120:].max() <= ENCODING
        ours = ours[:, 128:-128]
    elif row["expect"] == "ok (shows inverted)":
        ours = 255 - ours
    assert np.abs(ours - reference).max() <= float(row["max_abs_diff"]) + ENCODING


def test_broken_files_meet_their_manifest(shared_data, row, capfd):
    path = shared_data / "broken" / row["file"]
    expected = POLICY.get(f"broken/{row['file']}") or f"refused: {REASONS.get(row['file'], '')}"
    assert row["expect"] != "ok" and expected.startswith("refused: ")
    store = store_dicom if path.suffix == ".dcm" else store_image
    assert expected.removeprefix("refused: ") in reason_of_refusal(path, store)
    assert capfd.readouterr() == ("", ""), "decoders keep their remarks to themselves"


def test_the_reader_filters_as_the_manifest_says(shared_data, tmp_path):
    def taken(*flags):
        argv = ["--reader=dicom_folder", f"--input={shared_data}/dicom", f"--output={tmp_path}/out", *flags]
        return {sample.file for sample in dicom_folder.open_source(build.parse_flags(argv), SETTINGS).samples}

    manifest = rows(shared_data, "dicom")
    chests = {row["file"] for row in manifest if row["expect"] != "not a chest"}
    assert taken() == chests and len(chests) == len(manifest) - 1
    assert taken("--body_parts=") == {row["file"] for row in manifest}
    assert taken("--views=AP,PA") == {row["file"] for row in manifest if row["view"] in FRONTAL} & chests
    assert chests - taken("--views=AP,PA") == {row["file"] for row in manifest if "frontal-only" in row["expect"]}
