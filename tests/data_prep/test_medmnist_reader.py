"""The MedMNIST reader: published splits and labels, pixels kept, one line for every other file."""

import io
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_folder import one_error_line

from cxr_jax.data.records import read_manifest
from data_prep import build

COUNTS = {"train": 6, "val": 3, "test": 4}


def arrays(columns=1, classes=2, side=28):
    """A small file's arrays: smooth noise, and labels in which every class occurs."""
    made = {}
    for seed, (split, number) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(seed)
        low = rng.integers(0, 256, (number, 4, 4)).astype(np.uint8)
        smooth = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in low]
        made[f"{split}_images"] = np.stack([np.asarray(image) for image in smooth])
        made[f"{split}_labels"] = ((np.arange(number * columns) + seed) % classes).reshape(number, columns)
    return made


def write(folder, name="pneumoniamnist.npz", **changes):
    """`changes` replace arrays; None drops one."""
    kept = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez_compressed(folder / name, **kept)
    return folder / name


def build_file(file, *flags):
    """Exit code of a build to `out` beside the file."""
    output = f"--output={file.parent / 'out'}"
    return build.main(["--reader=medmnist", f"--input={file}", output, "--workers=0", "--overwrite", *flags])


def records(folder, split):
    """A split's records by `image_id`."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.builder_from_directory(str(folder)).as_data_source(split, decoders=decoders)
    return {record["image_id"].decode(): record for record in source}


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_splits_labels_and_pixels_are_the_published_ones(tmp_path, capsys):
    expected = arrays()
    assert build_file(write(tmp_path)) == 0
    assert "no patient ids, so each image counts as a patient" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.name == "pneumoniamnist" and manifest.vocabulary == ("Pneumonia",)
    assert manifest.counts["split"] == manifest.counts["patients_per_split"] == COUNTS
    assert manifest.counts["source"] == {"pneumoniamnist": 13}
    assert manifest.canvas == {"height": 28, "width": 28} and manifest.settings["quality"] == 100
    for split, number in COUNTS.items():
        found = records(tmp_path / "out", split)
        for row in range(number):
            record = found[f"pneumoniamnist/{split}/{row:06d}"]
            assert record["labels"].tolist() == expected[f"{split}_labels"][row].tolist()
            assert record["patient_id"] == f"pneumoniamnist/{split}/{row:06d}".encode()
            pixels = decoded(record["image"])
            assert pixels.shape == (28, 28) == (record["height"], record["width"])
            assert np.abs(pixels - expected[f"{split}_images"][row]).max() <= 2


def test_the_bytes_are_the_same_in_any_number_of_workers(tmp_path):
    file = write(tmp_path)
    prints = []
    for flag in ("--workers=0", "--workers=2"):
        assert build_file(file, flag) == 0
        prints.append(read_manifest(tmp_path / "out").fingerprint)
    assert prints[0] == prints[1]


LABELS = {  # file, columns, classes, flags: vocabulary, labels of the first rows of train
    "binary": ("pneumoniamnist_64.npz", 1, 2, (), ("Pneumonia",), [[0], [1], [0]]),
    "one name": ("other.npz", 1, 2, ("--class_names=Sick",), ("Sick",), [[0], [1], [0]]),
    "no names": ("other.npz", 1, 3, (), ("class_0", "class_1", "class_2"), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "names": ("other.npz", 1, 2, ("--class_names=Normal,Sick",), ("Normal", "Sick"), [[1, 0], [0, 1], [1, 0]]),
    "several": ("other.npz", 3, 2, (), ("class_0", "class_1", "class_2"), [[0, 1, 0], [1, 0, 1], [0, 1, 0]]),
}


@pytest.mark.parametrize("case", LABELS)
def test_one_column_holds_classes_and_several_hold_findings(tmp_path, case):
    name, columns, classes, flags, vocabulary, labels = LABELS[case]
    assert build_file(write(tmp_path, name, **arrays(columns, classes)), *flags) == 0
    assert read_manifest(tmp_path / "out").vocabulary == vocabulary
    found = records(tmp_path / "out", "train")
    stem = name.removesuffix(".npz")
    assert [found[f"{stem}/train/{row:06d}"]["labels"].tolist() for row in range(3)] == labels


def test_images_above_the_canvas_are_reduced_and_none_enlarged(tmp_path):
    assert build_file(write(tmp_path), "--canvas=20", "--quality=90") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.canvas == {"height": 20, "width": 20} and manifest.settings["quality"] == 90


images, numbers = arrays()["train_images"], arrays()["train_labels"]
REFUSED = {  # arrays to replace: words of the one line
    "missing": ({"val_labels": None, "test_images": None}, ("lacks val_labels, test_images", "it holds")),
    "colour": ({"train_images": np.stack([images] * 3, -1)}, ("train_images are in colour", "grey")),
    "volumes": ({"train_images": np.stack([images] * 5, -1)}, ("shape (6, 28, 28, 5)", "[n, h, w]")),
    "float": ({"train_images": images / 255}, ("float64", "uint8")),
    "lengths": ({"train_labels": numbers[:2]}, ("are 6, their labels 2", "equal")),
    "label type": ({"train_labels": numbers.astype(float)}, ("train_labels are float64", "integers")),
    "label column": ({"train_labels": numbers[:, 0]}, ("train_labels are int64 (6,)", "[n, c]")),
    "columns": ({"train_labels": np.hstack([numbers] * 2)}, ("'train': 2, 'val': 1", "as many")),
    "more classes": ({"train_labels": numbers + 4}, ("has 6 classes", "--class_names")),
    "negative": ({"train_labels": numbers - 1}, ("from -1 to 1", "0 to 999")),
    "objects": ({"train_labels": np.array([[None]] * 6)}, ("no npz file of plain arrays", "download")),
    "one grey level": ({"val_images": np.zeros_like(images[:3])}, ("pneumoniamnist/val/", "shows nothing")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_another_form_are_one_line_and_exit_3(tmp_path, capsys, case):
    changes, words = REFUSED[case]
    file = write(tmp_path, **changes)
    assert build_file(file) == 3
    line = one_error_line(capsys.readouterr().err)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_what_is_no_npz_is_one_line_and_exit_3(tmp_path, capsys):
    good = write(tmp_path, "good.npz").read_bytes()
    contents = {"text.npz": b"<html>not found</html>", "empty.npz": b"", "cut.npz": good[:-200]}
    # A flipped byte in the first array's compressed data.
    contents["flipped.npz"] = good[:300] + bytes([good[300] ^ 255]) + good[301:]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert build_file(tmp_path / name) == 3
        assert name in one_error_line(capsys.readouterr().err)
    np.save(tmp_path / "array.npz", images)
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        for key in arrays():
            archive.writestr(key, b"no array")
    for name, word in (("array.npz", "single array"), ("zip.npz", "shape ()"), ("absent.npz", "No such file")):
        assert build_file(tmp_path / name) == 3
        assert word in one_error_line(capsys.readouterr().err)


def test_class_names_that_do_not_fit_exit_2(tmp_path, capsys):
    file = write(tmp_path, "other.npz", **arrays(classes=3))
    assert build_file(file, "--class_names=A,B") == 2
    assert "2 names" in (line := one_error_line(capsys.readouterr().err)) and "3 classes" in line
    with pytest.raises(SystemExit) as caught:
        build_file(file, "--class_names=A,,A")
    assert caught.value.code == 2


def test_pneumoniamnist_is_read_whole_and_without_visible_loss(shared_data, tmp_path, capsys):
    """Every stored pixel against the published one; the figures are those of data_prep/README.md."""
    file = shared_data / "pneumoniamnist/pneumoniamnist_28.npz"
    assert build.main(["--reader=medmnist", f"--input={file}", f"--output={tmp_path}/out", "--workers=0"]) == 0
    with np.load(file, allow_pickle=False) as published:
        errors = []
        for split in COUNTS:
            found = records(tmp_path / "out", split)
            assert len(found) == len(published[f"{split}_images"])
            published_images, published_labels = published[f"{split}_images"], published[f"{split}_labels"]
            for row, (pixels, label) in enumerate(zip(published_images, published_labels, strict=True)):
                record = found[f"pneumoniamnist_28/{split}/{row:06d}"]
                assert record["labels"].tolist() == label.tolist()
                errors.append(np.abs(decoded(record["image"]) - pixels))
    errors = np.stack(errors)
    with capsys.disabled():
        print(
            f"\nPneumoniaMNIST, {len(errors)} images, grey levels: mean error {errors.mean():.3f}, worst {errors.max()}"
        )
    assert errors.mean() < 0.1 and errors.max() <= 2
