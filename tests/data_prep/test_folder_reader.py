"""The folder reader: what it makes of labels.csv, masks and boxes, and what it refuses."""

import csv
import os

import pytest
from tiny_folder import write_folder

from cxr_jax.data.records import DataError
from data_prep import build
from data_prep.images import ImageSettings
from data_prep.readers import folder as folder_reader
from data_prep.readers.table import parse_age, parse_view


def open_folder(folder, *flags: str):
    args = build.parse_flags(["--reader=folder", f"--input={folder}", "--output=unused", *flags])
    return folder_reader.open_source(args, ImageSettings(canvas=args.canvas))


def test_cxr_small_as_it_is(shared_data):
    source = open_folder(shared_data / "cxr_small", "--boxes=nih_boxes.csv")
    assert len(source.samples) == 1554
    assert len({sample.patient_id for sample in source.samples}) == 1231
    assert len(source.vocabulary) == 18 and source.vocabulary[0] == "No Finding"
    assert "size_matched" not in source.vocabulary
    assert sum(bool(sample.mask) for sample in source.samples) == 677
    assert sum(len(sample.boxes) for sample in source.samples) == 35
    splits = [sample.split for sample in source.samples]
    with (shared_data / "cxr_small/labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [splits.count(split) for split in ("train", "val", "test")] == [
        sum(row["split"] == split for row in rows) for split in ("train", "val", "test")
    ]
    by_file = {sample.key: sample for sample in source.samples}
    for row in rows:
        expected = [int(row[name]) if row[name] else -1 for name in source.vocabulary]
        assert list(by_file[row["file"]].labels) == expected
    masked = next(sample for sample in source.samples if sample.mask)
    record = source.make_record(masked)
    assert record.mask[:4] == b"\x89PNG"


def test_boxes_shrink_with_their_image(shared_data):
    source = open_folder(shared_data / "cxr_small", "--boxes=nih_boxes.csv", "--canvas=256")
    sample = next(sample for sample in source.samples if sample.boxes)
    record = source.make_record(sample)
    assert max(record.height, record.width) == 256
    assert record.boxes[0].x == pytest.approx(sample.boxes[0].x / 2)


def test_images_without_a_table(tmp_path):
    folder = write_folder(tmp_path / "in", 3)
    (folder / "labels.csv").unlink()
    source = open_folder(folder)
    assert source.vocabulary == ()
    assert [sample.patient_id for sample in source.samples] == [sample.key for sample in source.samples]
    source = open_folder(folder, r"--patient_pattern=(\d)\.jpg")
    assert [sample.patient_id for sample in source.samples] == ["0", "1", "2"]


def test_files_the_table_names_must_exist(tmp_path):
    folder = write_folder(tmp_path / "in", 5)
    (folder / "images/0001.jpg").unlink()
    (folder / "images/0004.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of the 5 images it names are not in the folder; the first: images/0001"):
        open_folder(folder)


def test_files_the_table_does_not_name_need_a_flag(tmp_path):
    folder = write_folder(tmp_path / "in", 5, split=["val"] * 5)
    (folder / "images/extra.jpg").write_bytes((folder / "images/0000.jpg").read_bytes())
    source = open_folder(folder)
    assert len(source.samples) == 5
    assert any("does not name 1 images" in note for note in source.notes)
    samples = open_folder(folder, "--include_unlisted").samples
    assert len(samples) == 6
    assert (samples[-1].key, samples[-1].labels, samples[-1].split) == ("images/extra.jpg", (-1, -1), "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": ["train", "train", "hold", "hold"]}, "line 4: split is 'hold'"),
        ({"file": ["images/0000.jpg"] * 4}, "line 3: names images/0000.jpg again"),
        ({"file": ["", "a", "b", "c"]}, "line 2: the column file is empty"),
        ({"path": ["a"] * 4}, "file and path could both be the column file; choose with --file_column"),
        ({"mask": ["m.png", "", "", ""]}, "1 masks it names are not there"),
        ({"note": ["x"] * 4, "A": ["1"] * 4, "B": ["0"] * 4}, "name them with --label_columns"),
    ],
)
def test_contradictions_are_one_line(tmp_path, columns, message):
    folder = write_folder(tmp_path / "in", 4, **columns)
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    folder = write_folder(tmp_path / "in", 2)
    (folder / "labels.csv").unlink()
    (folder / "images/0000.jpg").rename(os.fsdecode(bytes(folder) + b"/images/\xff.jpg"))
    with pytest.raises(DataError, match="no printable UTF-8 name"):
        open_folder(folder)


def test_label_columns(tmp_path):
    folder = write_folder(tmp_path / "in", 4, note=["x"] * 4, checked=["1", "0", "1", "0"])
    source = open_folder(folder)
    assert source.vocabulary == ("Edema", "Mass")
    assert any("not taken for labels: checked" in note for note in source.notes)
    assert open_folder(folder, "--label_columns=checked").samples[1].labels == (0,)
    assert open_folder(folder, "--exclude_columns=Mass,checked").vocabulary == ("Edema",)
    with pytest.raises(DataError, match="note is 'x'; legal: 1, yes, true; 0, no, false; -1, NA"):
        open_folder(folder, "--label_columns=note")
    with pytest.raises(DataError, match="has no column 'none'"):
        open_folder(folder, "--label_columns=none")


@pytest.mark.parametrize("text", ["58", "058Y", "58.0", " 58 "])
def test_ages_are_read_in_the_ways_they_are_written(text):
    assert parse_age(text) == 58


@pytest.mark.parametrize("text", ["", "-1", "414", "old", "nan"])
def test_what_is_no_age_is_unknown(text):
    assert parse_age(text) == -1


def test_views_are_read_in_the_ways_they_are_written():
    words = ("AP", "ap supine", "PA", "L", "LL", "Lateral", "", "oblique")
    assert [parse_view(word) for word in words] == ["AP", "AP", "PA", "LATERAL", "LATERAL", "LATERAL"] + ["UNKNOWN"] * 2


def test_a_slip_in_a_label_column_is_named(tmp_path):
    """One odd cell must not make a whole column of labels vanish."""
    folder = write_folder(tmp_path / "in", 12, Effusion=["1"] * 11 + ["maybe"])
    with pytest.raises(DataError, match=r"line 13: Effusion holds 'maybe'.*--exclude_columns=Effusion"):
        open_folder(folder)
    assert "Effusion" not in open_folder(folder, "--exclude_columns=Effusion").vocabulary


def test_one_odd_cell_of_a_short_table_is_named_too_and_several_are_told(tmp_path):
    folder = write_folder(tmp_path / "a", 4, Effusion=["1", "0", "2", "0"])
    with pytest.raises(DataError, match=r"line 4: Effusion holds '2'.*--exclude_columns=Effusion"):
        open_folder(folder)
    assert "Effusion" not in open_folder(folder, "--exclude_columns=Effusion").vocabulary
    source = open_folder(write_folder(tmp_path / "b", 5, Stage=["1", "0", "2", "0", "3"]))
    note = "Stage is not taken for a label: 2 of 5 cells are none, the first is '2' in line 4 (--label_columns=Stage"
    assert "Stage" not in source.vocabulary and any(note in one for one in source.notes)


@pytest.mark.parametrize("odd", ["a\0b", "a\nb", "a\x1b[2Jb", "a\u202eb"])
@pytest.mark.parametrize("column", ["patient_id", "study", "source", "file"])
def test_characters_that_no_id_has(tmp_path, odd, column):
    folder = write_folder(tmp_path / "in", 4, **{column: [odd, "1", "2", "3"]})
    with pytest.raises(DataError, match=rf"line \d: {column} is 'a.*not legal there, remove it") as caught:
        open_folder(folder)
    assert str(caught.value).isprintable()


def test_a_label_or_a_box_of_such_characters(tmp_path):
    folder = write_folder(tmp_path / "in", 4, **{"Ede\x1bma": ["1", "0", "1", "0"]})
    with pytest.raises(DataError, match=r"a column's name is 'Ede\\x1bma'"):
        open_folder(folder)
    folder = write_folder(tmp_path / "in2", 4)
    (folder / "boxes.csv").write_text("file,label,x,y,w,h\nimages/0000.jpg,Ma\x1bss,1,1,2,2\n")
    with pytest.raises(DataError, match=r"boxes.csv line 2: the label is 'Ma\\x1bss'"):
        open_folder(folder, "--boxes=boxes.csv")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised(tmp_path, encoding):
    folder = write_folder(tmp_path / "in", 4)
    text = "\ufeff" + (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"labels.csv: is in UTF-16; .*iconv -f utf-16 -t utf-8"):
        open_folder(folder)


def test_labels_in_words(tmp_path):
    folder = write_folder(tmp_path / "in", 4, Edema=["yes", "No", "NA", ""], Mass=["TRUE", "false", "n/a", "1"])
    source = open_folder(folder)
    assert source.vocabulary == ("Edema", "Mass")
    assert [sample.labels for sample in source.samples] == [(1, 1), (0, 0), (-1, -1), (-1, 1)]


def test_a_table_without_labels_says_so(tmp_path):
    folder = write_folder(tmp_path / "in", 4, Edema=["mild"] * 4, Mass=["large"] * 4)
    notes = " ".join(open_folder(folder).notes)
    assert "no label columns, so the dataset is unlabelled; Edema, Mass hold other cells than 1, yes, true" in notes


def test_a_table_of_another_name_is_not_passed_over_in_silence(tmp_path):
    folder = write_folder(tmp_path / "in", 4)
    (folder / "labels.csv").rename(folder / "Labels.csv")
    note = "no labels.csv, so the dataset is unlabelled; not read: Labels.csv (--labels=FILE names the table)"
    assert note in open_folder(folder).notes
    assert not any("not read" in note for note in open_folder(folder, "--labels=").notes), "asked for"
    assert open_folder(folder, "--labels=Labels.csv").vocabulary == ("Edema", "Mass")


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_separators(tmp_path, separator, name):
    folder = write_folder(tmp_path / "in", 4)
    table = folder / "labels.csv"
    table.write_text(table.read_text().replace(",", separator))
    source = open_folder(folder)
    assert source.vocabulary == ("Edema", "Mass")
    assert f"labels.csv: its cells are separated by {name}" in source.notes


def test_an_encoding_other_than_utf_8_is_one_line_with_the_way_out(tmp_path):
    folder = write_folder(tmp_path / "in", 4)
    table = folder / "labels.csv"
    table.write_bytes(table.read_bytes() + "images/0003.jpg,Mu\u00f1oz,1,0\n".encode("latin1"))
    with pytest.raises(DataError, match=r"labels.csv: is not in UTF-8 \(byte \d+ is 0xf1\); .*iconv"):
        open_folder(folder)


def test_patients_written_in_two_ways_or_not_at_all(tmp_path):
    folder = write_folder(tmp_path / "a", 4, patient_id=["12", "12.0", "13", "14"])
    with pytest.raises(DataError, match=r"the patient 12 is also written 12\.0"):
        open_folder(folder)
    folder = write_folder(tmp_path / "b", 4, patient_id=["12", "", " ", "14"])
    source = open_folder(folder)
    assert "labels.csv: 2 rows name no patient; each such image counts as a patient of its own" in source.notes
    assert len({sample.patient_id for sample in source.samples}) == 4
