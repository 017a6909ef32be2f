"""How far a phase is: a bar on a terminal, else one line every tenth of the way."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINES = 10
One = TypeVar("One")


def progress(steps: Iterable[One], unit: str, done: int, total: int, size: Callable[[One], int]) -> Iterator[One]:
    """Passes the steps on and shows how many of `total` are done; `size` is what a step counts for."""
    if sys.stderr.isatty():
        with tqdm(initial=done, total=total, unit=unit, smoothing=0.05) as bar:
            for one in steps:
                yield one
                bar.update(size(one))
        return
    if total < LINES:
        yield from steps
        return
    start, printed, begun = time.monotonic(), done * LINES // max(total, 1), done
    for one in steps:
        yield one
        done += size(one)
        if done * LINES // total > printed:
            printed = done * LINES // total
            rate = (done - begun) / max(time.monotonic() - start, 1e-9)
            print(f"{done}/{total} {unit}s, {rate:.3g} a second", file=sys.stderr, flush=True)
