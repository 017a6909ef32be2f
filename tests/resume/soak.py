"""Kills a training again and again, restarts it as a scheduler would, and compares the end with an undisturbed run.

    python -m tests.resume.soak --kills=100 [--elastic] [--seed=0] [--keep=DIR]

Every life ends at a random moment: while it starts, at its first step, between steps, while a save is half done, or in
an evaluation; by SIGKILL, or by SIGTERM, after which it saves. With `--elastic` each life has 1, 2, 4 or 8 devices and
computes in float64. The run must have done every step once, in order, on the batches of the undisturbed run; its final
parameters are the same to the bit where the topology never changed, else its losses agree to 1e-8.

The suite runs it with 6 kills (test_soak.py).
"""

import argparse
import collections
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cxr_jax import checkpoint
from tests.resume.runs import Runner, half_written, lines, rows

SAVE_EVERY = 3
STEPS_PER_LIFE = 2  # new steps after which a life is over at the latest, on average
MOMENTS = ("start", "first step", "steps", "save", "evaluation")
FLOAT64 = {f"dtypes__{name}": "float64" for name in ("param", "compute", "reduce")}


def make_dataset(folder: Path) -> Path:
    """48 phantoms of 64 px."""
    command = ["-m", "data_prep.build", "--reader=phantom", "--num_images=48", "--image_px=64", f"--output={folder}"]
    subprocess.run([sys.executable, *command, "--workers=0"], check=True, capture_output=True)
    return folder


class Life:
    """What a life has done so far, apart from what it found: lines beyond the checkpoint, a save half done."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        steps = checkpoint.steps_of(workdir)
        self.began_at = steps[-1] if steps else 0
        self._written, self._found = self._stamp(), self._drafts()

    def _stamp(self) -> int:
        metrics = self._workdir / "metrics.jsonl"
        return metrics.stat().st_mtime_ns if metrics.exists() else 0

    def _drafts(self) -> set[tuple[str, int]]:
        drafts = set()
        for name in half_written(self._workdir):
            with contextlib.suppress(FileNotFoundError):
                drafts.add((name, (self._workdir / "checkpoints" / name).stat().st_ino))
        return drafts

    def new_steps(self) -> int:
        """A resumed run cuts its lines back to the checkpoint before it writes new ones."""
        return 0 if self._stamp() == self._written else max(len(lines(self._workdir)) - self.began_at, 0)

    def reached(self, moment: str, wait: int) -> bool:
        """Whether it has come to its `moment`, or has done `wait` steps without one."""
        new = self.new_steps()
        if new >= wait or (moment == "first step" and new >= 1):
            return True
        if moment == "save":
            return bool(self._drafts() - self._found)
        return moment == "evaluation" and new >= 1 and (self.began_at + new) % SAVE_EVERY == 0


def live(runner: Runner, workdir: Path, draw: random.Random, options: dict) -> tuple[str, int, int]:
    """One life; returns what ended it, the step it began at and how many it did."""
    moment, number = draw.choice(MOMENTS), draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    life = Life(workdir)
    process, started = runner.start(workdir, **options), time.monotonic()
    wait = draw.randint(1, 2 * STEPS_PER_LIFE)
    at = started + draw.uniform(0, 10) if moment == "start" else float("inf")
    while process.poll() is None and time.monotonic() < at and not life.reached(moment, wait):
        time.sleep(0.002)
    ended = process.poll()
    if ended is None:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    code = process.returncode
    # A SIGTERM before the loop listens ends the process at once.
    if code not in (0, 4, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
        raise SystemExit(f"soak: a life ended with exit code {code}:\n{err}")
    end = "finished" if code == 0 else f"{signal.Signals(number).name} at {moment}"
    return end, life.began_at, life.new_steps()


def soak(kills: int, *, elastic: bool, seed: int, folder: Path, dataset: Path) -> dict[str, int]:
    """Run it; returns how often each end came. Raises SystemExit when the runs differ."""
    draw, runner = random.Random(seed), Runner(dataset, folder / "compiled")
    steps = max(12, 2 * kills)
    options = {"total_steps": steps, "checkpoint__every_steps": SAVE_EVERY, "log__record_ids": True}
    options |= {"probe__every_steps": SAVE_EVERY, "probe__targets": "('Effusion',)", **(FLOAT64 if elastic else {})}
    whole, cut = folder / "whole", folder / "cut"
    patient = {"timeout_secs": 20.0 * steps}
    runner.finish(whole, **patient, **options)
    ends: collections.Counter[str] = collections.Counter()
    walked: list[int] = []  # where the lives began that came to a step
    while sum(ends.values()) < kills:
        devices = draw.choice([1, 2, 4, 8]) if elastic else 1
        end, began_at, new_steps = live(runner, cut, draw, options | {"devices": devices})
        if end == "finished":
            raise SystemExit(f"soak: the run was over after {sum(ends.values())} of {kills} kills")
        ends[end] += 1
        walked += [began_at] if new_steps else []
        done = len(lines(cut))
        print(f"kill {sum(ends.values())}/{kills}: {end}, {done} of {steps} steps, {devices} devices", flush=True)
    runner.finish(cut, **patient, **options)
    print(f"{len(walked)} of {kills} lives came to a step; they began at {len(set(walked))} different steps")
    if 3 * len(walked) < kills:
        raise SystemExit("soak: most lives ended before their first step, which shows little")
    compare(cut, whole, steps, elastic=elastic)
    return dict(ends)


def compare(cut: Path, whole: Path, steps: int, *, elastic: bool) -> None:
    """Raise SystemExit where the killed run is not the undisturbed one."""
    found, wanted = rows(cut), rows(whole)
    if [row["step"] for row in found] != [row["step"] for row in wanted] or found[-1]["step"] < steps - 1:
        raise SystemExit("soak: the steps of metrics.jsonl are not those of the undisturbed run")
    if (cut / "record_ids.jsonl").read_text() != (whole / "record_ids.jsonl").read_text():
        raise SystemExit("soak: the batches are not those of the undisturbed run")
    losses = [np.array([row["loss"] for row in each if "loss" in row]) for each in (found, wanted)]
    worst = float(np.abs(losses[0] / losses[1] - 1).max())
    if elastic and worst > 1e-8:
        raise SystemExit(f"soak: the losses differ by {worst:.1e}")
    if not elastic:
        for item in ("params", "targets"):
            ours, theirs = (checkpoint.read_meta(run)["digests"][item] for run in (cut, whole))
            if ours != theirs or found != wanted:
                raise SystemExit(f"soak: {item} or metrics differ from the undisturbed run")
    print(f"the same {steps} steps on the same batches; largest relative difference of a loss {worst:.1e}")


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--elastic", action="store_true", help="another number of devices in each life, float64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    flags = parser.parse_args()
    folder = flags.keep or Path(tempfile.mkdtemp(prefix="soak"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    dataset = make_dataset(folder / "data")
    ends = soak(flags.kills, elastic=flags.elastic, seed=flags.seed, folder=folder, dataset=dataset)
    for end, count in sorted(ends.items()):
        print(f"{count:4d}  {end}")
    print(f"{time.monotonic() - started:.0f} s")
    if not flags.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
