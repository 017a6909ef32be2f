"""record_ids.jsonl: every step once, with the images it was made of. `test_elastic` compares it over interruptions."""

import json

import numpy as np

from cxr_jax.data.source import open_split
from cxr_jax.data.steps import StepSource
from cxr_jax.record_log import FILE, RecordLog
from tests.resume.runs import OVERRIDES, STEPS


def read(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_a_resumed_file_is_cut_back(tmp_path):
    first = RecordLog(tmp_path, 0)
    for step in range(5):
        first(step, {"index": [step, 1], "image_id": ["a", "b"]})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 5, "ind')
    again = RecordLog(tmp_path, 3)
    again(3, {"index": [7, 8], "image_id": ["c", "d"]})
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2, 3]
    assert read(tmp_path)[-1] == {"step": 3, "index": [7, 8], "image_id": ["c", "d"]}


def test_a_run_names_the_images_of_every_step(runner, phantom_dataset, tmp_path):
    """Through the entry, with worker processes and images kept in memory."""
    runner.finish(tmp_path / "run", log__record_ids=True, data__workers=1, data__cache_decoded_mb=1)
    split, batch_size = open_split(str(phantom_dataset), "train"), OVERRIDES["batch_size"]
    plan = StepSource(split, batch_size=batch_size, local_rows=np.arange(batch_size), total_steps=STEPS, seed=0)
    told = read(tmp_path / "run")
    assert [row["step"] for row in told] == list(range(STEPS))
    for row in told:
        assert row["index"] == plan.positions(row["step"])
        assert row["image_id"] == [split.text(i, "image_id") for i in row["index"]]
        assert row.keys() == {"step", "index", "image_id"}
