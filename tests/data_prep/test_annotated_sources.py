"""Collections annotated by radiologists or laboratories, with boxes and masks, built from imitations."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from publishers import jsrt, nlm_tuberculosis, rsna_pneumonia, tbx11k, vindr_cxr
from publishers.opening import boxes, built, command, known
from publishers.paint import write
from tiny_dicom import dicom, smooth, written
from tiny_folder import one_error_line

from data_prep import dicom_file
from data_prep.readers.nlm_tuberculosis import parse_reading
from data_prep.vocabulary import classes_of


def mask_of(record):
    return np.asarray(Image.open(io.BytesIO(record["mask"]))) > 0


def positive(record):
    return {name for name, label in record["labels"].items() if label == 1}


@pytest.mark.parametrize(("policy", "label"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_vindr_takes_majorities_and_calls_minorities_uncertain(tmp_path, capsys, policy, label):
    vindr_cxr.imitate(tmp_path / "in")
    manifest, found = built("vindr_cxr", tmp_path / "in", tmp_path / "out", f"--uncertain={policy}")
    assert manifest.vocabulary == classes_of("vindr_cxr") and len(manifest.vocabulary) == 28
    healthy, nodule, test = (found[name] for name in ("train/50a4.png", "train/9a5b.png", "test/b3c1.png"))
    assert positive(healthy) == {"No Finding"} and set(healthy["labels"].values()) == {0, 1} and not boxes(healthy)
    values = nodule["labels"]
    assert (values["Nodule or Mass"], values["Consolidation"], values["No Finding"]) == (1, label, label)
    assert values["Edema"] == 0
    # All radiologists' boxes; the third is cut at the border of the 80 x 100 px.
    assert boxes(nodule) == [
        ("Nodule or Mass", 8.0, 10.0, 8.5, 20.0), ("Nodule or Mass", 9.0, 10.0, 8.0, 21.0),
        ("Consolidation", 40.0, 50.0, 40.0, 40.0),
    ]  # fmt: skip
    assert test["split"] == "test" and positive(test) == {"Pleural Effusion", "Other Disease"}
    assert {healthy["split"], nodule["split"]} <= {"train", "val"} and nodule["view"] == "PA"
    assert "each image counts as a patient" in capsys.readouterr().out


def test_vindr_in_dicom_has_sex_and_age_in_its_headers(tmp_path, capfd):
    pictures = []
    for suffix in (".png", ".dicom"):
        vindr_cxr.imitate(tmp_path / suffix, suffix)
        found = built("vindr_cxr", tmp_path / suffix, tmp_path / f"out{suffix}")[1]
        record = found[f"train/9a5b{suffix}"]
        assert boxes(record)[0] == ("Nodule or Mass", 8.0, 10.0, 8.5, 20.0)
        pictures.append(np.asarray(Image.open(io.BytesIO(record["image"]))).astype(int))
    assert (record["sex"], record["age_years"], record["view"]) == ("M", 61, "PA")
    assert np.abs(pictures[0] - pictures[1]).max() <= 12  # MONOCHROME1 was turned; the rest is JPEG
    files = b"".join(file.read_bytes() for file in (tmp_path / "out.dicom").iterdir())
    assert b"NGUYEN" not in files.upper() and "NGUYEN" not in "".join(capfd.readouterr()).upper()


def test_vindrs_challenge_has_one_table_and_reduced_images(tmp_path):
    vindr_cxr.imitate_challenge(tmp_path / "in")
    manifest, found = built("vindr_cxr", tmp_path / "in", tmp_path / "out")
    assert manifest.vocabulary == ("No Finding", "Cardiomegaly")
    assert known(found["train/50a4.png"]) == {"No Finding": 1, "Cardiomegaly": 0}
    assert known(found["train/9a5b.png"]) == {"Cardiomegaly": 1}
    assert boxes(found["train/9a5b.png"]) == [("Cardiomegaly", 8.0, 10.0, 8.0, 20.0)] * 2
    assert found["test/b3c1.png"]["split"] == "test" and known(found["test/b3c1.png"]) == {}


def test_a_box_that_refers_to_other_pixels_is_refused(tmp_path, capsys):
    """Without train_meta.csv the boxes of reduced images lie outside."""
    vindr_cxr.imitate_challenge(tmp_path / "in")
    (tmp_path / "in/train_meta.csv").unlink()
    assert command("vindr_cxr", tmp_path / "in", tmp_path / "out") == 3
    line = one_error_line(capsys.readouterr().err)
    assert "train/9a5b.png: the box of Cardiomegaly at x 80" in line and "80x100 pixels" in line


def test_rsna_counts_an_image_once_and_knows_what_its_classes_say(tmp_path, capsys):
    rsna_pneumonia.imitate(tmp_path / "in")
    manifest, found = built("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    other, opacity, normal = (found[f"stage_2_train_images/{name}.png"] for name in rsna_pneumonia.IMAGES)
    assert known(other) == {"No Finding": 0, "Pneumonia": 0}
    assert known(opacity) == {"No Finding": 0, "Lung Opacity": 1, "Pneumonia": 1}
    assert known(normal) == {"No Finding": 1, "Lung Opacity": 0, "Pneumonia": 0}
    # 64 px stand for 1024.
    assert boxes(opacity) == [("Lung Opacity", 16.5, 9.5, 13.3, 23.7), ("Lung Opacity", 35.1, 9.5, 16.0, 28.3)]
    test = found["stage_2_test_images/0000a175.png"]
    assert test["split"] == "test" and known(test) == {} and manifest.counts["images"] == 4
    assert "images of one patient may fall into several splits" in capsys.readouterr().out


def test_rsna_patients_are_the_nihs_where_the_mapping_is_there(tmp_path, capsys):
    rsna_pneumonia.imitate(tmp_path / "in")
    rsna_pneumonia.imitate_mapping(tmp_path / "in")
    _, found = built("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    other, opacity, normal = (found[f"stage_2_train_images/{name}.png"] for name in rsna_pneumonia.IMAGES)
    assert other["patient_id"] == opacity["patient_id"] == "nih_chestxray14/11" and other["split"] == opacity["split"]
    assert found["stage_2_test_images/0000a175.png"]["patient_id"] == "nih_chestxray14/502"
    assert normal["patient_id"].startswith("rsna_pneumonia/")
    assert "may fall" not in capsys.readouterr().out


def test_rsna_in_dicom_has_the_view_in_its_headers(tmp_path):
    def write_dicom(root, folder, name, seed):
        tags = {"ViewPosition": "AP", "PatientSex": "F", "PatientAge": "51", "PatientID": name, "PatientName": name}
        write(root, f"{folder}/{name}.dcm", written(dicom(smooth(seed, 64, 64), **tags)))

    rsna_pneumonia.imitate(tmp_path / "in", write_dicom)
    _, found = built("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    record = found["stage_2_train_images/00436515.dcm"]
    assert (record["view"], record["sex"], record["age_years"]) == ("AP", "F", 51)
    assert boxes(record)[0] == ("Lung Opacity", 16.5, 9.5, 13.3, 23.7) and len(found) == 4


def test_dicom_without_pydicom_says_what_to_install(tmp_path, capsys, monkeypatch):
    vindr_cxr.imitate(tmp_path / "in", ".dicom")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom_file.pydicom.cache_clear()
    try:
        assert command("vindr_cxr", tmp_path / "in", tmp_path / "out") == 2
    finally:
        dicom_file.pydicom.cache_clear()
    assert "requirements-dicom.txt" in one_error_line(capsys.readouterr().err)


READINGS = {
    "male 45yrs\nnormal\n": ("M", "45yrs", "normal"),
    "Female, 28yrs\r\nnormale\r\n": ("F", "28yrs", "normale"),
    "femal 16month\n\nbilateral PTB\n": ("F", "16month", "bilateral PTB"),
    "Patient's Sex: M \nPatient's Age: 040Y\nimproved\naeration": ("M", "040Y", "improved aeration"),
    "\n": ("", "", ""),
}


@pytest.mark.parametrize("text", READINGS)
def test_clinical_readings_of_several_hands(text):
    assert parse_reading(text) == READINGS[text]


def test_shenzhen_takes_labels_from_names_and_masks_where_there_are_any(tmp_path, capsys):
    nlm_tuberculosis.imitate_shenzhen(tmp_path / "in")
    manifest, found = built("shenzhen", tmp_path / "in", tmp_path / "out")
    records = [found[f"ChinaSet_AllFiles/CXR_png/{name}.png"] for name in nlm_tuberculosis.SHENZHEN]
    assert [record["sex"] for record in records] == ["M", "F", "F", "M", "UNKNOWN"]
    ages = [45, 28, 16 / 12, 64 / 365.25, -1]
    assert [record["age_years"] for record in records] == pytest.approx(ages)
    assert [record["labels"]["Tuberculosis"] for record in records] == [0, 0, 0, 1, 1]
    assert [record["labels"]["No Finding"] for record in records] == [1, 1, 1, 0, 0]
    assert [bool(record["mask"]) for record in records] == [False, False, False, True, False]
    mask = mask_of(records[3])
    assert mask.shape == (40, 48) and mask[12:18, 14:22].all() and mask.mean() == pytest.approx(120 / 1920, rel=0.1)
    out = capsys.readouterr().out
    assert "1 images have no clinical reading" in out and "1 readings contradict" in out
    assert manifest.counts["images_with_mask"] == 1


def test_montgomery_unites_both_lungs(tmp_path):
    nlm_tuberculosis.imitate_montgomery(tmp_path / "in")
    _, found = built("montgomery", tmp_path / "in", tmp_path / "out")
    healthy, ill = (found[f"MontgomerySet/CXR_png/{name}.png"] for name in nlm_tuberculosis.MONTGOMERY)
    assert (healthy["sex"], healthy["age_years"], ill["sex"], ill["age_years"]) == ("F", 27, "M", 40)
    assert known(healthy) == {"No Finding": 1, "Tuberculosis": 0} and positive(ill) == {"Tuberculosis"}
    expected = np.zeros((40, 48), bool)
    expected[10:30, 5:15] = expected[10:30, 30:40] = True
    assert np.array_equal(mask_of(ill), expected)
    nlm_tuberculosis.imitate_montgomery(tmp_path / "half", right=False)
    _, found = built("montgomery", tmp_path / "half", tmp_path / "out_half")
    assert not any(record["mask"] for record in found.values())


def test_jsrt_raw_files_are_big_endian_negatives(tmp_path):
    jsrt.imitate(tmp_path / "in")
    _, found = built("jsrt", tmp_path / "in", tmp_path / "out", "--canvas=512")
    nodule, none = (found[f"All247images/{name}.IMG"] for name in ("JPCLN001", "JPCNN001"))
    for seed, record in enumerate((nodule, none)):
        picture = np.asarray(Image.open(io.BytesIO(record["image"]))).astype(int)
        assert picture.shape == (512, 512)
        # Middles of the 64 px squares, away from the edges that reduction and JPEG blur.
        assert np.abs(picture[8::16, 8::16] - jsrt.raw(seed)[1][32::64, 32::64]).max() <= 6
    assert (nodule["sex"], nodule["age_years"], none["sex"], none["age_years"]) == ("M", 53, "F", -1)
    assert known(nodule) == {"Nodule": 1} and known(none) == {"Nodule": 0} and not boxes(none)
    # 15 mm at 0.175 mm a pixel are 85.7 px about (1634, 692); a quarter of all that.
    assert boxes(nodule) == [("Nodule", 397.8, 162.3, 21.4, 21.4)]
    mask = mask_of(nodule)
    assert mask[160:390, 55:195].all() and mask[160:390, 305:445].all() and not mask[:, 205:295].any()
    assert not none["mask"]


def test_jsrt_copies_keep_their_polarity_and_bad_raw_files_are_refused(tmp_path, capsys):
    jsrt.imitate(tmp_path / "in", suffix=".png")
    _, found = built("jsrt", tmp_path / "in", tmp_path / "out")
    assert boxes(found["All247images/JPCLN001.png"]) == [("Nodule", 198.9, 81.1, 10.7, 10.7)]
    for content, word in ((b"\0" * 100, "holds 100 bytes"), (jsrt.raw(0)[0][::-1], "12 bits, big-endian")):
        (tmp_path / "in/All247images/JPCLN001.IMG").write_bytes(content)
        assert command("jsrt", tmp_path / "in", tmp_path / "other") == 3
        assert word in one_error_line(capsys.readouterr().err)


def test_tbx11k_has_kinds_of_tuberculosis_by_box(tmp_path, capsys):
    tbx11k.imitate(tmp_path / "in")
    _, found = built("tbx11k", tmp_path / "in", tmp_path / "out")
    at = {name.removeprefix("TBX11K/imgs/"): record for name, record in found.items()}
    kinds = {"Active Tuberculosis": 0, "Latent Tuberculosis": 0, "Uncertain Tuberculosis": 0}
    assert known(at["health/h0001.png"]) == {"No Finding": 1, "Tuberculosis": 0, **kinds}
    assert known(at["sick/s0001.png"]) == {"No Finding": 0, "Tuberculosis": 0, **kinds}
    both = {"Active Tuberculosis": 1, "Latent Tuberculosis": 1}
    assert known(at["tb/tb0003.png"]) == {"No Finding": 0, "Tuberculosis": 1, **kinds, **both}
    assert known(at["tb/tb1199.png"]) == {"No Finding": 0, "Tuberculosis": 1}
    assert known(at["test/test_000001.png"]) == {}
    splits = {name: record["split"] for name, record in at.items()}
    assert splits == {
        "health/h0001.png": "train", "sick/s0001.png": "train", "tb/tb0003.png": "train", "tb/tb1199.png": "val",
        "health/h3001.png": "val", "test/test_000001.png": "test",
    }  # fmt: skip
    # 64 px stand for 512.
    assert boxes(at["tb/tb0003.png"]) == [
        ("Active Tuberculosis", 8.0, 16.0, 4.0, 32.0), ("Latent Tuberculosis", 37.6, 12.5, 12.5, 12.5)
    ]  # fmt: skip
    assert "1 images have no row and are left out; the first: TBX11K/imgs/extra" in capsys.readouterr().out


def test_tbx11k_simplified_is_a_table(tmp_path):
    tbx11k.imitate_simplified(tmp_path / "in")
    _, found = built("tbx11k", tmp_path / "in", tmp_path / "out")
    ill = found["images/tb0003.png"]
    assert positive(ill) == {"Tuberculosis", "Latent Tuberculosis"} and ill["split"] == "val"
    assert boxes(ill) == [("Latent Tuberculosis", x, 2.1, 8.0, 4.0) for x in (1.0, 32.0)]
    assert positive(found["images/h0001.png"]) == {"No Finding"} and not positive(found["images/s0001.png"])
