"""What converting a ViT-L takes, in both directions: time and peak memory of the command itself.

    python -m tests.benchmarks.convert --folder=DIR

A run of random weights is made (CheXFound's backbone, 304 M parameters), converted to DINOv2's file and to a Hugging
Face folder, and the file read back as a run; each with its parity check. Printed per command: seconds, the peak of
its resident memory, and that peak above what its imports alone take, as a multiple of the model's size.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cxr_jax import imported
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.mapping import unflatten
from cxr_jax.export.ours import parameter_shapes
from cxr_jax.models.variants import variant

SCRATCH = "run", "dinov2", "hf", "back"


def write_model(folder: Path) -> float:
    """A run of random weights; returns the model's size in MiB."""
    model = {"image_size": 224, **variant("vit_l16")}
    generator, flat = np.random.default_rng(0), {}
    for path, shape in parameter_shapes({"backbone": model}).items():
        around = 1 if path.endswith("/scale") or "layer_scale" in path else 0
        flat[path] = around + generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    contents = Contents({"teacher": unflatten(flat)}, model, Geometry("pad", 224), {}, {"step": 0})
    imported.write_run(folder, contents, "random weights")
    return sum(array.nbytes for array in flat.values()) / 2**20


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of a command that has to succeed."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**10


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for 6 GB of scratch files, removed at the end")
    folder = parser.parse_args().folder
    run, dinov2, hf, back = (folder / name for name in SCRATCH)
    # A child's peak begins at what its parent holds, so the parent must never have held the model.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        model = pool.apply(write_model, (run,))
    _, imports = measured("-c", "import cxr_jax.convert")
    _, libraries = measured("-c", "import cxr_jax.convert, torch, transformers.models.dinov2_with_registers")
    print(f"model {model:.0f} MiB; imports alone {imports:.0f} MiB, with torch and transformers {libraries:.0f} MiB")
    convert = "-m", "cxr_jax.convert"
    commands = {
        "run -> dinov2": (*convert, f"--input={run}", f"--output={dinov2}", "--format=dinov2"),
        "run -> hf": (*convert, f"--input={run}", f"--output={hf}", "--format=hf"),
        "dinov2 -> run": (*convert, f"--input={dinov2}", f"--output={back}", "--format=cxr_jax"),
    }
    for name, command in commands.items():
        secs, peak = measured(*command)
        print(
            f"{name}: {secs:.0f} s, peak {peak:.0f} MiB; {(peak - imports) / model:.2f} x the model above imports, "
            f"{(peak - libraries) / model:.2f} x above imports with torch and transformers",
            flush=True,
        )
    for name in SCRATCH:
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
