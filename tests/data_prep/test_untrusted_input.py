"""Tables, links and archives that try to reach files outside the input folder, or to run code."""

import ast
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import jpeg, one_error_line, run, write_folder

from cxr_jax.data.records import DataError
from data_prep import build
from data_prep.images import ImageSettings
from data_prep.readers import folder as folder_reader
from data_prep.readers import listing, medmnist

REPOSITORY = Path(__file__).parents[2]
READING_ROOMS = sorted([*(REPOSITORY / "data_prep").rglob("*.py"), *(REPOSITORY / "cxr_jax/data").rglob("*.py")])


def open_folder(folder, *flags: str):
    args = build.parse_flags(["--reader=folder", f"--input={folder}", "--output=unused", *flags])
    return folder_reader.open_source(args, ImageSettings())


@pytest.fixture
def secret(tmp_path):
    """An image beside the input folder, which nothing below the folder may reach."""
    file = tmp_path / "secret.jpg"
    file.write_bytes(jpeg(9))
    return file


@pytest.mark.parametrize("form", ["../secret.jpg", "images/../../secret.jpg", "{absolute}", "../../etc/passwd"])
def test_a_table_cannot_name_a_file_outside_the_folder(tmp_path, secret, form):
    path = form.format(absolute=secret)
    folder = write_folder(tmp_path / "in", 2, file=["images/0000.jpg", path])
    with pytest.raises(DataError, match="1 of the 2 images it names are not in the folder"):
        open_folder(folder)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"file,label,x,y,w,h\n{path},Mass,1,1,2,2\n")
    with pytest.raises(DataError, match="is not in the folder"):
        open_folder(write_folder(tmp_path / "in2", 2), f"--boxes={boxes}")


@pytest.mark.parametrize("form", ["../secret.jpg", "images/../../secret.jpg", "{absolute}"])
@pytest.mark.parametrize("flags", [(), ("--follow_links",)])
def test_a_mask_outside_the_folder_is_refused(tmp_path, secret, form, flags):
    folder = write_folder(tmp_path / "in", 2, mask=[form.format(absolute=secret), ""])
    with pytest.raises(DataError, match="leaves the input folder"):
        open_folder(folder, *flags)


def test_links_that_leave_the_folder_need_a_flag(tmp_path, secret):
    folder = write_folder(tmp_path / "in", 2)
    (folder / "labels.csv").unlink()
    os.symlink(folder / "images/0000.jpg", folder / "inner.jpg")
    assert len(open_folder(folder).samples) == 3, "a link inside the folder is a file like others"
    os.symlink(secret, folder / "outer.jpg")
    with pytest.raises(DataError, match=r"^outer\.jpg: is a link that leaves the input folder .*--follow_links"):
        open_folder(folder)
    assert len(open_folder(folder, "--follow_links").samples) == 4
    (folder / "outer.jpg").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(jpeg(3))
    os.symlink(tmp_path / "elsewhere", folder / "more")
    with pytest.raises(DataError, match=r"^more: is a link that leaves"):
        open_folder(folder)
    assert "more/a.jpg" in [sample.key for sample in open_folder(folder, "--follow_links").samples]


def test_a_table_by_a_link_that_leaves_the_folder(tmp_path):
    folder = write_folder(tmp_path / "in", 2)
    (folder / "labels.csv").rename(tmp_path / "elsewhere.csv")
    os.symlink(tmp_path / "elsewhere.csv", folder / "labels.csv")
    for flags in ((), ("--labels=labels.csv",), ("--labels=", "--boxes=labels.csv")):
        with pytest.raises(DataError, match=r"^labels\.csv: is a link that leaves the input folder .*--follow_links"):
            open_folder(folder, *flags)
    for flag in ("--follow_links", f"--labels={tmp_path}/elsewhere.csv", "--labels=../elsewhere.csv"):
        assert open_folder(folder, flag).vocabulary == ("Edema", "Mass")


def test_links_in_a_circle_end(tmp_path):
    folder = write_folder(tmp_path / "in", 1)
    (folder / "labels.csv").unlink()
    os.symlink(folder, folder / "images/up")
    os.symlink(folder / "images", folder / "again")
    keys = [sample.key for sample in open_folder(folder).samples]
    assert keys == ["again/0000.jpg", "images/0000.jpg"]


def test_a_mask_by_a_link(tmp_path, secret):
    folder = write_folder(tmp_path / "in", 2, mask=["mask.png", ""])
    os.symlink(secret, folder / "mask.png")
    with pytest.raises(DataError, match="leaves the input folder"):
        open_folder(folder)


def test_an_escape_is_one_line_and_leaves_nothing(tmp_path, secret):
    folder = write_folder(tmp_path / "in", 2, mask=["../secret.jpg", ""])
    done = run("--reader=folder", f"--input={folder}", f"--output={tmp_path}/out")
    assert done.returncode == 3 and "leaves the input folder" in one_error_line(done.stderr)
    assert not (tmp_path / "out").exists()


def test_inside_is_about_whole_names(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in_two").mkdir()
    os.symlink(tmp_path / "in_two", tmp_path / "in/link")
    with pytest.raises(DataError):
        listing.inside(tmp_path / "in", "link/a", False)
    assert listing.inside(tmp_path / "in", "a/b", False) == tmp_path / "in/a/b"


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["npz", "pickle"])
def test_a_pickled_array_is_refused_and_never_loaded(tmp_path, form):
    mark, file = tmp_path / "exploded", tmp_path / "pneumoniamnist.npz"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        buffer = io.BytesIO()
        objects = np.array([Bomb(mark)] * 3, dtype=object)
        names = [f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")]
        np.savez(buffer, **dict.fromkeys(names, objects))
        file.write_bytes(buffer.getvalue())
    args = build.parse_flags(["--reader=medmnist", f"--input={file}", "--output=unused"])
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz"):
        medmnist.open_source(args, ImageSettings())
    assert not mark.exists()
    if form == "pickle":
        pickle.loads(file.read_bytes())
        assert mark.exists(), "the bomb works, so the test can fail"


@pytest.mark.parametrize("path", READING_ROOMS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_room_that_reads_data_can_load_a_pickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {
                "pickle",
                "cPickle",
                "dill",
                "joblib",
                "shelve",
                "marshal",
            }
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("read_pickle", "load")
            and isinstance(node.value, ast.Name)
        ):
            assert node.value.id not in ("pd", "pandas", "torch"), f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load", "jnp.load"):
            allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert allowed.get("allow_pickle") == "False", f"{path}:{node.lineno} does not say allow_pickle=False"
