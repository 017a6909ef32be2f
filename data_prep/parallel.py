"""Runs `make_record` over samples on several processes, in order, with a bounded number in flight.

In: samples and a reader's `make_record`. Out: one `Made` per sample, in the samples' order whatever the number of
workers, so that the bytes written do not depend on it. Memory does not grow with the number of samples.
"""

import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from cxr_jax.data.records import DataError, Record, encode_record
from data_prep.readers import Sample

SAMPLES_PER_TASK = 8
TASKS_IN_FLIGHT_PER_WORKER = 3


@dataclasses.dataclass(frozen=True)
class Made:
    """One sample's outcome: `payload` and `record` (its image and mask bytes dropped), or the `error` line."""

    sample: Sample
    payload: bytes = b""
    record: Record | None = None
    error: str = ""


def make(sample: Sample, make_record: Callable[[Any], Record]) -> Made:
    """Makes and encodes one record; data that cannot be used becomes `Made.error`."""
    try:
        record = make_record(sample)
        payload = encode_record(record)
    except DataError as error:
        return Made(sample, error=str(error))
    has_mask = b"mask" if record.mask else b""
    return Made(sample, payload, dataclasses.replace(record, image=b"", mask=has_mask))


def make_all(samples: Iterable[Sample], make_record: Callable[[Any], Record], workers: int) -> Iterator[Made]:
    """Yields `make(sample, make_record)` of each sample in order; in this process if `workers` is at most 1."""
    if workers <= 1:
        for sample in samples:
            yield make(sample, make_record)
        return
    # Spawned, not forked: the parent holds threads of the ArrayRecord writer.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(make_record,))
    in_flight: deque[Future[list[Made]]] = deque()
    samples = iter(samples)
    try:
        while True:
            while len(in_flight) < workers * TASKS_IN_FLIGHT_PER_WORKER:
                task = list(itertools.islice(samples, SAMPLES_PER_TASK))
                if not task:
                    break
                in_flight.append(pool.submit(_make_task, task))
            if not in_flight:
                return
            yield from in_flight.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_make_record: Callable[[Any], Record]


def _start_worker(make_record: Callable[[Any], Record]) -> None:
    global _worker_make_record
    _worker_make_record = make_record
    # The parent handles Ctrl-C and shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_libraries()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def quiet_libraries() -> None:
    """Silences remarks of tfds about optional packages, which would break the progress display."""
    logging.getLogger("absl").setLevel(logging.ERROR)


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_task(samples: list[Sample]) -> list[Made]:
    return [make(sample, _worker_make_record) for sample in samples]
