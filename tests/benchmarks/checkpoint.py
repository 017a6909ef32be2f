"""How long saving holds the loop, and how fast a state comes back.

    python -m tests.benchmarks.checkpoint --variant=vit_l16 --folder=DIR [--rounds=3]

The state of a pretraining of that variant (student, teacher, heads, both moments), written with and without
compression. Printed per round and side by side: what a save held up the caller, what it took in all, what restoring
took with the files cold and warm, and what plainly reading the same bytes cold took.
"""

import argparse
import os
import shutil
import time
from functools import partial
from pathlib import Path

import jax

from configs.pretrain import chexfound_vitl16
from cxr_jax import digest, experiments
from cxr_jax.saving import Checkpoints
from cxr_jax.sharding import make_mesh
from cxr_jax.state import abstract_state, init_state


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def make_cold(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(folder: Path) -> int:
    """Read every byte, as `cat` would; returns how many."""
    total, buffer = 0, bytearray(1 << 22)
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(state, abstract, folder: Path, compress: bool, mesh) -> dict[str, float]:
    """One save and its restores, in seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints = Checkpoints(folder, compress=compress, mesh=mesh)
    checkpoints.prepare(state)
    jax.block_until_ready(digest.begin(state.params))  # the device is free again
    started = time.perf_counter()
    held = timed(lambda: checkpoints.save(state, {"config": {}}))
    checkpoints.steps()
    saved = time.perf_counter() - started
    on_disk = sum(path.stat().st_size for path in files_of(folder))
    make_cold(folder)
    cold_read = timed(partial(read_all, folder))
    make_cold(folder)
    cold = timed(lambda: jax.block_until_ready(checkpoints.restore(abstract)[0]))
    warm = timed(lambda: jax.block_until_ready(checkpoints.restore(abstract)[0]))
    checkpoints.close()
    return {"held": held, "saved": saved, "cold": cold, "warm": warm, "cold_read": cold_read, "gb": on_disk / 1e9}


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_l16")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    config = chexfound_vitl16.get_config()
    config.model.variant = flags.variant
    experiment = experiments.build(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(experiment.objective, experiment.tx, mesh)
    state = jax.block_until_ready(init_state(experiment.objective, experiment.tx, mesh, jax.random.key(0)))
    gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    print(f"{flags.variant}: {gigabytes:.2f} GB of state")
    for number in range(flags.rounds):
        for compress in (True, False):
            m = measure(state, abstract, flags.folder / "run", compress, mesh)
            print(
                f"round {number}, {'compressed' if compress else 'plain'} ({m['gb']:.2f} GB): "
                f"held {m['held']:.2f} s of {m['saved']:.2f} ({m['held'] / m['saved']:.1%}); "
                f"restored cold {m['cold']:.2f} s = {gigabytes / m['cold']:.2f} GB/s, "
                f"{m['cold'] / m['cold_read']:.1f} x a plain read ({m['cold_read']:.2f} s); "
                f"warm {m['warm']:.2f} s = {gigabytes / m['warm']:.2f} GB/s",
                flush=True,
            )
    shutil.rmtree(flags.folder / "run", ignore_errors=True)


if __name__ == "__main__":
    main()
