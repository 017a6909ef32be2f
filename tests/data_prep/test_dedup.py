"""Hash buckets find exactly what all pairs would, real near duplicates are found, real different ones are not."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from planted import as_jpeg, brighter, chest, smaller

from data_prep.dedup import candidates, copies
from data_prep.signature import decode_grey, normalised, sign


def all_pairs(hashes: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """The reference: every pair's Hamming distance from unpacked bits."""
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(np.int32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(apart <= distance, 1)), strict=True)}


def alike_hashes(rng, count: int, spread: float) -> np.ndarray:
    """Hashes of a few families, so that many distances are near the limit, and bits are unevenly set."""
    common = rng.random(256) < rng.random(256)
    families = common ^ (rng.random((8, 256)) < 0.2)
    bits = families[rng.integers(0, 8, count)] ^ (rng.random((count, 256)) < spread)
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64)


@pytest.mark.parametrize("distance", [0, 1, 7, 14, 24])
def test_buckets_miss_no_pair_and_add_none(distance):
    hashes = alike_hashes(np.random.default_rng(distance), 700, max(distance, 1) / 512)
    hashes[::50] = hashes[0]
    first, second = candidates(hashes, distance)
    expected = all_pairs(hashes, distance)
    assert len(expected) > 20
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(first) == len(expected), "each pair once"


def test_no_two_kept_are_duplicates_and_each_dropped_one_has_a_kept_copy():
    rng = np.random.default_rng(0)
    hashes = alike_hashes(rng, 500, 0.015)
    digests = np.frombuffer(hashes.tobytes(), np.uint8).reshape(500, 32)[:, :16].copy()
    thumbs = np.tile(rng.integers(0, 256, (64, 64), dtype=np.uint8), (500, 1, 1))
    found = copies(digests, hashes, lambda rows: thumbs[rows], near=True, distance=14, correlation=0.98)
    kept = np.flatnonzero(found == np.arange(500))
    near = all_pairs(hashes, 14)
    assert 8 <= len(kept) < 250
    assert not {(int(i), int(j)) for i in kept for j in kept} & near
    assert set(found) == set(kept) and (found <= np.arange(500)).all(), "the better one stays"
    dropped = np.setdiff1d(np.arange(500), kept)
    assert all(any((int(i), int(row)) in near for i in range(row)) for row in dropped)


def test_equal_hashes_of_unlike_pictures_are_no_duplicates():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (6, 64, 64), dtype=np.uint8)
    thumbs[4] = thumbs[1]
    hashes, digests = np.zeros((6, 4), np.uint64), np.arange(96, dtype=np.uint8).reshape(6, 16)
    found = copies(digests, hashes, lambda rows: thumbs[rows], near=True, distance=14, correlation=0.98)
    assert found.tolist() == [0, 1, 2, 3, 1, 5]


def test_exact_needs_equal_pixels_not_equal_files():
    image = chest(0)
    plain, commented = as_jpeg(image), as_jpeg(image, comment=b"another file")
    one, two = (sign(decode_grey(data, "")) for data in (plain, commented))
    assert plain != commented and one.pixels_sha256 == two.pixels_sha256
    assert one.pixels_sha256 != sign(decode_grey(as_jpeg(image, quality=80), "")).pixels_sha256
    tall = np.arange(600, dtype=np.uint8).reshape(20, 30)
    assert sign(tall).pixels_sha256 != sign(tall.reshape(30, 20)).pixels_sha256, "the size counts"


def distance_and_correlation(one: np.ndarray, two: np.ndarray) -> tuple[int, float]:
    a, b = sign(one), sign(two)
    flat = normalised(np.stack([a.thumb, b.thumb]))
    return int(np.bitwise_count(a.dhash ^ b.dhash).sum()), float(flat[0] @ flat[1])


def test_a_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    flat = normalised(thumbs)
    assert flat[0] @ flat[1] == pytest.approx(np.corrcoef(*thumbs.reshape(2, -1).astype(float))[0, 1], abs=1e-6)
    assert not normalised(np.full((1, 64, 64), 9, np.uint8)).any()


def test_another_size_quality_or_brightness_of_a_real_radiograph_is_near(shared_data):
    files = sorted((shared_data / "cxr_small/images").rglob("*.jpg"))[::130]
    originals = [decode_grey(file.read_bytes(), file.name) for file in files]
    for pixels in originals:
        image = Image.fromarray(pixels)
        for changed in (image, smaller(image), brighter(image)):
            copy = np.asarray(Image.open(io.BytesIO(as_jpeg(changed, quality=60))))
            bits, correlation = distance_and_correlation(pixels, copy)
            assert bits <= 14 and correlation >= 0.98
    for one, two in itertools.pairwise(originals):
        assert distance_and_correlation(one, two)[0] > 14
