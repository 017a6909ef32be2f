"""Collections labelled from reports, built through the command from imitations of the publishers' folders."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from publishers import brax, chexpert, mimic_cxr, nih_chestxray14, padchest
from publishers.opening import boxes, built, command, known
from tiny_folder import one_error_line

from data_prep.vocabulary import classes_of


def test_chexpert_small_beside_its_tables(tmp_path, capsys):
    chexpert.imitate(tmp_path / "in")
    chexpert.imitate_test(tmp_path / "in")
    manifest, found = built("chexpert", tmp_path / "in", tmp_path / "out")
    assert manifest.name == "chexpert" and manifest.vocabulary == classes_of("chexpert") and len(found) == 6
    assert manifest.counts["split"] == {"train": 4, "val": 1, "test": 1}
    first = found["train/patient00001/study1/view1_frontal.jpg"]
    assert (first["patient_id"], first["study_id"]) == ("chexpert/patient00001", "patient00001/study1")
    assert (first["view"], first["sex"], first["age_years"], first["source"]) == ("AP", "F", 68, "chexpert")
    assert known(first) == {"No Finding": 1, "Edema": 0}
    lateral = found["train/patient00002/study2/view2_lateral.jpg"]
    assert (lateral["view"], lateral["age_years"]) == ("LATERAL", 87)
    assert known(lateral) == {"Pneumonia": 0}  # Edema is uncertain
    frontal = found["train/patient00002/study2/view1_frontal.jpg"]
    assert frontal["patient_id"] == lateral["patient_id"] and frontal["age_years"] == -1 and frontal["view"] == "PA"
    odd = found["train/patient00003/study1/view1_frontal.jpg"]
    assert (odd["view"], odd["sex"]) == ("LATERAL", "UNKNOWN")  # "Frontal" of view LL, as the table has it
    assert set(known(found["valid/patient64541/study1/view1_frontal.jpg"])) == set(manifest.vocabulary)
    test = found["test/patient64741/study1/view1_frontal.jpg"]
    assert test["labels"]["Atelectasis"] == 1 and test["view"] == "UNKNOWN" and test["split"] == "test"
    assert "chexpert: " not in capsys.readouterr().out  # all fitted, so there is nothing to say


@pytest.mark.parametrize(("policy", "label"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_uncertain_marks_become_what_the_flag_says(tmp_path, policy, label):
    chexpert.imitate(tmp_path / "in")
    manifest, found = built("chexpert", tmp_path / "in", tmp_path / "out", f"--uncertain={policy}")
    record = found["train/patient00002/study2/view1_frontal.jpg"]
    assert record["labels"]["Edema"] == label and record["labels"]["Fracture"] == -1
    assert manifest.settings["uncertain"] == policy


def test_chexpert_in_the_folders_of_its_archives(tmp_path):
    first, second = "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)"
    chexpert.imitate(tmp_path / "in", "CheXpert-v1.0", train=second, valid=f"{first}/valid", tables=f"{first}/")
    manifest, found = built("chexpert", tmp_path / "in", tmp_path / "out")
    assert manifest.counts["split"] == {"train": 4, "val": 1}
    assert found[f"{second}/patient00001/study1/view1_frontal.jpg"]["patient_id"] == "chexpert/patient00001"


def test_mimic_cxr_labels_are_by_study_and_splits_by_image(tmp_path, capsys):
    mimic_cxr.imitate(tmp_path / "in")
    mimic_cxr.imitate_patients(tmp_path / "patients.csv.gz")
    flags = (f"--patients={tmp_path / 'patients.csv.gz'}",)
    manifest, found = built("mimic_cxr", tmp_path / "in", tmp_path / "out", *flags)
    assert "1 images have no study in the chexpert table: unknown" in capsys.readouterr().out
    records = [found[mimic_cxr.path(image)] for image in mimic_cxr.IMAGES]
    assert [record["split"] for record in records] == ["train", "train", "val", "test"]
    assert [record["view"] for record in records] == ["PA", "LATERAL", "AP", "UNKNOWN"]
    assert [record["age_years"] for record in records] == [52, 52, 91, -1]
    assert [record["sex"] for record in records] == ["F", "F", "M", "UNKNOWN"]
    assert known(records[0]) == known(records[1]) == {"No Finding": 1}
    assert known(records[2]) == {"Consolidation": 0, "Support Devices": 1}  # Cardiomegaly is uncertain
    assert known(records[3]) == {}
    assert (records[0]["patient_id"], records[0]["study_id"]) == ("mimic_cxr/10000032", "50414267")
    assert manifest.settings["tables"] == [
        f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("chexpert", "metadata", "split")
    ]
    negbio = built("mimic_cxr", tmp_path / "in", tmp_path / "out", "--overwrite", "--labeller=negbio")[1]
    assert known(negbio[mimic_cxr.path(mimic_cxr.IMAGES[0])]) == {}


@pytest.mark.parametrize("year", [2023, 2024])
def test_cxr_lt_brings_its_labels_and_splits(tmp_path, capsys, year):
    mimic_cxr.imitate(tmp_path / "in")
    mimic_cxr.imitate_cxr_lt(tmp_path / "lt", year)
    manifest, found = built("mimic_cxr", tmp_path / "in", tmp_path / "out", f"--cxr_lt={tmp_path / 'lt'}")
    out = capsys.readouterr().out
    assert "1 images are not in CXR-LT and left out" in out
    records = [found[mimic_cxr.path(mimic_cxr.IMAGES[i])] for i in (0, 2, 3)]
    assert [record["split"] for record in records] == ["train", "val", "test"]
    if year == 2024:
        assert manifest.vocabulary == ("No Finding", "Pleural Effusion", "Adenopathy", "Round Atelectasis")
        values = [list(record["labels"].values()) for record in records]
        assert values == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    else:
        assert manifest.vocabulary == ("No Finding", "Hernia") and "'Something New' " in out
        assert [list(record["labels"].values()) for record in records] == [[0, 1], [1, 0], [0, 0]]
        assert "Something New" in manifest.settings["unmapped"]


def test_a_patient_across_cxr_lts_splits_stops_the_build(tmp_path, capsys):
    mimic_cxr.imitate(tmp_path / "in")
    mimic_cxr.imitate_cxr_lt(tmp_path / "lt", 2024, images=(0, 1, 2))
    flags = (f"--cxr_lt={tmp_path / 'lt'}",)
    assert mimic_cxr.IMAGES[0][1] == mimic_cxr.IMAGES[1][1]
    assert command("mimic_cxr", tmp_path / "in", tmp_path / "out", *flags) == 3
    line = one_error_line(capsys.readouterr().err)
    assert "10000032" in line and "--splits=drawn" in line
    assert command("mimic_cxr", tmp_path / "in", tmp_path / "out", *flags, "--splits=drawn") == 0


def test_brax_reads_pngs_and_leaves_dicom_alone(tmp_path, capsys):
    brax.imitate(tmp_path / "in")
    manifest, found = built("brax", tmp_path / "in", tmp_path / "out", "--uncertain=positive")
    records = [found[f"images/id_{i}/Study_1.{i}/Series_1.2/image-1.2.{i}.png"] for i in range(3)]
    assert [record["age_years"] for record in records] == [85, 25, -1]
    assert [record["view"] for record in records] == ["PA", "LATERAL", "UNKNOWN"]
    assert [known(record) for record in records] == [
        {"No Finding": 1}, {"Pneumothorax": 1, "Fracture": 0}, {"Support Devices": 1}
    ]  # fmt: skip
    assert (records[1]["patient_id"], records[1]["study_id"]) == ("brax/id_1", "acc1")
    assert "1 ages are no number" in capsys.readouterr().out and len(found) == 3
    assert manifest.vocabulary == classes_of("chexpert")


@pytest.mark.parametrize("release", ["2017", "2020"])
def test_nih_has_boxes_and_a_published_test_set(tmp_path, capsys, release):
    nih_chestxray14.imitate(tmp_path / "in", release)
    manifest, found = built("nih_chestxray14", tmp_path / "in", tmp_path / "out")
    records = [found[f"{row[1]}/images/{row[0]}"] for row in nih_chestxray14.ROWS]
    assert [record["split"] == "test" for record in records] == [False, False, False, True]
    assert records[0]["split"] == records[1]["split"]
    assert [record["age_years"] for record in records] == [57, 58, -1, 69]
    assert [record["patient_id"] for record in records] == [f"nih_chestxray14/{i}" for i in (1, 1, 13, 13118)]
    positive = [[name for name, label in record["labels"].items() if label] for record in records]
    assert positive == [
        ["Cardiomegaly"], ["Cardiomegaly", "Pleural Effusion"], ["No Finding"], ["Infiltration", "Pleural Thickening"]
    ]  # fmt: skip
    assert all(set(record["labels"].values()) == {0, 1} for record in records) and len(manifest.vocabulary) == 15
    # 48 x 40 px stand for 1024 x 1024.
    assert boxes(records[3]) == [("Infiltration", 12.0, 20.0, 6.0, 2.5)] and records[3]["study_id"] == "13118/8"
    assert "1 ages are no number" in capsys.readouterr().out


@pytest.mark.parametrize(("fractions", "split"), [("0,0.1,0.9", "val"), ("0.1,0,0.9", "train")])
@pytest.mark.parametrize("seed", range(2))
def test_only_train_and_val_are_drawn_where_the_test_set_is_published(tmp_path, seed, fractions, split):
    nih_chestxray14.imitate(tmp_path / "in")
    flags = (f"--seed={seed}", f"--split_fractions={fractions}")
    manifest, _ = built("nih_chestxray14", tmp_path / "in", tmp_path / "out", *flags)
    assert manifest.counts["split"] == {split: 3, "test": 1}


def test_padchest_lists_are_exhaustive_but_for_remarks(tmp_path, capsys):
    padchest.imitate(tmp_path / "in")
    manifest, found = built("padchest", tmp_path / "in", tmp_path / "out")
    out = capsys.readouterr().out
    records = [found[f"{row[1]}/{row[0]}"] for row in padchest.ROWS]
    assert [record["view"] for record in records] == ["PA", "LATERAL", "AP", "UNKNOWN", "AP", "UNKNOWN"]
    assert [record["age_years"] for record in records] == [84, 84, -1, 10, 110, 67]
    assert [record["sex"] for record in records] == ["F", "F", "M", "UNKNOWN", "UNKNOWN", "M"]
    positive = [[name for name, label in known(record).items() if label] for record in records]
    assert positive == [
        ["Cardiomegaly", "Pleural Effusion"], ["Cardiomegaly", "Pleural Effusion"], ["No Finding"], [],
        ["Fracture", "Rib Fracture"], ["Atelectasis", "Lobar Atelectasis"],
    ]  # fmt: skip
    assert [set(known(record).values()) for record in records] == [{0, 1}, {0, 1}, {0, 1}, set(), {1}, {0, 1}]
    assert manifest.settings["unmapped"] == {"goiter": 3} and "no label: 'goiter' 3" in out
    assert "1 rows have no labels" in out and "1 images were MONOCHROME1" in out
    assert "1 images have no row and are left out; the first: 50/stray.png" in out


def test_padchest_images_may_lie_in_one_folder_and_be_turned(tmp_path):
    padchest.imitate(tmp_path / "in", sub="images/")
    pictures = []
    for flag in ("keep", "invert"):
        found = built("padchest", tmp_path / "in", tmp_path / "out", f"--monochrome1={flag}", "--overwrite")[1]
        records = (found["images/b1.png"], found["images/a1.png"])
        pictures.append([np.asarray(Image.open(io.BytesIO(record["image"]))).astype(int) for record in records])
    (kept, other), (turned, same) = pictures
    assert np.abs(kept + turned - 255).max() < 12 and np.array_equal(other, same)
    assert np.abs(other - padchest.sixteen_bits(0) // 257).max() < 12  # 16 bits were read as such


def test_manifest_names_every_unmapped_word(tmp_path):
    padchest.imitate(tmp_path / "in")
    table = next((tmp_path / "in").glob("*.csv"))
    words = [f"word {i}" for i in range(20)]
    table.write_text(table.read_text().replace("'goiter'", ", ".join(map(repr, words))))
    built("padchest", tmp_path / "in", tmp_path / "out")
    unmapped = json.loads((tmp_path / "out/manifest.json").read_text())["settings"]["unmapped"]
    assert set(unmapped) == set(words) and set(unmapped.values()) == {3}
