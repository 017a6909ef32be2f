"""Where a conversion is built, and what is said before anything is read."""

import errno
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from absl import flags as absl_flags

from cxr_jax import config
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.export.asked import check_hints, check_source
from cxr_jax.export.foreign import Hints
from cxr_jax.export.place import check_output, whole_or_nothing

NOBODY = 65534


def build(folder):
    (folder / "report").write_text("x")
    return {}


@pytest.fixture
def mere_user():
    """A folder of root's that others may read, and the right of nobody for the length of a test."""
    if os.geteuid():
        pytest.skip("only root can step down and up again")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("shut.pth", "open.pth"):
            (folder / part).write_bytes(b"x")
        (folder / "shut.pth").chmod(0)
        (folder / "shut").mkdir(mode=0)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_names_up_to_the_limit_and_new_parents(tmp_path):
    longest = tmp_path / "a" / "b" / ("ä" * 127)
    whole_or_nothing(longest, build)
    assert (longest / "report").exists() and len(list(longest.parent.iterdir())) == 1


@pytest.mark.parametrize("name", ["file/x", "x" * 256, "a/" + "x" * 300])
def test_what_cannot_be_written_is_said_before_anything_is_built(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--output=.*cannot be written"):
        check_output(tmp_path / name, False, "report")
        whole_or_nothing(tmp_path / name, lambda folder: pytest.fail("it was built"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_the_right_to_write(mere_user):
    with pytest.raises(ConfigError, match=r"cannot be written .Permission denied"):
        whole_or_nothing(mere_user / "out", lambda folder: pytest.fail("it was built"))


def test_unreadable_input_is_named_with_the_reason(mere_user):
    check_source("input", mere_user / "open.pth")
    for name in ("shut.pth", "shut"):
        with pytest.raises(DataError, match=rf"--input={mere_user / name}: cannot be read .Permission denied"):
            check_source("input", mere_user / name)


def test_missing_input_is_named(tmp_path):
    (tmp_path / "link.pth").symlink_to("gone.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    for name, error, words in (
        ("x", ConfigError, "no such file or folder"),
        ("x.pth", ConfigError, "no such file or folder"),
        ("link.pth", ConfigError, "it is a link to gone.pth"),
        ("loop.pth", DataError, "Too many levels of symbolic links"),
    ):
        with pytest.raises(error, match=words):
            check_source("input", tmp_path / name)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    host = socket.gethostname()[:64]
    dead, other = tmp_path / f".out.new.{host}.{done.pid}", tmp_path / f".out.new.elsewhere-{host}.{done.pid}"
    alive = tmp_path / f".out.new.{host}.{os.getppid()}"
    for folder in (dead, alive, other):
        folder.mkdir()
    whole_or_nothing(tmp_path / "out", build)
    assert {p.name for p in tmp_path.iterdir()} == {"out", alive.name, other.name}


def test_a_link_is_not_overwritten(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "report").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ConfigError, match=r"is a link, which is not replaced; name the folder itself: .*real"):
        check_output(tmp_path / "link", True, "report")
    check_output(tmp_path / "real", True, "report")


def test_a_failure_at_the_last_step_keeps_the_earlier_conversion(tmp_path, monkeypatch):
    whole_or_nothing(tmp_path / "out", build)
    rename = Path.rename

    def fails(self, target):
        if ".new." in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        whole_or_nothing(tmp_path / "out", build)
    assert (tmp_path / "out" / "report").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (Hints(mean=(0.5,) * 3), "--image_mean is given without --image_std"),
        (Hints(std=(0.5,) * 3), "--image_std is given without --image_mean"),
        (Hints(num_heads=0), "--num_heads=0"),
        (Hints(num_heads=-2), "--num_heads=-2"),
        (Hints(decoder_heads=0), "--decoder_heads=0"),
        (Hints(mean=(0.5,) * 3, std=(0.0,) * 3), "--image_std=0,0,0: legal are finite numbers above 0"),
        (Hints(mean=(float("nan"),), std=(0.5,)), "--image_mean=nan"),
    ],
)
def test_hints_that_no_file_can_have(hints, words):
    with pytest.raises(ConfigError) as caught:
        check_hints(hints)
    assert words in str(caught.value)


def test_a_full_disk_is_one_line_without_a_run_directory(monkeypatch, capsys):
    """As in `convert`, which has --output and no --workdir."""
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("output", "/somewhere", "", flag_values=values)
    monkeypatch.setattr(config.flags, "FLAGS", values)
    monkeypatch.setattr(config.app, "run", lambda main, flags_parser: main(None))

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as caught:
        config.run_entry(full)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: /somewhere: No space left on device; mend the storage")
