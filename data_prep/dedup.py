"""Exact and near duplicates among many pictures, by hash buckets instead of all pairs.

In: one digest and one 256-bit difference hash a picture, and thumbnails on request. Out: which picture stands for each,
and pairs of near duplicates.

Two hashes that differ in at most r bits, cut into r + 2 bands, agree in at least two bands (each differing bit spoils
one). So every pair of bands is a key, and only pictures with an equal key are compared: for r = 14 that is 120 keys of
32 bits. Nothing within r is missed. Radiographs are alike, so raw bands would be too: bits are dealt to the bands in
the order of how evenly they are set, and every band gets its share of the telling ones.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64

from data_prep.signature import HASH_BITS, normalised

MAX_DISTANCE = 24
# Pairs of hashes, and of thumbnails, looked at in one go, and blocks of pairs kept apart: they bound the memory.
_PAIRS, _THUMBS, _BLOCKS = 1 << 18, 1 << 10, 256


Thumbs = Callable[[Int64[np.ndarray, " k"]], UInt8[np.ndarray, "k 64 64"]]


def copies(
    digests: UInt8[np.ndarray, "n 16"],
    hashes: UInt64[np.ndarray, "n 4"],
    thumbs: Thumbs,
    *,
    near: bool,
    distance: int,
    correlation: float,
) -> Int64[np.ndarray, " n"]:
    """For each picture the one that stands for it: itself if it is kept, else the kept picture it repeats.

    Rows come in order of preference, best first, and are taken in it: a row is dropped if it repeats one that was
    kept. So no two kept rows are duplicates, and neither the order of buckets nor chains of likeness matter.
    """
    rows = np.arange(len(digests))
    copy_of = _leaders(digests.view("V16").ravel())
    if not near:
        return copy_of
    # Pictures of equal hash go first, so that a thousand copies of one cost a thousand comparisons, not a million.
    whole, survivors = np.ascontiguousarray(hashes).view("V32").ravel(), []
    rest = rows[copy_of == rows]
    while len(rest):
        leader = rest[_leaders(whole[rest])]
        survivors.append(rest[leader == rest])
        leader, rest = leader[leader != rest], rest[leader != rest]
        alike = correlations(leader, rest, thumbs) >= correlation
        copy_of[rest[alike]] = leader[alike]
        rest = rest[~alike]
    survivors = np.sort(np.concatenate(survivors)) if survivors else rows
    first, second = near_pairs(survivors, hashes, thumbs, distance, correlation)
    for one, two in sorted(zip(second.tolist(), first.tolist(), strict=True)):
        # `two` is better than `one`; the best kept one comes first.
        if copy_of[one] == one and copy_of[two] == two:
            copy_of[one] = two
    while (copy_of[copy_of] != copy_of).any():
        copy_of = copy_of[copy_of]
    return copy_of


def near_pairs(
    rows: Int64[np.ndarray, " m"],
    hashes: UInt64[np.ndarray, "n 4"],
    thumbs: Thumbs,
    distance: int,
    correlation: float,
    apart: np.ndarray | None = None,
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """All pairs of these rows within `distance` bits whose thumbnails correlate by at least `correlation`.

    With `apart` [n] only pairs in which it differs, such as those across splits.
    """
    first, second = candidates(hashes[rows], distance)
    first, second = rows[first], rows[second]
    if apart is not None:
        differs = apart[first] != apart[second]
        first, second = first[differs], second[differs]
    alike = correlations(first, second, thumbs) >= correlation
    return first[alike], second[alike]


def candidates(
    hashes: UInt64[np.ndarray, "n 4"], distance: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Sorted pairs (i, j), i < j, of all hashes that differ in at most `distance` bits."""
    if len(hashes) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bands = _bands(hashes, distance + 2)
    found = [np.empty(0, np.int64)]
    for one, two in itertools.combinations(range(len(bands)), 2):
        keys = (bands[one] << np.uint64(32)) | bands[two]
        order = np.argsort(keys)
        # In this order the compared hashes are neighbours in memory.
        keys, ordered = keys[order], hashes[order]
        head = np.ascontiguousarray(ordered[:, 0])
        for rows, step in _equal_neighbours(keys):
            # A quarter of the bits rules most pairs out.
            rows = rows[np.bitwise_count(head[rows] ^ head[rows + step]) <= distance]
            bits = np.bitwise_count(ordered[rows] ^ ordered[rows + step]).sum(1, dtype=np.int32)
            close = rows[bits <= distance]
            i, j = order[close], order[close + step]
            found.append(np.minimum(i, j) * len(hashes) + np.maximum(i, j))
        if len(found) > _BLOCKS:
            found = [np.unique(np.concatenate(found))]
    codes = np.unique(np.concatenate(found))
    return codes // len(hashes), codes % len(hashes)


def _bands(hashes: UInt64[np.ndarray, "n 4"], count: int) -> list[UInt64[np.ndarray, " n"]]:
    """The bits of each hash cut into `count` numbers of at most 22 bits."""
    bits = np.unpackbits(hashes.view(np.uint8), axis=1, bitorder="little")
    order = np.argsort(np.abs(bits.mean(0) - 0.5), kind="stable")
    bands = []
    for band in range(count):
        value = np.zeros(len(hashes), np.uint64)
        for position in order[band:HASH_BITS:count]:
            value = (value << np.uint64(1)) | bits[:, position]
        bands.append(value)
    return bands


def _equal_neighbours(keys: UInt64[np.ndarray, " n"]) -> Iterator[tuple[Int64[np.ndarray, " m"], int]]:
    """All pairs (row, row + step) of equal sorted keys, as blocks of rows of one step."""
    rows, step = np.arange(len(keys)), 1
    while len(rows):
        rows = rows[rows + step < len(keys)]
        rows = rows[keys[rows] == keys[rows + step]]
        for start in range(0, len(rows), _PAIRS):
            yield rows[start : start + _PAIRS], step
        step += 1


def _leaders(values: np.ndarray) -> Int64[np.ndarray, " n"]:
    """For each row the first one of equal value."""
    _, first, group = np.unique(values, return_index=True, return_inverse=True)
    return first[group.ravel()]


def correlations(
    first: Int64[np.ndarray, " m"], second: Int64[np.ndarray, " m"], thumbs: Thumbs
) -> Float32[np.ndarray, " m"]:
    """The correlation of each pair's thumbnails, in blocks of bounded size."""
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), _THUMBS):
        block = slice(start, start + _THUMBS)
        rows = np.unique(np.concatenate([first[block], second[block]]))
        flat = normalised(thumbs(rows))
        one, two = flat[np.searchsorted(rows, first[block])], flat[np.searchsorted(rows, second[block])]
        found[block] = np.einsum("md,md->m", one, two)
    return found
