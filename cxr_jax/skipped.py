"""Which images were in the batches whose updates had to be skipped.

In: steps. Out: a line per step in nonfinite.jsonl of the run directory: the step, and the ids of the images in batch
order. The batch is drawn again from seed and step, so nothing has to be remembered.
"""

import json
from pathlib import Path

import numpy as np

from cxr_jax.data.source import Split
from cxr_jax.data.steps import StepSource

FILE = "nonfinite.jsonl"


class SkippedBatches:
    """Called with steps, writes their lines; only one of several processes `writes`. See `StepSource` for the rest."""

    def __init__(
        self,
        workdir: Path,
        split: Split,
        *,
        batch_size: int,
        total_steps: int,
        seed: int,
        data_skip: int,
        writes: bool,
    ):
        self._path, self._split, self._writes, self._data_skip = workdir / FILE, split, writes, data_skip
        rows, order = np.arange(batch_size), {"seed": seed, "data_skip": data_skip}
        self._source = StepSource(split, batch_size=batch_size, local_rows=rows, total_steps=total_steps, **order)

    def __call__(self, steps: list[int]) -> None:
        if not self._writes:
            return
        with self._path.open("a") as file:
            for step in steps:
                ids = [self._split.text(row, "image_id") for row in self._source.positions(step)]
                file.write(json.dumps({"step": step, "data_skip": self._data_skip, "image_ids": ids}) + "\n")
