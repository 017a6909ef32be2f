"""From a split to global device arrays: the input pipeline.

In: a `Split` and the batch sharding. Out: dicts of `jax.Array` whose row r is the global batch's row r, on any number
of processes and in any device order.

Which rows a process loads is read from the sharding. Real pods permute devices, so `process_index * B / P` would be
wrong there without raising an error. Threads decode ahead; the order never depends on how many there are.
"""

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from cxr_jax.data.source import Split, StepSource, load_rows


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices need, rising."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(*s[0].indices(batch_size)) for s in slices]))


def to_global(arrays: dict[str, np.ndarray], rows: np.ndarray, batch_size: int, sharding: NamedSharding) -> dict:
    """Local arrays, whose row i is global row `rows[i]`, as global `jax.Array`s."""

    def place(local):
        local = local.astype(jax.dtypes.canonicalize_dtype(local.dtype), copy=False)

        def shard(index):
            wanted = np.arange(*index[0].indices(batch_size))
            return local[np.searchsorted(rows, wanted)]

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
) -> Iterator[dict]:
    """Global batches of steps `start_step .. total_steps`; starting late costs nothing.

    `threads` decode up to `prefetch` whole batches ahead, so host memory is bounded by their number alone.
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
    )
    steps = grain.MapDataset.source(source)[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    for local in steps.to_iter_dataset(options):
        yield to_global(local, rows, batch_size, sharding)


def local_eval_batches(
    split: Split, *, batch_size: int, sharding: NamedSharding, targets: Sequence[str] = ()
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of `eval_batches`, on the host."""
    rows = local_rows(sharding, batch_size)

    class Batches:
        def __len__(self):
            return -(-len(split) // batch_size)

        def __getitem__(self, i):
            wanted = i * batch_size + rows
            valid = wanted < len(split)
            loaded = load_rows(split, np.where(valid, wanted, i * batch_size).tolist(), targets)
            return loaded | {"valid": valid}

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    yield from grain.MapDataset.source(Batches()).to_iter_dataset(options)


def eval_batches(
    split: Split, *, batch_size: int, sharding: NamedSharding, targets: Sequence[str] = ()
) -> Iterator[dict]:
    """Every row once, in order; the last batch is filled up with its first row, marked by `valid [b]` False."""
    rows = local_rows(sharding, batch_size)
    for local in local_eval_batches(split, batch_size=batch_size, sharding=sharding, targets=targets):
        yield to_global(local, rows, batch_size, sharding)
