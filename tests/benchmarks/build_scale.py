"""The builder on many small records: peak memory, shards, time, and how long one random record takes.

    python tests/benchmarks/build_scale.py --num_images=200000 --output=DIR [--workers=2]

In: a number of images. Out: one line of JSON on the screen, and the dataset in DIR (about 1.8 KB a record). The
pictures are smooth noise of 64 px, all different, two or three a patient, so that nothing but the builder costs time.
Peak memory is that of the main process and of the largest worker.
"""

import argparse
import dataclasses
import io
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from cxr_jax.data.records import Record
from data_prep.build import build_source
from data_prep.build_flags import num_cores, parse_flags
from data_prep.parallel import quiet_libraries
from data_prep.readers import Sample, Source

SIDE_PX, GRID = 64, 9
CLASSES = tuple(f"class_{number}" for number in range(14))


@dataclasses.dataclass(frozen=True)
class Numbered(Sample):
    """Picture `number`."""

    number: int


class NumberedSamples:
    """The sequence of samples; holds nothing but its length."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Numbered:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return Numbered(f"i{number:08d}", f"p{number * 2 // 5:08d}", "", number)


def make_record(sample: Numbered) -> Record:
    """Smooth noise that depends on the number alone."""
    rng = np.random.default_rng(sample.number)
    small = Image.fromarray(rng.integers(20, 236, (GRID, GRID), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    labels = tuple(rng.integers(-1, 2, len(CLASSES)).tolist())
    return Record(buffer.getvalue(), SIDE_PX, SIDE_PX, sample.key, sample.patient_id, view="PA", labels=labels)


def measure(output: Path, count: int, workers: int, shard_mb: int) -> dict:
    """Builds `count` records and returns what it took."""
    source = Source("numbered", CLASSES, NumberedSamples(count), make_record, {"num_images": count})
    flags = ["--reader=phantom", "--num_images=1", f"--output={output}", f"--workers={workers}", "--overwrite"]
    before, start = peak_mib(resource.RUSAGE_SELF), time.monotonic()
    manifest = build_source(source, parse_flags([*flags, f"--shard_mb={shard_mb}"]))
    secs = time.monotonic() - start
    files = [output / name for name in manifest.shards]
    return {
        "images": count,
        "kept": manifest.counts["images"],
        "dropped": manifest.counts["curation"]["dropped"],
        "secs": round(secs, 1),
        "cpu_secs": round(sum(sum(resource.getrusage(who)[:2]) for who in WHO), 1),
        "peak_mib_main": round(peak_mib(resource.RUSAGE_SELF), 1),
        "peak_mib_main_before": round(before, 1),
        "peak_mib_worker": round(peak_mib(resource.RUSAGE_CHILDREN), 1),
        "shards": len(files),
        "largest_shard_mib": round(max(file.stat().st_size for file in files) / 2**20, 1),
        "dataset_mib": round(sum(file.stat().st_size for file in files) / 2**20, 1),
        "random_record_ms": round(random_record_ms(output), 3),
    }


WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def peak_mib(who: int) -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(who).ru_maxrss / 1024


def random_record_ms(folder: Path, reads: int = 300) -> float:
    """Median time to read one random record of train, ms."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    records = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    rows = np.random.default_rng(0).integers(0, len(records), reads)
    records[0]
    times = []
    for row in rows:
        start = time.perf_counter()
        records[int(row)]
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=200_000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=num_cores())
    parser.add_argument("--shard_mb", type=int, default=256)
    args = parser.parse_args()
    quiet_libraries()
    print(json.dumps(measure(args.output, args.num_images, args.workers, args.shard_mb)))


if __name__ == "__main__":
    main()
