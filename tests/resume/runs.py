"""Trainings as real processes: started, finished, refused, killed; and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cxr_jax.metrics import is_clock
from tests.tiny_run import QUICK_COMPILE, TINY_RUN

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 12, 4
OVERRIDES = TINY_RUN | {
    "batch_size": 16,
    "total_steps": STEPS,
    "model.layer_scale": 1.0,
    "model.drop_path": 0.4,
    "checkpoint.every_steps": SAVE_EVERY,
}


class Runner:
    """Starts the training entry on one dataset."""

    def __init__(self, dataset: Path, cache: Path):
        self._dataset, self._cache = dataset, cache

    def start(self, workdir: Path, *, devices: int = 1, processes: int = 1, **overrides) -> subprocess.Popen:
        """The training as `processes` of `devices` each; `overrides` are written with `__` for dots."""
        values = OVERRIDES | {key.replace("__", "."): value for key, value in overrides.items()}
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "NPROC": "16",
            "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *QUICK_COMPILE]),
        }
        several = [f"--processes={processes}", f"--devices_per_process={devices}", "--"]
        command = [sys.executable, "-m", "launch.local", *several] if processes > 1 else []
        command += [sys.executable, "-m", "cxr_jax.train", "--config=configs/smoke.py", f"--workdir={workdir}"]
        command += [f"--config.data.path={self._dataset}", *(f"--config.{k}={v}" for k, v in values.items())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def finish(self, workdir: Path, *, timeout_secs: float = 300, **options) -> str:
        """Run to the end; returns stdout."""
        process = self.start(workdir, **options)
        out, err = process.communicate(timeout=timeout_secs)
        assert process.returncode == 0, err
        return out

    def until(self, workdir: Path, step: int, **options) -> None:
        """Run, tell it to go once `step` is logged (twice, as impatient schedulers do), and see that it saved."""
        process = self.start(workdir, **options)
        deadline = time.monotonic() + 300
        while len(lines(workdir)) < step:
            assert process.poll() is None, f"the run ended before {step}: {process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        for _ in range(2):
            os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 4, err
        assert "told to stop; the state is saved" in err

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
