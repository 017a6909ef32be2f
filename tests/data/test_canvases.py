"""Memory of batches comes back when nobody holds it, and never before."""

import gc
import threading

import jax
import numpy as np

from cxr_jax.data.canvases import ALIGNMENT, SPARE, Canvases
from cxr_jax.data.pipeline import to_global, train_batches
from cxr_jax.data.source import open_split
from cxr_jax.sharding import batch_sharding, make_mesh

SIZE = (48, 64)


def address(array) -> int:
    return array.ctypes.data


def test_what_is_let_go_is_handed_out_again():
    canvases = Canvases()
    first = canvases.take(3, SIZE)
    assert first.shape == (3, *SIZE) and first.dtype == np.uint8 and address(first) % ALIGNMENT == 0
    where = address(first)
    del first
    assert address(canvases.take(3, SIZE)) == where


def test_no_view_is_written_over():
    """A row, a view of another type, a device array without a copy: each keeps the whole memory."""
    canvases = Canvases()
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    holders = [
        lambda taken: taken[1],
        lambda taken: np.asarray(taken[1:])[:, ::2].transpose(2, 0, 1),
        lambda taken: taken.view(np.int8)[0, 0],
        lambda taken: memoryview(taken)[2:],
        lambda taken: to_global({"image": taken}, np.arange(3), 3, sharding)["image"],
    ]
    for hold in holders:
        taken = canvases.take(3, SIZE)
        taken[:] = 7
        held = hold(taken)
        where = address(taken)
        del taken
        other = canvases.take(3, SIZE)
        other[:] = 0
        assert address(other) != where
        assert (np.asarray(held) == 7).all()
        del held, other


def test_another_size_is_fresh_and_little_is_kept():
    canvases = Canvases()
    many = [canvases.take(1, SIZE) for _ in range(3 * SPARE)]
    assert len({address(array) for array in many}) == len(many)
    del many
    assert len(canvases._free) == SPARE
    assert canvases.take(2, SIZE).shape == (2, *SIZE)


def test_threads_never_share():
    """Eight threads take, write, look and let go: nobody sees another's bytes."""
    canvases, wrong = Canvases(), []

    def work(mine: int):
        for _ in range(300):
            taken = canvases.take(1, SIZE)
            taken[:] = mine
            if not (taken == mine).all():
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_batches_that_are_kept_stay_as_they_are(phantom_dataset):
    """Every second batch is kept while 40 go by; those kept equal a second reading."""
    split = open_split(str(phantom_dataset), "train")
    options = {
        "batch_size": 4,
        "total_steps": 40,
        "seed": 0,
        "sharding": batch_sharding(make_mesh(devices=jax.devices()[:1])),
    }
    kept = [batch["image"] for step, batch in enumerate(train_batches(split, **options)) if step % 2]
    gc.collect()
    again = [np.array(batch["image"]) for step, batch in enumerate(train_batches(split, **options)) if step % 2]
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)
