"""Throughput of the input pipeline: decoding, whole pipeline, torchvision's DINOv2 augmentation on the same JPEGs.

    taskset -c 0,1 python -m tests.benchmarks.input --data=../shared/data/cxr_small --peer_python=VENV/bin/python

VENV holds torch and torchvision. In: real radiographs, which are enlarged to `--image_px` and get a sensor's noise, so
that their JPEGs are not easy. Out: a table, and with `--output` a JSON file. Pictures and shards lie in memory
(`--scratch`): from a disk a kernel that drops its cache between rounds would be measured along.

Everything is measured in rounds, one subject after the other, and compared within a round; the table shows medians over
rounds, in brackets the smallest and largest. "Per core" is images per second of CPU time of everything the subject
runs, which other users of the machine disturb least. Scaling is by the wall clock, so it needs free cores: n threads or
worker processes, with the process that takes their batches, are kept on n cores; how many each was really given stands
beside it. The decoder and torchvision are kept on one.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import simplejpeg
from PIL import Image

from cxr_jax.data.augment import multi_crop_recipes, random_crops
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import Split, open_split
from cxr_jax.sharding import batch_sharding, make_mesh
from data_prep import build

PEER = Path(__file__).with_name("torchvision_dinov2.py")
SIZES = {224: 96, 512: 144}
NOISE_SIGMA, QUALITY = 4.0, 90  # grey levels; of JPEG
TARGETS = {
    "pipeline / decode": 0.9,
    "pipeline / torchvision 224": 12.0,
    "pipeline / torchvision 512": 22.0,
    "2 threads / 1": 1.8,
    "2 processes / 1": 1.5,
}


@dataclass(frozen=True)
class Spent:
    """What a subject did in a round."""

    images: int
    cpu_secs: float
    wall_secs: float

    @property
    def per_core(self) -> float:
        """Images per second of CPU time."""
        return self.images / max(self.cpu_secs, 1e-9)

    @property
    def per_second(self) -> float:
        """Images per second of the wall clock."""
        return self.images / self.wall_secs

    @property
    def cores(self) -> float:
        """How many cores it was given."""
        return self.cpu_secs / self.wall_secs


Subject = Callable[[int], Spent]


def make_pictures(source: Path, folder: Path, count: int, image_px: int) -> None:
    """`count` different JPEGs: radiographs of `source` enlarged to a longest side of `image_px`, with noise."""
    files = sorted(source.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"error: --data={source}: holds no .jpg")
    random = np.random.default_rng(0)
    for i in range(count):
        # Where the radiographs are fewer they come again, with other noise.
        file = files[i * len(files) // count] if count < len(files) else files[i % len(files)]
        picture = Image.open(file).convert("L")
        scale = image_px / max(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, np.float32) + random.normal(0, NOISE_SIGMA, picture.size[::-1])
        pixels = np.clip(noisy, 0, 255).round().astype(np.uint8)[:, :, None]
        (folder / f"{i:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="GRAY"))


def descendants() -> dict[int, float]:
    """This process's living children and theirs: CPU seconds by process id."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        grown, ours = bool(more), ours | more
    return {pid: ticks[pid] / os.sysconf("SC_CLK_TCK") for pid in ours - {os.getpid()}}


def cpu_of_children() -> float:
    """CPU seconds of all of them."""
    return sum(descendants().values())


def on_cores(count: int, subject: Subject) -> Subject:
    """The subject while every thread of ours and of our children is kept on the first `count` cores."""

    def keep(cores: list[int]) -> None:
        for pid in (os.getpid(), *descendants()):
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.sched_setaffinity(int(task.name), cores)

    def run(images: int) -> Spent:
        cores = sorted(os.sched_getaffinity(0))
        keep(cores[:count])
        try:
            return subject(images)
        finally:
            keep(cores)

    return run


def timed(work: Callable[[int], Any], children: bool = False) -> Subject:
    """`work(images)` as a subject: CPU time of this process and, on request, of its children."""

    def run(images: int) -> Spent:
        before = cpu_of_children() if children else 0.0
        cpu, wall = time.process_time(), time.perf_counter()
        work(images)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Spent(images, cpu + (cpu_of_children() - before if children else 0.0), wall)

    return run


def decoder(split: Split) -> Subject:
    """The bare decoder on a split's JPEGs in memory, all of them in shuffled order, so that it meets what the pipeline
    meets."""
    order = split.order(seed=1)
    files = itertools.cycle([split.brief(order[i])["image"] for i in range(len(split))])

    def work(images):
        for file in itertools.islice(files, images):
            simplejpeg.decode_jpeg(file, colorspace="GRAY", strict=True)

    return timed(work)


def settle() -> None:
    """Wait until nothing of ours decodes ahead or spins any more, so that the next subject has the cores alone."""
    used, before = time.process_time() + cpu_of_children(), -1.0
    while used - before > 0.01:
        time.sleep(0.2)
        before, used = used, time.process_time() + cpu_of_children()


def pipeline(split: Split, batch_size: int, **options: int) -> tuple[Subject, Iterator]:
    """The whole way from shards to batches on the device, in a steady state; and its stream, to be closed."""
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    prefetch, workers = 2, options.get("workers", 0)
    given = {"batch_size": batch_size, "sharding": sharding, "seed": 0, "total_steps": 10**9, "prefetch": prefetch}
    stream = train_batches(split, **given, **options)

    def take(images):
        for _ in range(-(-images // batch_size)):
            jax.block_until_ready(next(stream)["image"])

    def run(images: int) -> Spent:
        # What was decoded ahead while others had their turn is given away first: buffers are empty before and after.
        take(batch_size * (prefetch + 2 * workers + 2))
        return timed(take, children=bool(workers))(images)

    return run, stream


def augmentation(split: Split, batch_size: int, global_px: int, local_px: int) -> Subject:
    """The crops that the device draws of decoded canvases, compiled for this machine's CPU."""
    sizes = {"global_size": global_px, "local_size": local_px, "num_local": 8}
    scales = {"global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32), "blur_probs": "as_released"}
    recipes = multi_crop_recipes(**sizes, **scales)
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    batch = next(train_batches(split, batch_size=batch_size, sharding=sharding, seed=0, total_steps=1))
    function = jax.jit(lambda key, image, size: random_crops(key, image, size, recipes))

    def work(images):
        for i in range(-(-images // batch_size)):
            jax.block_until_ready(function(jax.random.key(i), batch["image"], batch["size"]))

    work(1)  # compiles

    return timed(work)


class Peer:
    """torchvision's augmentation in its own interpreter."""

    def __init__(self, python: str, folder: Path):
        command = [python, str(PEER), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def subject(self, global_px: int, local_px: int) -> Subject:
        """Ten crops of every image, the global ones of `global_px`."""

        def run(images: int) -> Spent:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(f"{global_px} {local_px} {images}\n")
            self._process.stdin.flush()
            return Spent(**json.loads(self._process.stdout.readline()))

        return run

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def in_rounds(subjects: dict[str, Subject], images: dict[str, int], rounds: int) -> dict[str, list[Spent]]:
    """Every subject once a round, in turn."""
    spent: dict[str, list[Spent]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            spent[name].append(subject(images[name]))
            settle()
    return spent


def ratios(spent: dict[str, list[Spent]]) -> dict[str, list[float]]:
    """Comparisons within every round."""

    def compare(name, other, by):
        return [getattr(a, by) / getattr(b, by) for a, b in zip(spent[name], spent[other], strict=True)]

    found = {"pipeline / decode": compare("pipeline, 1 thread", "decode", "per_core")}
    for side in SIZES:
        if f"torchvision {side}" in spent:
            found[f"pipeline / torchvision {side}"] = compare("pipeline, 1 thread", f"torchvision {side}", "per_core")
    found["2 threads / 1"] = compare("pipeline, 2 threads", "pipeline, 1 thread", "per_second")
    found["2 threads / 1, per core"] = compare("pipeline, 2 threads", "pipeline, 1 thread", "per_core")
    if "pipeline, 2 processes" in spent:
        found["2 processes / 1"] = compare("pipeline, 2 processes", "pipeline, 1 process", "per_second")
        found["2 processes / 1, per core"] = compare("pipeline, 2 processes", "pipeline, 1 process", "per_core")
    return found


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{median(values):9.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def report(spent: dict[str, list[Spent]], found: dict[str, list[float]]) -> None:
    """The tables on stdout."""
    print(f"{'subject':28s} {'images/s per core':>28s} {'ms CPU/image':>14s} {'images/s':>22s} {'cores':>6s}")
    for name, runs in spent.items():
        cost = median(1000 * run.cpu_secs / run.images for run in runs)
        cores = median(run.cores for run in runs)
        core, wall = (spread([getattr(run, by) for run in runs], 1) for by in ("per_core", "per_second"))
        print(f"{name:28s} {core:>28s} {cost:14.2f} {wall:>22s} {cores:6.2f}")
    for name, values in found.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"target {target}: {'met' if median(values) >= target else 'missed'}"
        print(f"{name:28s} {spread(values, 2):>28s} {verdict}")


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Flags; `--help` explains."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.input", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of radiographs in JPEG")
    parser.add_argument(
        "--images",
        type=int,
        default=5200,
        help="different JPEGs; few make positions dear: Grain's shuffle costs 0.4 ms an image of 72, 0.01 of many",
    )
    parser.add_argument("--image_px", type=int, default=1024, help="longest side they are enlarged to")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("/dev/shm"),
        help="where pictures and shards lie meanwhile, 450 KiB an image",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="a host's rows of a batch; 64 are a pod's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--per_round",
        type=int,
        default=3200,
        help="images of a subject in a round, torchvision a fiftieth; the pipeline may begin and end within a batch, "
        "so it should be many batches",
    )
    parser.add_argument("--processes", type=int, default=2, help="0 leaves worker processes out")
    parser.add_argument("--peer_python", default="", help="an interpreter with torchvision; empty leaves it out")
    parser.add_argument("--augment", type=int, nargs="*", default=list(SIZES), help="global crop sizes on the device")
    parser.add_argument("--output", type=Path, help="a JSON file of everything measured")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Build the data, measure, print; returns the ratios by name."""
    given = parse_flags(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        pictures, dataset = Path(scratch) / "pictures", Path(scratch) / "dataset"
        pictures.mkdir()
        make_pictures(given.data, pictures, given.images, given.image_px)
        flags = ["--reader=folder", f"--input={pictures}", f"--output={dataset}", "--workers=0"]
        flags += ["--quality_filter=off", "--dedup=none"]
        assert build.main([*flags, f"--canvas={given.image_px}"]) == 0
        split = open_split(str(dataset), "train")
        size = sum(file.stat().st_size for file in pictures.iterdir()) / given.images
        print(f"{given.images} JPEGs, {given.image_px} px, {size / 1024:.0f} KiB each")

        streams, subjects, images = [], {"decode": on_cores(1, decoder(split))}, {}
        kinds = {f"pipeline, {n} thread{'s' * (n > 1)}": (n, {"threads": n}) for n in (1, 2)}
        processes = range(1, given.processes + 1)
        kinds |= {f"pipeline, {n} process{'es' * (n > 1)}": (n, {"workers": n, "threads": 1}) for n in processes}
        for name, (count, options) in kinds.items():
            subject, stream = pipeline(split, given.batch_size, **options)
            subjects[name] = on_cores(count, subject)
            streams.append(stream)
        peer = Peer(given.peer_python, pictures) if given.peer_python else None
        for side in SIZES if peer else ():
            subjects[f"torchvision {side}"] = on_cores(1, peer.subject(side, SIZES[side]))
            images[f"torchvision {side}"] = max(1, given.per_round // 50)
        for side in given.augment:
            subjects[f"device's augmentation {side}"] = augmentation(split, given.batch_size, side, SIZES[side])
            images[f"device's augmentation {side}"] = given.batch_size
        spent = in_rounds(subjects, {name: given.per_round for name in subjects} | images, given.rounds)
        for stream in streams:
            stream.close()
        if peer:
            peer.close()
    found = ratios(spent)
    report(spent, found)
    if given.output:
        rows = {name: [vars(run) for run in runs] for name, runs in spent.items()}
        given.output.write_text(json.dumps({"spent": rows, "ratios": found}, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
