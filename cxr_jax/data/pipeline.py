"""From a split to global device arrays: the input pipeline.

In: a `Split` and the batch sharding. Out: dicts of `jax.Array` whose row r is the global batch's row r, on any number
of processes and in any device order.

    records -> threads (or worker processes with threads) decode whole steps ahead -> one thread places them on devices

Which rows a process loads is read from the sharding. Real pods permute devices, so `process_index * B / P` would be
wrong there without raising an error. The order never depends on how many threads, workers or processes there are.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jaxtyping import Int

from cxr_jax.data.canvases import Canvases
from cxr_jax.data.records import WorkerError
from cxr_jax.data.source import Split
from cxr_jax.data.steps import StepSource, load_rows, start_worker

END = object()


def local_rows(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " b"]:
    """The rows of a global batch that this process's devices need, rising."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(*s[0].indices(batch_size)) for s in slices]))


def to_global(arrays: dict[str, np.ndarray], rows: np.ndarray, batch_size: int, sharding: NamedSharding) -> dict:
    """Local arrays, whose row i is global row `rows[i]`, as global `jax.Array`s; do not change them afterwards."""

    def place(local):
        local = local.astype(jax.dtypes.canonicalize_dtype(local.dtype), copy=False)

        def shard(index):
            # A device's rows lie side by side in the batch, hence also here: a view, not a copy.
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: place(local) for name, local in arrays.items()}


def train_batches(
    split: Split,
    *,
    batch_size: int,
    total_steps: int,
    sharding: NamedSharding,
    seed: int,
    start_step: int = 0,
    data_skip: int = 0,
    targets: Sequence[str] = (),
    threads: int = 2,
    prefetch: int = 4,
    workers: int = 0,
    prefetch_to_device: int = 1,
    cache_decoded_mb: int = 0,
    masks: bool = False,
    on_records: Callable[[int, dict[str, list]], None] | None = None,
) -> Iterator[dict]:
    """Global batches of steps `start_step .. total_steps`; starting late costs nothing.

    With `masks` they have `mask [B,H,W]` uint8 of 0 and 255 on the canvas of the image, and `has_mask [B]`, see
    `steps.load_rows`.

    `threads` decode up to `prefetch` whole batches ahead, here or, with `workers`, in each of so many processes, and
    `prefetch_to_device` more lie on the devices: their number alone bounds memory. `cache_decoded_mb` (MiB, shared out
    among workers) keeps decoded images. `on_records(step, {"index": [B], "image_id": [B], ...})` is told, as a batch
    is handed out, what the whole global batch is made of.

    Raises DataError for records that cannot be read, WorkerError when a worker process ends.
    """
    rows = local_rows(sharding, batch_size)
    source = StepSource(
        split,
        batch_size=batch_size,
        local_rows=rows,
        total_steps=total_steps,
        seed=seed,
        data_skip=data_skip,
        targets=targets,
        threads=threads,
        cache_bytes=(cache_decoded_mb << 20) // max(workers, 1),
        name_all=on_records is not None,
        masks=masks,
    )
    steps = iter(_ahead(grain.MapDataset.source(source)[start_step:], prefetch, workers))

    def load() -> Any:
        try:
            local = next(steps, END)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise WorkerError(_worker_died(str(error))) from None
        if local is END:
            return END
        # Workers hand over arrays in shared memory; a slice of that class would free it with itself.
        arrays = {name: np.asarray(value) for name, value in local.items()}
        named = {name[4:]: arrays.pop(name).tolist() for name in list(arrays) if name.startswith("all_")}
        return to_global(arrays, rows, batch_size, sharding), named

    placed = _placed(load, prefetch_to_device)
    try:
        for step, (batch, named) in enumerate(placed, start_step):
            if on_records:
                if split.datasets > 1:
                    named["dataset"] = [split.dataset(i) for i in named["index"]]
                on_records(step, named)
            yield batch
    finally:
        # In this order: an iterator of Grain's that is closed while another thread waits on it never wakes that thread.
        placed.close()
        steps.close()


def _ahead(steps: grain.MapDataset, prefetch: int, workers: int) -> grain.IterDataset:
    """The steps in order, `prefetch` of them under way here, or shared out among worker processes."""
    each = -(-prefetch // max(workers, 1))
    # A step's rows are shared out among threads of its own source; Grain's threads only wait for them.
    options = grain.ReadOptions(num_threads=each, prefetch_buffer_size=each)
    ahead = steps.to_iter_dataset(options)
    if not workers:
        return ahead
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags here; a notebook has parsed none
    many = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return ahead.mp_prefetch(many, worker_init_fn=partial(start_worker, os.getpid()))


def _worker_died(said: str) -> str:
    """What to do about a worker that ended: the kernel's two usual reasons by their signal."""
    code = said.partition("exit code ")[2].partition(".")[0]
    signals = {"-9": "killed, perhaps for want of memory", "-7": "perhaps /dev/shm is too small for a few batches"}
    why = signals.get(code, "see above")
    return f"a data worker process ended, exit code {code} ({why}); start again, or use threads: config.data.workers=0"


def _placed(load: Callable[[], Any], depth: int) -> Iterator[Any]:
    """What `load` returns until it returns END; a thread is `depth` calls ahead, so that transfers overlap a step."""
    if not depth:
        while (item := load()) is not END:
            yield item
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="place")
    try:
        waiting = deque(pool.submit(load) for _ in range(depth))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(pool.submit(load))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def local_eval_batches(
    split: Split, *, batch_size: int, sharding: NamedSharding, targets: Sequence[str] = (), masks: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of `eval_batches`, on the host."""
    rows = local_rows(sharding, batch_size)
    canvases = Canvases()

    class Batches:
        def __len__(self):
            return -(-len(split) // batch_size)

        def __getitem__(self, i):
            wanted = i * batch_size + rows
            valid = wanted < len(split)
            rows_or_first = np.where(valid, wanted, i * batch_size).tolist()
            loaded = load_rows(split, rows_or_first, targets, masks=masks, canvases=canvases)
            del loaded["image_id"]
            return loaded | {"valid": valid}

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    yield from grain.MapDataset.source(Batches()).to_iter_dataset(options)


def eval_batches(
    split: Split, *, batch_size: int, sharding: NamedSharding, targets: Sequence[str] = (), masks: bool = False
) -> Iterator[dict]:
    """Every row once, in order; the last batch is filled up with its first row, marked by `valid [b]` False."""
    rows = local_rows(sharding, batch_size)
    options = {"batch_size": batch_size, "sharding": sharding, "targets": targets, "masks": masks}
    for local in local_eval_batches(split, **options):
        yield to_global(local, rows, batch_size, sharding)
