"""Runs a pure function over tasks on several processes, or threads: results in order, a bounded number in flight.

In: a picklable function and its tasks. Out: the results, in the tasks' order whatever the number of workers. Memory
does not grow with the number of tasks. Leaving the generator early ends the workers at once: what they write appears by
rename, so nothing half done is left.
"""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Task, Result = TypeVar("Task"), TypeVar("Result")
IN_FLIGHT_PER_WORKER = 2


def run_ordered(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yields `function(task)` of each task in order; in this process if `workers` is at most 1.

    Raises what the function raises, and BrokenProcessPool if a worker dies.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: the parent holds threads of the ArrayRecord writer.
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent: workers see the end of it when this process closes it or dies. An Event would wait for
    # every worker to wake, and for one that died meanwhile for ever.
    parent_lives, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(function, parent_lives))
    in_flight: deque[Future[Any]] = deque()
    tasks = iter(tasks)
    finished = False
    try:
        while True:
            for task in itertools.islice(tasks, workers * IN_FLIGHT_PER_WORKER - len(in_flight)):
                in_flight.append(pool.submit(_run, task))
            if not in_flight:
                finished = True
                return
            yield in_flight.popleft().result()
    finally:
        if not finished:
            end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        end.close()
        parent_lives.close()


def at_once(function: Callable[[Task], Result], tasks: Iterable[Task], threads: int) -> Iterator[Result]:
    """`function(task)` of each task in order, on so many threads of this process, for tasks that wait for a network."""
    if threads <= 1:
        yield from map(function, tasks)
        return
    pool = ThreadPoolExecutor(threads)
    under_way: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            under_way.append(pool.submit(function, task))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_function: Callable[[Any], Any]


def _start_worker(function: Callable[[Any], Any], parent_lives: Connection) -> None:
    global _worker_function
    _worker_function = function
    # The parent handles Ctrl-C and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_libraries()
    # A worker whose parent was killed would wait for tasks for ever.
    threading.Thread(target=_exit_at_the_end_of, args=(parent_lives,), daemon=True).start()


def quiet_libraries() -> None:
    """Silences remarks of tfds about optional packages, which would break the progress display."""
    logging.getLogger("absl").setLevel(logging.ERROR)


def _exit_at_the_end_of(parent_lives: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent_lives.recv()
    os._exit(1)


def _run(task: Any) -> Any:
    return _worker_function(task)
