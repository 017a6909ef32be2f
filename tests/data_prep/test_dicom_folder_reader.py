"""The DICOM folder reader: what it takes from tags and tables, what it leaves out, and that no name gets out."""

import csv
import json
import logging
import os

import pytest
import tensorflow_datasets as tfds
from tiny_dicom import dicom, smooth, write_folder, written
from tiny_folder import folder_bytes, run

from cxr_jax.data.records import DataError
from data_prep import build
from data_prep.identity import hash_id, holds
from data_prep.images import ImageSettings
from data_prep.readers import dicom_folder

# pytest lays its own warning filters over those that `dicom_file` sets for a process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def open_folder(folder, *flags: str):
    args = build.parse_flags(["--reader=dicom_folder", f"--input={folder}", "--output=unused", *flags])
    return dicom_folder.open_source(args, ImageSettings(canvas=args.canvas))


def write_labels(folder, **columns):
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def test_tags_become_the_record(tmp_path):
    folder = write_folder(tmp_path / "in", 4, ViewPosition=["PA", "AP", "LL", ""], PatientSex=["M", "F", "O", ""])
    source = open_folder(folder, "--patient_ids=keep", "--view=AP")
    assert [sample.view for sample in source.samples] == ["PA", "AP", "LATERAL", "AP"]
    assert [sample.sex for sample in source.samples] == ["M", "F", "UNKNOWN", "UNKNOWN"]
    assert [sample.patient_id for sample in source.samples] == ["mrn-0", "mrn-0", "mrn-1", "mrn-1"]
    assert [sample.study_id for sample in source.samples] == [f"1.2.{index}" for index in range(4)]
    record = source.make_record(source.samples[0])
    assert (record.image_id, record.age_years, record.source) == ("000.dcm", 43, "in")
    assert (record.height, record.width) == (40, 48) and record.image[:2] == b"\xff\xd8"


def test_patients_are_hashed_by_default_and_stay_together(tmp_path):
    folder = write_folder(tmp_path / "in", 4)
    plain, again, salted = (
        [sample.patient_id for sample in open_folder(folder, *flags).samples]
        for flags in ((), (), ("--patient_salt=secret",))
    )
    assert plain == again == [hash_id(f"mrn-{index // 2}", "") for index in range(4)]
    assert len(set(plain)) == len(set(salted)) == 2 and not set(plain) & set(salted)
    assert all(len(patient) == 16 for patient in plain)
    assert open_folder(folder, "--patient_salt=secret").settings["patient_salt"] is True


def test_a_table_goes_before_the_tags(tmp_path):
    folder = write_folder(tmp_path / "in", 3)
    columns = {"file": ["000.dcm", "001.dcm"], "patient_id": ["a", "b"], "view": ["LL", ""], "age": ["7", ""]}
    write_labels(folder, **columns, split=["train", "val"], Edema=["1", ""])
    source = open_folder(folder, "--patient_ids=keep")
    assert [sample.labels for sample in source.samples] == [(1,), (-1,)] and source.vocabulary == ("Edema",)
    assert [(sample.view, sample.age_years) for sample in source.samples] == [("LATERAL", 7), ("PA", 43)]
    assert [(sample.patient_id, sample.split) for sample in source.samples] == [("a", "train"), ("b", "val")]
    assert any("does not name 1 images" in note for note in source.notes)
    assert len(open_folder(folder, "--include_unlisted").samples) == 3


def test_other_files_and_suffixes(tmp_path):
    folder = write_folder(tmp_path / "in", 2)
    (folder / "000.dcm").rename(folder / "IM-0001")
    (folder / "001.dcm").rename(folder / "scan.img")
    (folder / "README.txt").write_text("read me")
    (folder / "DICOMDIR").write_bytes(written(dicom(smooth())))
    (folder / "INDEX").write_bytes(written(dicom(smooth(), SOPClassUID="1.2.840.10008.1.3.10")))
    (folder / ".hidden.dcm").write_bytes(b"x")
    source = open_folder(folder)
    assert [sample.key for sample in source.samples] == ["IM-0001", "scan.img"]
    assert any(note.startswith("2 files are not DICOM") for note in source.notes)
    (folder / "broken.dcm").write_bytes(b"not dicom")
    source = open_folder(folder)
    with pytest.raises(DataError, match=r"^broken\.dcm: is no DICOM file"):
        source.make_record(source.samples[-2])


def test_filters_say_what_they_leave_out(tmp_path):
    tags = {
        "Modality": ["CR", "CT", "CR", "CR", "DX", "SR", ""],
        "BodyPartExamined": ["CHEST", "CHEST", "ANKLE", "CHEST PA", "", "", "Thorax"],
    }
    folder = write_folder(tmp_path / "in", 7, **tags)
    report = dicom(smooth(), Modality="SR")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    (folder / "005.dcm").write_bytes(written(report))
    source = open_folder(folder)
    assert [sample.key for sample in source.samples] == ["000.dcm", "003.dcm", "004.dcm", "006.dcm"]
    assert set(source.notes) >= {
        "left out 1 that are no images (SR)",
        "left out 1 that have the modality CT (--modalities)",
        "left out 1 that show ANKLE (--body_parts)",
    }
    assert len(open_folder(folder, "--modalities=", "--body_parts=").samples) == 6
    sizeless = dicom(smooth())
    del sizeless.Rows, sizeless.Columns
    (folder / "007.dcm").write_bytes(written(sizeless))
    source = open_folder(folder)
    with pytest.raises(DataError, match=r"^007\.dcm: has no Rows"):
        source.make_record(source.samples[-1])
    (folder / "007.dcm").unlink()
    assert [sample.key for sample in open_folder(folder, "--modalities=CT").samples] == ["001.dcm"]
    with pytest.raises(DataError, match=r"holds no DICOM image to take; .*have the modality CR"):
        open_folder(folder, "--modalities=MG")
    with pytest.raises(SystemExit):
        open_folder(folder, "--views=FRONTAL")


def test_images_without_ids_and_one_id_for_all_are_said(tmp_path):
    source = open_folder(write_folder(tmp_path / "a", 12, PatientID=""))
    assert len({sample.patient_id for sample in source.samples}) == 12
    assert any("12 images have no patient id" in note for note in source.notes)
    source = open_folder(write_folder(tmp_path / "b", 12, PatientID="ANONYMOUS"))
    assert any("all images have the same patient id" in note for note in source.notes)


SECRET = "Quux^Barbaz"
WORDS = (b"quux", b"barbaz")


def leaks(*texts: bytes) -> set[bytes]:
    return {word for text in texts for word in WORDS if word in text.lower()}


def test_the_patients_name_reaches_nothing(tmp_path, capfd):
    """Name in the tag, in folder and file names, in the id; broken files of all sorts; both ways to store ids."""
    folder = tmp_path / "in"
    write_folder(folder / "QUUX_BARBAZ", 4, PatientName=SECRET)
    write_folder(folder / "other", 2, PatientName=SECRET, PatientID="quux1234")
    (folder / "other/001.dcm").rename(folder / "other/barbaz-chest.dcm")
    data = written(dicom(smooth(), PatientName=SECRET, BodyPartExamined="CHEST"))
    broken = {
        "cut.dcm": data[:-500],
        "bad_vr.dcm": data.replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00ZZ"),
        "long_name.dcm": data.replace(b"PN\x0c\x00Quux", b"PN\xff\xffQuux"),
        "bad_rows.dcm": written(dicom(smooth(), PatientName=SECRET)).replace(
            b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00PN"
        ),
        "window.dcm": data.replace(b"\x08\x00\x60\x00CS\x02\x00CR", b"\x08\x00\x60\x00IS\x02\x00Qu"),
        "body.dcm": written(dicom(smooth(), PatientName=SECRET, BodyPartExamined="BARBAZ")),
    }
    for name, content in broken.items():
        assert content != data
        (folder / "QUUX_BARBAZ" / name).write_bytes(content)
    flags = ("--reader=dicom_folder", f"--input={folder}", "--on_error=skip", "--workers=0", "--dedup=none")
    done = run(*flags, f"--output={tmp_path}/hash")
    assert done.returncode == 0, done.stderr
    assert all(" images, " in line for line in done.stderr.splitlines()), "no warnings of libraries"
    assert build.main([*flags, f"--output={tmp_path}/keep", "--patient_ids=keep"]) == 0
    here = capfd.readouterr()
    for name, said in (("hash", done.stdout + done.stderr), ("keep", here.out + here.err)):
        files = folder_bytes(tmp_path / name)
        assert not leaks(said.encode(), *files.values())
        assert "some paths hold a patient's name" in said
        builder = tfds.builder_from_directory(str(tmp_path / name))
        records = [record for split in builder.info.splits for record in builder.as_data_source(split)]
        assert len(records) >= 6
        assert all(record["image_id"].decode().startswith(("hidden-", "other/")) for record in records)
        assert len(json.loads(files["manifest.json"])["skipped"]) >= 3


def test_the_name_is_not_in_errors_of_this_process_either(tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    folder = write_folder(tmp_path / "in", 1, PatientName=SECRET, WindowCenter=3, WindowWidth=1)
    data = (folder / "000.dcm").read_bytes()
    source = open_folder(folder)
    for start in range(132, len(data) - 3840, 3):
        (folder / "000.dcm").write_bytes(data[:start] + b"\xff\x00\xfe" + data[start + 3 :])
        try:
            source.make_record(source.samples[0])
        except DataError as error:
            assert not leaks(str(error).encode()) and error.__cause__ is None and "\n" not in str(error)
        try:
            open_folder(folder)
        except DataError as error:
            assert not leaks(str(error).encode())
    out, err = capfd.readouterr()
    assert not leaks(caplog.text.encode(), out.encode(), err.encode())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("DOE_JOHN", True),
        ("doejohn", True),
        ("x-Doe.dcm", True),
        ("Doe0042", True),
        ("johnson", True),
        ("doering", False),
        ("IM0001", False),
        ("mrn-0042.dcm", True),
        ("mrn-00421.dcm", False),
    ],
)
def test_names_and_ids_are_found_in_paths(text, found):
    assert holds(text, frozenset({"doe", "john"}), "MRN-0042") == found


def test_a_link_that_leaves_the_folder_and_unreadable_files(tmp_path):
    folder = write_folder(tmp_path / "in", 2)
    elsewhere = write_folder(tmp_path / "elsewhere", 1)
    os.symlink(elsewhere / "000.dcm", folder / "link.dcm")
    with pytest.raises(DataError, match="leaves the input folder"):
        open_folder(folder)
    assert len(open_folder(folder, "--follow_links").samples) == 3
