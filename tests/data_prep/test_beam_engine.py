"""The real DirectRunner gives the bytes of local processes, continues what they left, and fails in one line.

Beam pins older packages than ours, so it is run from its own environment: `make test` names its Python in
CXR_BEAM_PYTHON.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_bucket import bucket_bytes, upload
from tiny_folder import REPOSITORY, folder_bytes, one_error_line, write_folder

from data_prep import beam_engine, build
from data_prep.build_flags import parse_flags
from data_prep.readers import FlagError
from data_prep.storage import location
from tests.object_stores import BUCKET, s3_server

WITH_BEAM = os.environ.get("CXR_BEAM_PYTHON", str(REPOSITORY / ".venv/beam/bin/python"))


@pytest.fixture(scope="module")
def beam_python() -> str:
    """A Python that has Apache Beam."""
    path = sys.executable if beam_engine.beam else str(REPOSITORY / WITH_BEAM)
    if not Path(path).exists():
        pytest.skip(f"no Python with Apache Beam at {path}; `make test` makes one, CXR_BEAM_PYTHON names one")
    return path


def command(python: str, *flags: str) -> list[str]:
    return [python, "-m", "data_prep.build", *flags]


def run(python: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(python, *flags), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_direct_runner_gives_the_bytes_of_local_processes(beam_python, tmp_path):
    """Its start is most of the time: two jobs of two processes."""
    folder = write_folder(tmp_path / "in", 12)
    flags = ("--reader=folder", f"--input={folder}")
    local = run(beam_python, *flags, f"--output={tmp_path}/local", "--workers=0")
    beam = run(beam_python, *flags, f"--output={tmp_path}/beam", "--workers=2", "--beam_runner=DirectRunner")
    assert local.returncode == beam.returncode == 0, local.stderr + beam.stderr
    assert folder_bytes(tmp_path / "local") == folder_bytes(tmp_path / "beam")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beam", "in", "local"]


@pytest.mark.slow
def test_the_direct_runner_builds_from_a_bucket_to_a_bucket(beam_python, tmp_path):
    """As on machines that share no folder: input, tasks, results, parts, shards and output are objects."""
    write_folder(tmp_path / "in", 12)
    assert build.main(["--reader=folder", f"--input={tmp_path}/in", f"--output={tmp_path}/out", "--workers=0"]) == 0
    with s3_server():
        bucket = location(f"s3://{BUCKET}")
        upload(tmp_path / "in", bucket / "in")
        flags = ("--reader=folder", f"--input={bucket}/in", f"--output={bucket}/beam", "--workers=2")
        beam = run(beam_python, *flags, "--beam_runner=DirectRunner")
        assert beam.returncode == 0, beam.stderr
        assert bucket_bytes(bucket / "beam") == folder_bytes(tmp_path / "out")
        assert [path.name for path in bucket.iterdir()] == ["beam", "in"]


@pytest.mark.slow
def test_a_killed_beam_build_continues_locally(beam_python, tmp_path):
    flags = ("--reader=phantom", "--num_images=24", "--image_px=64")
    output = f"--output={tmp_path}/out"
    process = subprocess.Popen(
        command(beam_python, *flags, output, "--workers=1", "--beam_runner=DirectRunner"),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / ".out.building/parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.npz"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list(parts.glob("*.npz")))
    assert left >= 2
    done = run(beam_python, *flags, output, "--workers=0")
    assert done.returncode == 0 and f"continuing: {left} of 6 chunks" in done.stdout, done.stdout + done.stderr
    assert run(beam_python, *flags, f"--output={tmp_path}/at_once", "--workers=0").returncode == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "at_once")


def test_errors_of_beam_are_one_line(beam_python, tmp_path):
    flags = ("--reader=phantom", "--num_images=4", "--image_px=64", f"--output={tmp_path}/out", "--workers=1")
    wrong = run(beam_python, *flags, "--beam_runner=DirectRunner", "--beam_options=--nonsense=3")
    assert wrong.returncode == 2
    assert "Beam knows no --nonsense=3" in one_error_line(wrong.stderr)
    assert list(tmp_path.iterdir()) == []


def test_without_beam_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_engine, "beam", None)
    flags = ["--reader=phantom", "--num_images=4", f"--output={tmp_path}/out", "--beam_runner=DirectRunner"]
    with pytest.raises(FlagError, match=r"needs Apache Beam: .*requirements-beam\.txt"):
        build.build(parse_flags(flags))


def test_a_task_that_was_changed_is_not_run(tmp_path):
    (tmp_path / "000000.task").write_text("[]")
    with pytest.raises(Exception, match="is not what this job wrote"):
        beam_engine.run_task(("000000", "0" * 64), function=print, folder=tmp_path)
