"""A run that is killed and started again is the run that was never killed, to the bit.

Every run is a real process of the training entry. They share a cache of compiled programs, or compiling would be all
that this file does.
"""

import shutil
import time

import jax
import numpy as np
import pytest

from cxr_jax import checkpoint
from tests.resume.runs import SAVE_EVERY, STEPS, half_written, lines, rows


def test_killed_between_saves(runner, uninterrupted, tmp_path):
    """After a metrics line beyond the first checkpoint; its last line is torn as a full disk would leave it."""
    workdir = tmp_path / "run"
    runner.kill_when(workdir, lambda: len(lines(workdir)) > SAVE_EVERY + 2)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 1')
    runner.finish(workdir)
    assert rows(workdir) == rows(uninterrupted)


def test_killed_before_the_first_checkpoint_and_during_a_save(runner, uninterrupted, tmp_path):
    """One run killed twice: with nothing saved yet, and with a save half done, which is not picked up."""
    workdir = tmp_path / "run"
    runner.kill_when(workdir, lambda: len(lines(workdir)) == 2)
    runner.kill_when(workdir, lambda: bool(half_written(workdir)))
    # Whatever the kill left, one more unfinished save of a later step lies beside it.
    complete = next(path for path in (uninterrupted / "checkpoints").iterdir() if path.name == str(SAVE_EVERY))
    torn = workdir / "checkpoints" / f"{STEPS - 1}.orbax-checkpoint-tmp"
    shutil.copytree(complete, torn)
    (torn / "_CHECKPOINT_METADATA").unlink()
    said = runner.finish(workdir)
    assert f"step {STEPS - 1} of" not in said
    assert rows(workdir) == rows(uninterrupted)
    assert set(half_written(workdir)) <= {torn.name}, "the killed save was not cleaned up"


def test_a_bfloat16_teacher_and_first_moment_continue_to_the_bit(runner, tmp_path):
    """The teacher's rounding is by chance: a continued run draws what the whole one drew."""
    halves = {"objective__teacher_dtype": "bfloat16", "optim__first_moment_dtype": "bfloat16"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runner.finish(whole, **halves)
    runner.until(cut, SAVE_EVERY + 1, **halves)
    runner.finish(cut, **halves)
    assert rows(cut) == rows(whole)
    whole_teacher, cut_teacher = (jax.tree.leaves(checkpoint.read_item(run, "targets")) for run in (whole, cut))
    assert {leaf.dtype.name for leaf in whole_teacher} == {"bfloat16"}
    assert all(np.array_equal(a, b) for a, b in zip(whole_teacher, cut_teacher, strict=True))


def test_a_finished_run_is_left_alone(runner, uninterrupted):
    def content():
        return {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}

    before = content()
    said = runner.finish(uninterrupted)
    assert f"step {STEPS} of {STEPS}" in said
    assert content() == before


def test_another_config_is_refused(runner, uninterrupted):
    said = runner.refuse(uninterrupted, optim__base_learning_rate=1.0)
    assert "config.optim.base_learning_rate was" in said and "is 1.0" in said


def test_a_second_process_is_refused(runner, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    first = runner.start(workdir)
    while not (workdir / "run.json").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    said = runner.refuse(workdir)
    assert str(workdir) in said and "another process" in said
    assert first.communicate(timeout=300) and first.returncode == 0
    assert rows(workdir) == rows(uninterrupted)


def test_eight_devices_continue_on_one(runner, uninterrupted, tmp_path):
    """The rounding differs between meshes, nothing else; LayerScale 1, see the mesh tests."""
    workdir = tmp_path / "run"
    runner.finish(workdir, devices=8)
    for step in (2 * SAVE_EVERY, STEPS):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    said = runner.finish(workdir, devices=1)
    assert f"step {SAVE_EVERY} of {STEPS}" in said
    found, wanted = rows(workdir), rows(uninterrupted)
    assert [row["step"] for row in found] == list(range(STEPS))
    for row, other in zip(found, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5), row["step"]
