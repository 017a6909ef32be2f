"""The global batch is the same whatever the order of devices; each process loads what its devices need."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from cxr_jax.data.pipeline import local_rows, train_batches
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import StepSource, load_rows
from cxr_jax.sharding import batch_sharding, make_mesh

BATCH, STEPS = 16, 4
# Orders like those of real pods, where the devices of a process do not lie side by side along the batch axis.
ORDERS = {
    "straight": (0, 1, 2, 3, 4, 5, 6, 7),
    "interleaved": (0, 4, 1, 5, 2, 6, 3, 7),
    "snake": (0, 1, 3, 2, 6, 7, 5, 4),
    "reversed": (7, 6, 5, 4, 3, 2, 1, 0),
}
SHAPES = ({"fsdp": 8}, {"replica": 2, "fsdp": 4}, {"replica": 2, "fsdp": 2, "tensor": 2})


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape.values())))
def test_batches_do_not_depend_on_device_order(split, order, shape):
    sharding = batch_sharding(make_mesh(**shape, devices=[jax.devices()[i] for i in ORDERS[order]]))
    every_row = np.arange(BATCH)
    plan = StepSource(split, batch_size=BATCH, local_rows=every_row, total_steps=STEPS, seed=3, data_skip=1)
    batches = train_batches(
        split, batch_size=BATCH, total_steps=STEPS, sharding=sharding, seed=3, data_skip=1, start_step=2
    )
    for step, batch in zip((2, 3), batches, strict=True):
        positions = plan.positions(step)
        wanted = load_rows(split, positions)
        assert np.asarray(batch["index"]).tolist() == positions
        np.testing.assert_array_equal(np.asarray(batch["image"]), wanted["image"])
        np.testing.assert_array_equal(np.asarray(batch["size"]), wanted["size"])


def test_a_shard_holds_the_rows_of_its_place(split):
    """Each device's rows, not only their union: a batch can be whole and still be dealt out wrongly."""
    sharding = batch_sharding(make_mesh(fsdp=8, devices=[jax.devices()[i] for i in ORDERS["interleaved"]]))
    batch = next(train_batches(split, batch_size=BATCH, total_steps=1, sharding=sharding, seed=0))
    order = StepSource(split, batch_size=BATCH, local_rows=np.arange(BATCH), total_steps=1, seed=0).positions(0)
    for shard in batch["index"].addressable_shards:
        place = ORDERS["interleaved"].index(shard.device.id)
        assert np.asarray(shard.data).tolist() == order[2 * place : 2 * place + 2]


def test_a_process_loads_the_union_of_its_devices_rows(monkeypatch):
    """As one of two processes sees the sharding when every other device is its own."""

    def half(self, shape):
        rows = self.devices_indices_map(shape)
        return {device: rows[device] for device in self.mesh.devices.flat[::2]}

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", half)
    assert local_rows(batch_sharding(make_mesh(fsdp=8)), BATCH).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
