"""DICOM rendering against the standard's formulas written out here, and everything that must be refused."""

import io
import re
import struct
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGBaseline8Bit, RLELossless
from tiny_dicom import dicom, lut, smooth, written
from tiny_folder import jpeg

from cxr_jax.data.records import DataError
from data_prep import dicom_file
from data_prep.dicom import decode_dicom, store_dicom
from data_prep.dicom_codestream import codestream_size, is_whole
from data_prep.dicom_header import name_words, read_header
from data_prep.images import ImageSettings
from data_prep.readers import FlagError

# pytest lays its own warning filters over those that `dicom_file` sets for a process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

PICTURE = smooth()


def rendered(pixels: np.ndarray, **tags) -> np.ndarray:
    return decode_dicom(written(dicom(pixels, **tags)), "a.dcm").astype(int)


def refused(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        store_dicom(data, "a.dcm", ImageSettings())
    text = str(caught.value)
    assert text.startswith("a.dcm: ") and "\n" not in text
    return text


def linear(x, centre, width):
    """PS3.3 C.11.2.1.2.1, case by case as the standard writes it."""
    x = np.asarray(x, np.float64)
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    inner = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return np.where(x <= low, 0, np.where(x > high, 255, inner))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"WindowCenter": 1500, "WindowWidth": 2000}, linear(PICTURE, 1500, 2000)),
        ({"WindowCenter": [1500, 9], "WindowWidth": [2000, 9]}, linear(PICTURE, 1500, 2000)),
        (
            {"WindowCenter": 1500, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
            np.clip((PICTURE - 1500.0) / 2000 + 0.5, 0, 1) * 255,
        ),
        (
            {"WindowCenter": 1500, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (PICTURE - 1500.0) / 2000)),
        ),
        (
            {"WindowCenter": -100, "WindowWidth": 900, "RescaleSlope": 0.5, "RescaleIntercept": -1000},
            linear(PICTURE * 0.5 - 1000, -100, 900),
        ),
        ({"WindowCenter": 2000, "WindowWidth": 1}, np.where(PICTURE <= 1999.5, 0, 255)),
        ({}, PICTURE * (255 / 4000)),
        ({"RescaleSlope": -1, "RescaleIntercept": 4000}, 255 - PICTURE * (255 / 4000)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - np.rint(PICTURE * (255 / 4000))),
        # Windows that no formula is defined for, or that were made for other pixels, count as none.
        ({"WindowCenter": 1500, "WindowWidth": 0}, PICTURE * (255 / 4000)),
        ({"WindowCenter": 90000, "WindowWidth": 10}, PICTURE * (255 / 4000)),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, PICTURE * (255 / 4000)),
    ],
)
def test_grey_values_follow_the_standard(tags, expected):
    assert np.abs(rendered(PICTURE, **tags) - np.rint(expected)).max() <= 0


def test_a_voi_lut_goes_before_windows_and_clamps_its_ends():
    entries = np.round(4095 * (np.arange(3000) / 2999) ** 2)
    tags = {"VOILUTSequence": lut(entries, 500, 12), "WindowCenter": 1, "WindowWidth": 2}
    expected = entries[np.clip(PICTURE.astype(int) - 500, 0, 2999)] * 255 / 4095
    assert (rendered(PICTURE, **tags) == np.rint(expected)).all()
    # Twelve bits used of sixteen declared: the picture must not come out a sixteenth as bright.
    assert (rendered(PICTURE, VOILUTSequence=lut(entries, 500, 16)) == np.rint(expected)).all()


def test_a_modality_lut_replaces_the_rescale():
    entries = 65535 - 16 * np.arange(4001)
    expected = linear(entries[PICTURE], 40000, 30000)
    tags = {"ModalityLUTSequence": lut(entries, 0, 16), "WindowCenter": 40000, "WindowWidth": 30000}
    assert (rendered(PICTURE, **tags) == np.rint(expected)).all()


def test_signed_pixels_and_bits_above_the_highest():
    signed = PICTURE.astype(np.int16) - 2000
    assert (rendered(signed) == np.rint(PICTURE * (255 / 4000))).all()
    # Twelve stored bits, the four above full of junk: unsigned, then as two's complement of twelve bits.
    junk = (np.arange(PICTURE.size).reshape(PICTURE.shape) % 16 << 12).astype(np.uint16)
    assert (rendered(PICTURE | junk, BitsStored=12) == np.rint(PICTURE * (255 / 4000))).all()
    twelve = ((signed & 0x0FFF).astype(np.uint16) | junk).view(np.int16)
    assert (rendered(twelve, BitsStored=12) == np.rint(PICTURE * (255 / 4000))).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_counts_for_nothing_and_is_black(photometric):
    padded = PICTURE.copy() + 100
    padded[:5], padded[-3:] = 60000, 60010
    tags = {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60010, "PhotometricInterpretation": photometric}
    picture = rendered(padded, **tags)
    kept = PICTURE[5:-3].astype(float)
    expected = np.rint((kept - kept.min()) / np.ptp(kept) * 255)
    assert (picture[5:-3] == (255 - expected if photometric == "MONOCHROME1" else expected)).all()
    assert picture[:5].max() == picture[-3:].max() == 0


def test_negative_padding_of_signed_pixels():
    signed = PICTURE.astype(np.int16)
    signed[0] = -2000
    picture = rendered(signed, PixelPaddingValue=-2000)
    assert (picture[1:] == np.rint((PICTURE[1:] - PICTURE[1:].min()) / np.ptp(PICTURE[1:].astype(float)) * 255)).all()
    assert picture[0].max() == 0
    assert "every pixel is padding" in refused(written(dicom(np.full((20, 20), 7, np.uint16), PixelPaddingValue=7)))


def test_colour_and_palette_become_luma():
    rgb = np.stack([PICTURE // 20, PICTURE.T.reshape(40, 48) // 30, PICTURE // 40], -1).astype(np.uint8)
    luma = rgb.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(rendered(rgb) - luma).max() <= 1
    planes = dicom(rgb, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    assert np.abs(decode_dicom(written(planes), "a.dcm") - luma).max() <= 1
    index = (PICTURE // 20).astype(np.uint8)
    palette = dicom(index, PhotometricInterpretation="PALETTE COLOR")
    for colour, scale in (("Red", 257), ("Green", 200), ("Blue", 100)):
        palette.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        palette.add_new(f"{colour}PaletteColorLookupTableData", "OW", (np.arange(256) * scale).astype("<u2").tobytes())
    expected = np.stack([index.astype(int) * scale // 256 for scale in (257, 200, 100)], -1) @ [0.299, 0.587, 0.114]
    assert np.abs(decode_dicom(written(palette), "a.dcm") - expected).max() <= 2
    del palette.RedPaletteColorLookupTableData
    assert "without a usable palette" in refused(written(palette))


def test_it_is_stored_as_image_files_are():
    stored = store_dicom(written(dicom(smooth(0, 400, 300))), "a.dcm", ImageSettings(canvas=128, quality=95))
    image = Image.open(io.BytesIO(stored.jpeg))
    assert (stored.height, stored.width, stored.source_height, stored.source_width) == (128, 96, 400, 300)
    assert (image.size, image.mode, image.format) == ((96, 128), "L", "JPEG")
    whole = Image.fromarray(np.rint(smooth(0, 400, 300) * (255 / 4000)).astype(np.uint8))
    expected = np.asarray(whole.resize((96, 128), Image.Resampling.LANCZOS), int)
    assert np.abs(np.asarray(image, int) - expected).max() <= 6, "quality 95"
    assert "at least 16" in refused(written(dicom(PICTURE[:10])))
    assert "shows nothing" in refused(written(dicom(np.full((20, 20), 7, np.uint16))))


def test_other_transfer_syntaxes_without_codecs():
    native = rendered(PICTURE)
    deflated = written(dicom(PICTURE, DeflatedExplicitVRLittleEndian))
    assert (decode_dicom(deflated, "a.dcm") == native).all()
    big = dicom(PICTURE.astype(">u2"), ExplicitVRBigEndian)
    assert (decode_dicom(written(big), "a.dcm") == native).all()


def compressed(frame: bytes, syntax: str, **tags) -> bytes:
    dataset = dicom(np.zeros((40, 48), np.uint8), syntax, PixelData=encapsulate([frame]), **tags)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def test_the_size_that_a_codestream_declares_is_checked_before_decoding(monkeypatch):
    frame = jpeg(0)
    assert decode_dicom(compressed(frame, JPEGBaseline8Bit), "a.dcm").shape == (40, 48)
    start = frame.index(b"\xff\xc0")
    bomb = bytearray(frame)
    bomb[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
    assert "is 60000x60000 pixels of 1 samples, but its tags say 48x40" in refused(
        compressed(bytes(bomb), JPEGBaseline8Bit)
    )
    assert "cut off" in refused(compressed(frame[:-40], JPEGBaseline8Bit))
    assert "is no JPEG Baseline" in refused(compressed(b"\x01" * 200, JPEGBaseline8Bit))


def test_codestream_headers():
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG2000")
    jp2 = buffer.getvalue()
    bare = jp2[jp2.index(b"\xff\x4f\xff\x51") :]
    for frame in (jp2, bare, jpeg(0)):
        size = codestream_size(frame)
        assert (size.rows, size.columns, size.components) == (40, 48, 1)
    assert codestream_size(b"\xff\xd8\xff\xf7\x00\x0b\x10\x01\x02\x03\x04\x03" + b"\0" * 9).columns == 0x304
    assert codestream_size(b"\xff\xd8\xff") is None and codestream_size(b"") is None
    assert is_whole(bare + b"\0") and not is_whole(bare[:-2])


def test_a_cut_off_codestream_is_refused_in_every_syntax(shared_data):
    """Decoders of JPEG lossless, JPEG-LS and 12-bit JPEG fill a cut-off picture in without a word."""
    cases = 0
    for file in sorted((shared_data / "dicom").glob("[nr]*_*bit_*.dcm")):
        dataset = pydicom.dcmread(file)
        for cut in (file.stat().st_size // 2, 20):
            message = refused(file.read_bytes()[:-cut])
            assert re.search("cut off|bytes of pixel data", message), f"{file.name} {message}"
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            frame = next(iter(generate_frames(dataset.PixelData, number_of_frames=1)))
            for cut in (len(frame) // 2, 300, 4):
                dataset.PixelData = encapsulate([frame[:-cut]])
                assert re.search("cut off|damaged", refused(written(dataset))), file.name
                cases += 1
    assert cases >= 30


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "declares 60000x60000 pixels; at most 100000000"),
        ({"Rows": 0}, "is 48x0 pixels"),
        ({"Rows": 41}, "has 3840 bytes of pixel data, but 48x41 pixels need 3936"),
        ({"Rows": 39}, "has 3840 bytes of pixel data, but 48x39 pixels need 3744"),
        ({"Rows": None}, "has no Rows"),
        ({"BitsAllocated": 32}, "stores 16 of 32 bits"),
        ({"BitsStored": 12, "HighBit": 15}, "the highest bit 15"),
        ({"NumberOfFrames": 3}, "holds 3 frames"),
        ({"PhotometricInterpretation": "CMYK"}, "is CMYK with 1 samples"),
        ({"PhotometricInterpretation": "RGB"}, "is RGB with 1 samples"),
        ({"PhotometricInterpretation": None}, "is unknown with 1 samples"),
        ({"PixelData": None}, "has no pixel data"),
    ],
)
def test_tags_that_contradict_the_pixels_are_refused(tags, message):
    dataset = dicom(PICTURE, **{key: value for key, value in tags.items() if key != "PixelData"})
    if "PixelData" in tags:
        del dataset.PixelData
    assert message in refused(written(dataset))


def test_a_row_of_padding_behind_the_pixels_is_passed_over():
    dataset = dicom(PICTURE, PixelData=PICTURE.tobytes() + b"\0" * 90)
    assert (decode_dicom(written(dataset), "a.dcm") == rendered(PICTURE)).all()


def test_syntaxes_that_the_pixels_contradict_or_nobody_decodes():
    mpeg4 = compressed(jpeg(0), "1.2.840.10008.1.2.4.102")
    assert "is stored as MPEG-4" in refused(mpeg4) and "cannot be decoded" in refused(mpeg4)
    explicit = b"1.2.840.10008.1.2.1\0"
    plain = written(dicom(PICTURE))
    assert "an unknown transfer syntax" in refused(plain.replace(explicit, b"1.2.3.4".ljust(20, b"\0"), 1))
    rle = plain.replace(explicit, b"1.2.840.10008.1.2.5\0", 1)
    assert "says RLE Lossless, but its pixels are not compressed" in refused(rle)
    native = compressed(jpeg(0), RLELossless).replace(b"1.2.840.10008.1.2.5\0", explicit, 1)
    assert "but its pixels are compressed" in refused(native)
    assert "too short for 48x40 pixels" in refused(compressed(bytes(20), RLELossless))


def test_a_deflated_bomb_is_refused_at_its_limit(monkeypatch):
    dataset = dicom(PICTURE, DeflatedExplicitVRLittleEndian)
    data = written(dataset)
    monkeypatch.setattr(dicom_file, "_MAX_INFLATED", 2000)
    assert "inflates to more than 2000 bytes" in refused(data)
    monkeypatch.undo()
    assert "cut off" in refused(data[:-100])


def test_no_preamble_and_no_dicom_at_all():
    data = written(dicom(PICTURE))
    group_length = struct.unpack("<I", data[140:144])[0]
    assert (decode_dicom(data[144 + group_length :], "a.dcm") == rendered(PICTURE)).all()
    assert "the file is empty" in refused(b"")
    assert "is no DICOM file" in refused(bytes(4096))
    assert "Git LFS pointer" in refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def test_a_missing_package_is_one_line_that_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom_file.pydicom.cache_clear()
    try:
        with pytest.raises(FlagError, match=r"needs the package pydicom; pip install -r requirements-dicom\.txt"):
            dicom_file.pydicom()
    finally:
        dicom_file.pydicom.cache_clear()


def test_a_missing_decoder_is_named(shared_data, monkeypatch):
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    data = (shared_data / "dicom/rg1s_mono1_15bit_jls.dcm").read_bytes()
    assert "whose decoder is not installed; pip install -r requirements-dicom.txt" in refused(data)


def test_headers_in_the_words_of_the_contract():
    header = read_header(written(dicom(PICTURE, PatientID="77", ViewPosition="LL", Modality="DX")), "a.dcm")
    assert (header.view, header.sex, header.age_years, header.patient_id) == ("LATERAL", "F", 43, "77")
    assert (header.modality, header.body_part, header.is_image) == ("DX", "CHEST", True)
    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    assert read_header(written(dicom(PICTURE, ViewPosition="", ViewCodeSequence=[code])), "a.dcm").view == "PA"
    assert name_words("Doe^John Q^^Dr=") == {"doe", "john", "dr"}
    assert name_words("Anon^nih-01280") == {"anon"} and name_words("") == frozenset()
    assert "Doe" not in repr(read_header(written(dicom(PICTURE, PatientName="Doe^John")), "a.dcm")).title()
