"""SHA-256 of global batches: the same for any number of processes and any order of their devices.

Processes are simulated: each is a set of devices, asks the sharding for their rows, loads those, and deals them out to
its devices; the batch is put together from what lies on the devices. Two real combinations follow.
"""

import hashlib
import json
from itertools import pairwise, product

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from test_processes import ROOT, launch

from cxr_jax.data.pipeline import local_rows
from cxr_jax.data.source import Split, open_split
from cxr_jax.data.steps import StepSource
from cxr_jax.sharding import batch_sharding, make_mesh

BATCH, SEED = 16, 3
STEPS = (*range(21), 10_000)
ORDERS = {
    "straight": (0, 1, 2, 3, 4, 5, 6, 7),
    # As on v5e:16x16: a host's devices are two columns of two rows, so that along the mesh its run of two comes twice.
    "blocks": (0, 1, 4, 5, 2, 3, 6, 7),
    "reversed": (7, 6, 5, 4, 3, 2, 1, 0),
    "scattered": (5, 2, 7, 0, 3, 6, 1, 4),
}
NAMES = ("image", "index", "size")


class Remembered(dict):
    """An order, every place computed once: Grain's permutation of so few records costs milliseconds a place."""

    def __init__(self, order):
        self._order = order

    def __missing__(self, place):
        return self.setdefault(place, self._order[place])


@pytest.fixture(scope="module")
def split(phantom_dataset):
    split = open_split(str(phantom_dataset), "train")
    order = Remembered(split.order(SEED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "order", lambda self, seed: order)
        yield split


def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in NAMES)).hexdigest()


def source(split, rows, batch_size=BATCH):
    # Every simulated process decodes for itself; what is kept saves the same JPEG being decoded some hundred times.
    options = {"batch_size": batch_size, "total_steps": 10**6, "seed": SEED, "cache_bytes": 1 << 24}
    return StepSource(split, local_rows=rows, **options)


@pytest.fixture(scope="module")
def expected(split):
    """Batches as one process without a mesh has them."""
    plan = source(split, np.arange(BATCH))
    return {step: digest(plan[step]) for step in STEPS}


def of_process(monkeypatch, devices):
    """From here on this process is one that has `devices` alone."""

    def addressable(self, shape):
        rows = self.devices_indices_map(shape)
        return {device: rows[device] for device in devices}

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", addressable)


@pytest.mark.parametrize(
    ("processes", "order", "tensor"),
    [*product((1, 2, 4, 8), ORDERS, (1,)), (8, "straight", 2), (4, "scattered", 2)],
)
def test_simulated_processes(split, expected, monkeypatch, processes, order, tensor):
    """With `tensor` 2 and processes apart, two of them share rows, and both load them."""
    devices = jax.devices()
    mesh = make_mesh(fsdp=-1, tensor=tensor, devices=[devices[i] for i in ORDERS[order]])
    sharding = batch_sharding(mesh)
    batches = {step: {} for step in STEPS}
    for process in range(processes):
        own = devices[process * len(devices) // processes : (process + 1) * len(devices) // processes]
        of_process(monkeypatch, own)
        rows = local_rows(sharding, BATCH)
        plan = source(split, rows)
        for step in STEPS:
            for row, *values in zip(rows.tolist(), *(plan[step][name] for name in NAMES), strict=True):
                before = batches[step].setdefault(row, values)
                assert all(np.array_equal(a, b) for a, b in zip(before, values, strict=True))
    for step, rows in batches.items():
        assert sorted(rows) == list(range(BATCH))
        columns = zip(*(rows[r] for r in range(BATCH)), strict=True)
        assert digest({name: np.stack(column) for name, column in zip(NAMES, columns, strict=True)}) == expected[step]


def test_the_64_hosts_of_v5e_16x16(split, monkeypatch):
    """Chips row by row along the batch, hosts two by two chips: 64 processes in 128 runs, four rows each."""
    batch = 256
    host = [(i // 16 // 2) * 8 + i % 16 // 2 for i in range(256)]
    assert 1 + sum(a != b for a, b in pairwise(host)) == 128
    whole, seen = source(split, np.arange(batch), batch)[7], np.zeros(batch, int)
    sharding = batch_sharding(make_mesh())
    for process in range(64):
        own = {f"chip {i}": (slice(i, i + 1),) for i in range(256) if host[i] == process}
        monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda self, shape, own=own: own)
        rows = local_rows(sharding, batch)
        seen[rows] += 1
        assert len(rows) == 4 and not np.array_equal(rows, np.arange(process * 4, process * 4 + 4))
        loaded = source(split, rows, batch)[7]
        for name in NAMES:
            np.testing.assert_array_equal(loaded[name], whole[name][rows])
    assert (seen == 1).all()


PROGRAM = """
import hashlib, json, sys
from absl import app, flags
import jax, numpy as np
from cxr_jax import config as door
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import open_split
from cxr_jax.sharding import batch_sharding, make_mesh

door.define_process_flags()
flags.DEFINE_string("data", "", ""); flags.DEFINE_string("out", "", ""); flags.DEFINE_integer("tensor", 1, "")
flags.DEFINE_list("order", [], ""); flags.DEFINE_list("steps", [], ""); flags.DEFINE_integer("workers", 0, "")


def main(_):
    door.start_distributed()
    given = flags.FLAGS
    mesh = make_mesh(fsdp=-1, tensor=given.tensor, devices=[jax.devices()[int(i)] for i in given.order])
    split, steps = open_split(given.data, "train"), [int(step) for step in given.steps]
    options = {"batch_size": 16, "sharding": batch_sharding(mesh), "seed": 3, "total_steps": 10**6}
    rows, stream, at = {}, None, None
    for step in steps:
        if stream is None or step != at:
            stream = train_batches(split, start_step=step, workers=given.workers, **options)
        batch, at = next(stream), step + 1
        for name in ("image", "index", "size"):
            for shard in batch[name].addressable_shards:
                for i, row in enumerate(np.asarray(shard.data), shard.index[0].indices(16)[0]):
                    sha = hashlib.sha256(row.astype(np.int64 if name == "index" else row.dtype).tobytes()).hexdigest()
                    key = f"{step} {name} {i}"
                    assert rows.setdefault(key, sha) == sha
    stream.close()
    with open(f"{given.out}/{jax.process_index()}.json", "w") as file:
        json.dump(rows, file)


if __name__ == "__main__":
    app.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ["--order=0,4,1,5,2,6,3,7"]),
        # Four devices hold the same rows, two of them in each of two processes; and workers beside it.
        (4, ["--order=0,1,2,3,4,5,6,7", "--tensor=4", "--workers=1"]),
    ],
)
def test_real_processes(split, phantom_dataset, tmp_path, monkeypatch, processes, options):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    flags = [f"--data={phantom_dataset}", f"--out={tmp_path}", f"--steps={','.join(map(str, STEPS))}", *options]
    job = launch(str(program), *flags, processes=processes, devices=8 // processes)
    _, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    told = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(processes)]
    merged = {key: sha for rows in told for key, sha in rows.items()}
    plan = source(split, np.arange(BATCH))
    for step in STEPS:
        batch = plan[step]
        for name in NAMES:
            for row in range(BATCH):
                sha = hashlib.sha256(np.ascontiguousarray(batch[name][row]).tobytes()).hexdigest()
                holders = [rows[f"{step} {name} {row}"] for rows in told if f"{step} {name} {row}" in rows]
                assert holders and set(holders) == {sha}, (step, name, row)
                assert len(holders) == (2 if processes == 4 else 1), "rows that processes share are loaded by each"
    assert len(merged) == len(STEPS) * len(NAMES) * BATCH
