"""The base of the readers of published collections: what does not fit is told or refused, in one line."""

import gzip
import importlib
import io
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image
from publishers import chexpert, jsrt, mimic_cxr, nih_chestxray14, nlm_tuberculosis
from publishers.opening import built, command
from publishers.paint import png, write
from tiny_folder import one_error_line

from cxr_jax.data.records import DataError
from data_prep.build import parse_flags
from data_prep.images import ImageSettings
from data_prep.readers import READERS
from data_prep.readers.labels import Labels
from data_prep.readers.published_table import parse_years

PUBLISHED = [name for name in READERS if name not in ("folder", "dicom_folder", "datasets", "medmnist", "phantom")]


def fails(capsys, reader, root, *flags):
    """The one line of a build that exits with 3 and leaves nothing."""
    output = root.parent / "out"
    assert command(reader, root, output, *flags) == 3
    assert not output.exists()
    return one_error_line(capsys.readouterr().err)


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("reader", PUBLISHED)
def test_another_folder_is_one_line(tmp_path, capsys, reader):
    write(tmp_path / "in", "readme.txt", "hello")
    line = fails(capsys, reader, tmp_path / "in")
    assert f"folder of {reader}?" in line
    assert "no such folder" in fails(capsys, reader, tmp_path / "absent")


@pytest.mark.parametrize("reader", PUBLISHED)
def test_every_reader_says_where_its_layout_comes_from(reader):
    text = importlib.import_module(f"data_prep.readers.{reader}").__doc__
    assert "\n\nLayout (" in text and "et al." in text.split("Layout (")[1].split(")")[0]


def test_rows_without_files_stop_or_are_counted(tmp_path, capsys):
    chexpert.imitate(tmp_path / "in")
    (tmp_path / "in/train/patient00001/study1/view1_frontal.jpg").unlink()
    (tmp_path / "in/valid/patient64541/study1/view1_frontal.jpg").unlink()
    line = fails(capsys, "chexpert", tmp_path / "in")
    assert "2 of the 5 images that the tables name are not there" in line and "--on_missing=skip" in line
    assert "the first: CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg" in line
    manifest, found = built("chexpert", tmp_path / "in", tmp_path / "out", "--on_missing=skip")
    assert len(found) == 3 and manifest.settings["images_missing"] == 2
    assert "2 of the 5 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", ["../patient1/study1/v.jpg", "/etc/passwd", "a/../../b.jpg", "..\\..\\b.jpg", "C:\\data\\b.jpg"]
)
def test_no_row_leads_out_of_the_folder(tmp_path, capsys, path):
    chexpert.imitate(tmp_path / "in")
    write(tmp_path, "patient1/study1/v.jpg", 5)
    edit(tmp_path / "in/train.csv", "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", path)
    assert "which leads out of the folder" in fails(capsys, "chexpert", tmp_path / "in")


def test_links_that_leave_the_folder_need_a_flag(tmp_path, capsys):
    chexpert.imitate(tmp_path / "in")
    (tmp_path / "in/train").rename(tmp_path / "elsewhere")
    (tmp_path / "in/train").symlink_to(tmp_path / "elsewhere")
    assert "--follow_links" in fails(capsys, "chexpert", tmp_path / "in")
    assert len(built("chexpert", tmp_path / "in", tmp_path / "out", "--follow_links")[1]) == 5


def test_repeated_rows_are_dropped_if_they_say_the_same(tmp_path, capsys):
    chexpert.imitate(tmp_path / "in")
    table = tmp_path / "in/train.csv"
    header, first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([header, first, first, *rest]) + "\n\n")
    assert len(built("chexpert", tmp_path / "in", tmp_path / "good")[1]) == 5
    assert "1 rows repeat another and are dropped" in capsys.readouterr().out
    table.write_text("\n".join([header, first, first.replace("68", "69"), *rest]))
    assert "patient00001/study1/view1_frontal.jpg twice" in fails(capsys, "chexpert", tmp_path / "in")


def test_two_files_of_one_name_are_not_guessed_between(tmp_path, capsys):
    nih_chestxray14.imitate(tmp_path / "in")
    write(tmp_path / "in", "images_005/images/00000013_024.png", 77)
    line = fails(capsys, "nih_chestxray14", tmp_path / "in")
    assert "images_002/images/00000013_024.png and images_005/images/00000013_024.png" in line


def test_images_that_no_list_names_stop_the_build(tmp_path, capsys):
    nih_chestxray14.imitate(tmp_path / "in")
    edit(tmp_path / "in/test_list.txt", "00013118_008.png\n", "")
    assert "00013118_008.png is in neither" in fails(capsys, "nih_chestxray14", tmp_path / "in")
    (tmp_path / "in/train_val_list.txt").unlink()
    built("nih_chestxray14", tmp_path / "in", tmp_path / "out")
    assert "so all splits are drawn by patient" in capsys.readouterr().out


def test_an_image_in_both_lists_is_refused(tmp_path, capsys):
    nih_chestxray14.imitate(tmp_path / "in")
    with (tmp_path / "in/train_val_list.txt").open("a") as file:
        file.write("00013118_008.png\n")
    assert "00013118_008.png is in the other list too" in fails(capsys, "nih_chestxray14", tmp_path / "in")


def test_a_word_outside_a_closed_list_of_findings_is_refused(tmp_path, capsys):
    """Passed over, the misspelt finding and all others would be negative for that image."""
    nih_chestxray14.imitate(tmp_path / "in")
    edit(tmp_path / "in/Data_Entry_2017_v2020.csv", "Cardiomegaly", "Cardiomegally")
    line = fails(capsys, "nih_chestxray14", tmp_path / "in")
    assert "line 2: 'Cardiomegally' is no finding of this source (No Finding, " in line


@pytest.mark.parametrize("header_only", [True, False])
def test_a_table_beside_its_archive_is_refused(tmp_path, capsys, header_only):
    """A half-unpacked or header-only .csv must not win over the whole .csv.gz, nor stand in its place."""
    mimic_cxr.imitate(tmp_path / "in")
    archive = tmp_path / "in/mimic-cxr-2.0.0-metadata.csv.gz"
    table = archive.with_suffix("")
    table.write_bytes(gzip.decompress(archive.read_bytes()).splitlines(keepends=True)[0])
    if header_only:
        archive.unlink()
        assert f"{table.name}: holds no rows; get the whole table" in fails(capsys, "mimic_cxr", tmp_path / "in")
    else:
        assert f"holds {table.name} and {archive.name}; remove" in fails(capsys, "mimic_cxr", tmp_path / "in")


def test_mimic_images_without_a_published_split_are_refused(tmp_path, capsys):
    """A table that was cut short would let published test images be drawn into train."""
    mimic_cxr.imitate(tmp_path / "in")
    path = tmp_path / "in/mimic-cxr-2.0.0-split.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(lines[:-1]).encode()))
    line = fails(capsys, "mimic_cxr", tmp_path / "in")
    assert "is not in mimic-cxr-2.0.0-split.csv" in line and "--splits=drawn" in line


TABLES = {  # what the file becomes: words of the line
    "cut": (lambda data: gzip.compress(data)[:-30], "cannot be read as a CSV file"),
    "flipped": (lambda data: gzip.compress(data)[:40] + b"\xff\xff\xff" + gzip.compress(data)[43:], "cannot be read"),
    "no gzip": (lambda data: data, "cannot be read as a CSV file"),
    "latin": (lambda data: gzip.compress(data.replace(b"CHEST (PA", b"T\xd3RAX (PA")), "cannot be read as a CSV file"),
    "column": (lambda data: gzip.compress(data.replace(b"subject_id", b"patient")), "has no column subject_id; found"),
    "short": (lambda data: gzip.compress(data + b"68b5c4b1,10000764\n"), "line 6: 2 cells; at least 5 are needed"),
    "empty": (lambda data: gzip.compress(b""), "has no column dicom_id"),
}


@pytest.mark.parametrize("case", TABLES)
def test_spoilt_tables_are_one_line(tmp_path, capsys, case):
    mimic_cxr.imitate(tmp_path / "in")
    file = tmp_path / "in/mimic-cxr-2.0.0-metadata.csv.gz"
    spoil, words = TABLES[case]
    file.write_bytes(spoil(gzip.decompress(file.read_bytes())))
    line = fails(capsys, "mimic_cxr", tmp_path / "in")
    assert words in line and "mimic-cxr-2.0.0-metadata.csv.gz" in line


def test_a_label_that_is_none_names_its_row(tmp_path, capsys):
    chexpert.imitate(tmp_path / "in")
    edit(tmp_path / "in/valid.csv", "0.0,1.0", "0.0,maybe")
    line = fails(capsys, "chexpert", tmp_path / "in")
    assert "valid.csv line 2: Support Devices is 'maybe'" in line


def bomb(side):
    """A PNG that declares side x side pixels and holds next to nothing."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


MASKS = {
    "shape": (png(np.eye(20, dtype=np.uint8) * 255), "the mask is 20x20 pixels, its image 48x40"),
    "damaged": (png(np.eye(48, dtype=np.uint8) * 255)[:60], "is no mask"),
    "bomb": (bomb(12_000), "declares 12000x12000 pixels"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_do_not_fit_are_refused(tmp_path, capsys, case):
    nlm_tuberculosis.imitate_montgomery(tmp_path / "in")
    content, words = MASKS[case]
    file = "MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png"
    write(tmp_path / "in", file, content)
    line = fails(capsys, "montgomery", tmp_path / "in")
    assert file in line and words in line


def test_masks_of_zeros_and_ones_are_masks(tmp_path):
    nlm_tuberculosis.imitate_montgomery(tmp_path / "in")
    mask = np.zeros((40, 48), np.uint8)
    mask[:20] = 1
    for side in ("left", "right"):
        write(tmp_path / "in", f"MontgomerySet/ManualMask/{side}Mask/MCUCXR_0001_0.png", png(mask))
    found = built("montgomery", tmp_path / "in", tmp_path / "out")[1]
    stored = Image.open(io.BytesIO(found["MontgomerySet/CXR_png/MCUCXR_0001_0.png"]["mask"]))
    assert np.array_equal(np.asarray(stored), mask * 255)


@pytest.mark.parametrize("module", [chexpert, jsrt])
def test_samples_and_their_maker_travel_to_other_processes(tmp_path, module):
    module.imitate(tmp_path / "in")
    name = module.__name__.split(".")[-1]
    args = parse_flags([f"--reader={name}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"])
    source = importlib.import_module(f"data_prep.readers.{name}").open_source(args, ImageSettings(canvas=64))
    sample, make = pickle.loads(pickle.dumps((source.samples[0], source.make_record)))
    assert make(sample) == source.make_record(source.samples[0])
    assert [sample.key for sample in source.samples] == sorted(sample.key for sample in source.samples)


AGES = {
    "58": 58, "058Y": 58, "58.0": 58, ">90": 90, "90+": 90, "85 or more": 85, "45yrs": 45, "18 months": 1.5, "0": 0,
    "16month": 16 / 12, "64days": 64 / 365.25, "": -1, "414": -1, "414Y": -1, "N/A": -1, "nan": -1, "-3": -1,
}  # fmt: skip


@pytest.mark.parametrize("text", AGES)
def test_ages_as_publishers_write_them(text):
    assert parse_years(text) == pytest.approx(AGES[text])


@pytest.mark.parametrize(("policy", "value"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_labels_from_cells_and_votes(policy, value):
    labels = Labels("chexpert", policy)
    cells = {"Edema": "-1.0", "Fracture": "0", "Airspace Opacity": "1", "Lung Opacity": "0.0", "New": "1", "Mass": ""}
    made = dict(zip(labels.classes, labels.from_cells(cells, "row 2"), strict=True))
    assert made["Edema"] == value and made["Fracture"] == 0 and made["Lung Opacity"] == 1
    assert made["Pneumonia"] == -1 and labels.unmapped == {"New": 1, "Mass": 1}
    assert [labels.votes(count, 3) for count in range(4)] == [0, value, 1, 1]
    for text in ("2", "yes", "0.5", "inf"):
        with pytest.raises(DataError, match=r"row 2: Edema is '.*'; legal: 1, 0, -1"):
            labels.from_cells({"Edema": text}, "row 2")
