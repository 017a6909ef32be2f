"""A run that is killed and started again is the run that was never killed, to the bit.

Every run is a real process of the training entry. They share a cache of compiled programs, or compiling would be all
that this file does.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_jax.metrics import is_clock

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 12, 4
OVERRIDES = {
    "batch_size": 16,
    "total_steps": STEPS,
    "model.image_size": 32,
    "model.width": 32,
    "model.layer_scale": 1.0,
    "model.drop_path": 0.4,
    "crops.global_size": 32,
    "crops.local_size": 16,
    "crops.num_local": 1,
    "objective.group_size": 2,
    "heads.dino_head.num_prototypes": 64,
    "heads.ibot_head.num_prototypes": 64,
    "checkpoint.every_steps": SAVE_EVERY,
    "log.every_steps": 1,
    "log.tensorboard": False,
}


class Runner:
    """Starts the training entry on one dataset."""

    def __init__(self, dataset: Path, cache: Path):
        self._dataset, self._cache = dataset, cache

    def start(self, workdir: Path, *, devices: int = 1, **overrides) -> subprocess.Popen:
        """The training as a process; `overrides` are written with `__` for dots."""
        values = OVERRIDES | {key.replace("__", "."): value for key, value in overrides.items()}
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "NPROC": "16",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        }
        command = [sys.executable, "-m", "cxr_jax.train", "--config=configs/smoke.py", f"--workdir={workdir}"]
        command += [f"--config.data.path={self._dataset}", *(f"--config.{k}={v}" for k, v in values.items())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def finish(self, workdir: Path, **options) -> str:
        """Run to the end; returns stdout."""
        process = self.start(workdir, **options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    def refuse(self, workdir: Path, **options) -> str:
        """Run, expecting exit code 2 and one line on stderr, which is returned."""
        process = self.start(workdir, **options)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert len(err.strip().splitlines()) == 1
        return err

    def kill_when(self, workdir: Path, reached: Callable[[], bool]) -> None:
        """Start, and kill the process as soon as `reached()`."""
        process = self.start(workdir)
        deadline = time.monotonic() + 300
        while not reached():
            assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.kill()
        process.communicate()


def lines(workdir: Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl without what a clock wrote."""
    return [{key: v for key, v in json.loads(line).items() if not is_clock(key)} for line in lines(workdir)]


def half_written(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [path.name for path in folder.glob("*") if not path.name.isdigit()] if folder.is_dir() else []


@pytest.fixture(scope="module")
def runner(phantom_dataset, tmp_path_factory) -> Runner:
    return Runner(phantom_dataset, tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def uninterrupted(runner, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    runner.finish(workdir)
    assert [row["step"] for row in rows(workdir)] == list(range(STEPS))
    return workdir


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
