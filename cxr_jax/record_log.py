"""Which images every step was made of, on demand: record_ids.jsonl.

In: step numbers with what the pipeline says of the whole global batch. Out: one JSON object a step, row r of the batch
at place r of every list:

    {"step": 12, "index": [907, 33, ...], "image_id": ["...", ...], "dataset": [0, 1, ...]}

`index` is the position in the split (after `data.where`), `dataset` the place of the record's folder in `data.path` and
there only if several are named. A resumed run cuts the file back to the restored step first.
"""

import json
from pathlib import Path

from cxr_jax.metrics import cut_back

FILE = "record_ids.jsonl"


class RecordLog:
    """Writes the file; `log(step, named)` adds a line. One process of several writes it, for all."""

    def __init__(self, workdir: Path, start_step: int):
        self._path = workdir / FILE
        cut_back(self._path, start_step)

    def __call__(self, step: int, named: dict[str, list]) -> None:
        """Add a step, before it begins."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **named}) + "\n")
