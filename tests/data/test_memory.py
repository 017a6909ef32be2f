"""Host memory of the input pipeline is bounded by batches in flight, not by the number of images."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_jax.data.records import Box, Record, encode_record
from cxr_jax.data.source import open_split
from data_prep.dataset_writer import DatasetWriter

ROOT = Path(__file__).parents[2]
FEW, MANY, STEPS, BATCH = 500, 8_000, 250, 32
READER = """
import resource, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import open_split
from cxr_jax.sharding import batch_sharding, make_mesh
split = open_split(sys.argv[1], "train")
sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
options = dict(batch_size=int(sys.argv[2]), total_steps=int(sys.argv[3]), sharding=sharding, seed=0)
seen = set()
for batch in train_batches(split, **options):
    seen.update(np.asarray(batch["index"]).tolist())
print(len(seen), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def copies(dataset: Path, count: int, output: Path) -> Path:
    """A dataset whose train split is one real record `count` times."""
    split = open_split(str(dataset), "train")
    record = split[0]
    text = {name: split.text(0, name) for name in ("patient_id", "view", "sex")}
    one = Record(
        image=record["image"],
        height=int(record["height"]),
        width=int(record["width"]),
        image_id="0",
        labels=tuple(int(label) for label in record["labels"]),
        boxes=(Box("Nodule", 1.0, 1.0, 2.0, 2.0),),
        **text,
    )
    with DatasetWriter(output, "copies", 1 << 22, overwrite=False) as writer:
        for i in range(count):
            writer.add("train", encode_record(dataclasses.replace(one, image_id=str(i))))
        writer.finish(dataclasses.replace(split.manifest, name="copies", shards={}, fingerprint=""))
    return output


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_dataset(phantom_dataset, tmp_path):
    """16 times the images, the same number of steps: the same peak within 16 MiB of allocator noise."""
    peaks = {}
    for count in (FEW, MANY):
        dataset = copies(phantom_dataset, count, tmp_path / str(count))
        command = [sys.executable, "-c", READER, str(dataset), str(BATCH), str(STEPS)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ.copy())
        seen, peak = map(int, run.stdout.split()[-2:])
        assert seen == min(count, STEPS * BATCH)
        peaks[count] = peak / 1024
    assert peaks[MANY] - peaks[FEW] < 16, f"peak MiB by number of images: {peaks}"
