"""Step t of training as one element of a source: the decoded local rows of global batch t.

In: a `Split` and which rows of a global batch this process holds. Out: `StepSource`. Global batch t is records
`order[(t + data_skip) * B + r]` for r = 0..B-1; element t depends on t alone, so threads and worker processes may share
the steps out as they like.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cxr_jax.data.canvases import Canvases
from cxr_jax.data.decode import decode_mask_to_canvas, decode_to_canvas
from cxr_jax.data.source import Split, fields_of, target_values

GRACE_SECS = 30  # how long a worker goes on after it was told to end


class Row(NamedTuple):
    """A row as it is kept: the image without its canvas, its labels, its name, its mask if it was asked for."""

    image: UInt8[np.ndarray, "h w"]
    labels: Sequence[int]
    image_id: str
    mask: UInt8[np.ndarray, "h w"] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of pixels."""
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)

    def copy(self) -> "Row":
        """The same in memory of its own."""
        mask = None if self.mask is None else self.mask.copy()
        return self._replace(image=self.image.copy(), mask=mask)


class DecodedCache:
    """Decoded rows in memory, at most `max_bytes` of pixels; safe among threads.

    The first rows that come stay for good. Every pass over the data meets each row once, so that replacing the oldest
    would throw a row out just before it comes again.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._rows: dict[int, Row] = {}
        self._lock = threading.Lock()

    def get(self, i: int) -> Row | None:
        """Row i if it is kept."""
        return self._rows.get(i)

    def put(self, i: int, row: Row) -> None:
        """Keep a copy of row i if there is room."""
        with self._lock:
            if i in self._rows or self._bytes + row.nbytes > self._max_bytes:
                return
            self._bytes += row.nbytes
            self._rows[i] = row.copy()

    def __getstate__(self):
        # A worker process starts with an empty one.
        return self._max_bytes

    def __setstate__(self, max_bytes):
        self.__init__(max_bytes)


def _put(pixels: UInt8[np.ndarray, "h w"] | None, canvas: UInt8[np.ndarray, "H W"]) -> None:
    """Pixels into the top left of a canvas, zeros beyond; nothing but zeros where there are none."""
    height, width = (0, 0) if pixels is None else pixels.shape
    if pixels is not None:
        canvas[:height, :width] = pixels
    canvas[height:] = 0
    canvas[:height, width:] = 0


def load_row(
    split: Split,
    i: int,
    targets: Sequence[str],
    fields: Sequence[str],
    canvas: UInt8[np.ndarray, "H W"],
    cache: DecodedCache | None,
    mask_canvas: UInt8[np.ndarray, "H W"] | None = None,
) -> Row:
    """Row i, decoded into the top left of `canvas`, zeros beyond; with `mask_canvas` its mask too, or zeros.

    `fields` of its record are read: `image_id`, those of the targets and, with `mask_canvas`, `mask`. A cache holds
    rows that were all loaded with masks, or all without.
    """
    row = cache.get(i) if cache else None
    if row:
        _put(row.image, canvas)
        if mask_canvas is not None:
            _put(row.mask, mask_canvas)
        return row
    record = split.brief(i, fields)
    height, width = decode_to_canvas(record["image"], canvas, record["image_id"])
    labels = target_values(record, targets, split.manifest.vocabulary)
    mask = None
    if mask_canvas is not None and record["mask"]:
        decode_mask_to_canvas(record["mask"], mask_canvas, (height, width), record["image_id"])
        mask = mask_canvas[:height, :width]
    elif mask_canvas is not None:
        _put(None, mask_canvas)
    row = Row(canvas[:height, :width], labels, record["image_id"], mask)
    if cache:
        cache.put(i, row)
    return row


def load_rows(
    split: Split,
    rows: Sequence[int],
    targets: Sequence[str] = (),
    *,
    cache: DecodedCache | None = None,
    pool: ThreadPoolExecutor | None = None,
    threads: int = 1,
    masks: bool = False,
    canvases: Canvases | None = None,
) -> dict[str, Any]:
    """Decoded rows `{image [n,H,W] uint8, size [n,2] int32, index [n] int64, image_id [n]}`, and `labels [n,c] int8` of
    `targets`; `threads` threads of `pool` share them. Images lie in memory of `canvases`, by default in memory of their
    own.

    With `masks` also `mask [n,H,W] uint8`, 0 and 255 on the canvas of the image, and `has_mask [n] bool`: a row without
    a mask has zeros, which do not mean that there is nothing to see.
    """
    canvases = canvases or Canvases()
    images = canvases.take(len(rows), split.canvas)
    mask_canvases = canvases.take(len(rows), split.canvas) if masks else [None] * len(rows)
    fields = ("image_id", *fields_of(targets, split.manifest.vocabulary), *(("mask",) if masks else ()))
    found: dict[int, Row] = {}

    def fill(share: Sequence[int]) -> None:
        for i in share:
            found[i] = load_row(split, rows[i], targets, fields, images[i], cache, mask_canvases[i])

    if pool:
        for _ in pool.map(fill, [range(first, len(rows), threads) for first in range(threads)]):
            pass
    else:
        fill(range(len(rows)))
    in_order = [found[i] for i in range(len(rows))]
    loaded = {
        "image": images,
        "size": np.array([row.image.shape for row in in_order], np.int32).reshape(-1, 2),
        "index": np.asarray(rows, np.int64),
        "image_id": np.array([row.image_id for row in in_order], str),
    }
    if targets:
        loaded["labels"] = np.array([row.labels for row in in_order], np.int8).reshape(-1, len(targets))
    if masks:
        loaded |= {"mask": mask_canvases, "has_mask": np.array([row.mask is not None for row in in_order], bool)}
    return loaded


class StepSource:
    """Element t: the rows of global batch t that this process holds, decoded by `threads` threads.

    Up to `cache_bytes` of decoded pixels are kept. With `name_all`, element t also has `all_index [B]` and
    `all_image_id [B]` of the whole global batch; rows that other processes hold are read for it, not decoded. With
    `masks`, `mask` and `has_mask` of `load_rows` come along.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        local_rows: np.ndarray,
        total_steps: int,
        seed: int,
        data_skip: int = 0,
        targets: Sequence[str] = (),
        threads: int = 1,
        cache_bytes: int = 0,
        name_all: bool = False,
        masks: bool = False,
    ):
        self._split, self._batch_size, self._local_rows = split, batch_size, local_rows
        self._total_steps, self._data_skip, self._targets = total_steps, data_skip, tuple(targets)
        self._threads, self._name_all, self._masks = threads, name_all, masks
        self._cache = DecodedCache(cache_bytes) if cache_bytes else None
        self._order = split.order(seed)
        self._start()

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._canvases = Canvases()

    def __getstate__(self):
        # A worker process has threads and memory of its own.
        return {name: value for name, value in self.__dict__.items() if name not in ("_pool", "_canvases")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._start()

    def __len__(self):
        return self._total_steps

    def positions(self, step: int, rows: Sequence[int] | np.ndarray | None = None) -> list[int]:
        """Positions in the split of `rows` of global batch `step`, by default of the local ones."""
        first = (step + self._data_skip) * self._batch_size
        return [self._order[first + int(r)] for r in (self._local_rows if rows is None else rows)]

    def __getitem__(self, step: int) -> dict[str, Any]:
        loaded = load_rows(
            self._split,
            self.positions(step),
            self._targets,
            cache=self._cache,
            pool=self._pool,
            threads=self._threads,
            masks=self._masks,
            canvases=self._canvases,
        )
        names = loaded.pop("image_id")
        if not self._name_all:
            return loaded
        every = self.positions(step, range(self._batch_size))
        known = dict(zip(loaded["index"].tolist(), names.tolist(), strict=True))
        ids = [known[i] if i in known else self._split.brief(i, ("image_id",))["image_id"] for i in every]
        return loaded | {"all_index": np.array(every, np.int64), "all_image_id": np.array(ids, str)}


def start_worker(parent: int, index: int, count: int) -> None:
    """Runs first in a worker process: it ends with its parent, however that ends, and leaves signals to it.

    A terminal's Ctrl-C and a scheduler's SIGTERM may reach every process, and the trainer needs batches up to the step
    after which it saves.
    """
    del index, count
    told: list[float] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))

    def watch():
        while os.getppid() == parent and not (told and time.monotonic() - told[0] > GRACE_SECS):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
