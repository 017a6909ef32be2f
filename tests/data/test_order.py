"""Proportions within one record at every prefix, every place on its own, each source complete in its own passes."""

import time
from fractions import Fraction

import grain
import numpy as np
import pytest

from cxr_jax.data.order import PermutedOrder, WeightedOrder, whole_weights

# Grain's permutation of a few dozen records costs milliseconds an element, of thousands microseconds.
LENGTHS = (5_000, 700, 2_000)


def sources(order, places, lengths=LENGTHS):
    return np.searchsorted(np.cumsum(lengths), [order[p] for p in places], side="right")


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (5, 3, 2), (0.001, 0.5, 0.499), (97, 1, 13)])
@pytest.mark.parametrize("start", [0, 10**9])
def test_every_prefix_has_its_share_rounded_up_or_down(weights, start):
    """Counted from place 0 as fractions; at 10**9 over a whole number of rounds later, where the pattern must go on."""
    order = WeightedOrder(LENGTHS, weights, seed=1)
    # Whole numbers: |taken - n * share| < 1 times the sum of the weights in thousandths.
    parts = [int(Fraction(str(weight)) * 1000) for weight in weights]
    start -= start % sum(whole_weights(weights))
    taken = [0] * len(weights)
    for n, source in enumerate(sources(order, range(start, start + 2_100)), 1):
        taken[source] += 1
        assert all(abs(taken[i] * sum(parts) - n * part) < sum(parts) for i, part in enumerate(parts)), (n, taken)


def test_many_equal_sources_stay_within_one():
    """Where splitting off one source after the other, each rounded, would be off by more."""
    lengths = (3_000,) * 24
    order = WeightedOrder(lengths, (1,) * 23 + (7,), seed=0)
    taken = np.zeros(24)
    shares = np.array([1] * 23 + [7]) / 30
    for n, source in enumerate(sources(order, range(600), lengths), 1):
        taken[source] += 1
        assert np.abs(taken - n * shares).max() < 1


def test_every_source_is_permuted_anew_in_its_own_passes():
    lengths = (50, 7, 20)
    order = WeightedOrder(lengths, (2, 1, 1), seed=5)
    stream = np.array([order[p] for p in range(200)])
    for first, length in zip((0, 50, 57), lengths, strict=True):
        own = stream[(stream >= first) & (stream < first + length)] - first
        passes = own[: len(own) // length * length].reshape(-1, length)
        assert len(passes) >= 2
        for one in passes:
            assert sorted(one) == list(range(length))
        assert passes[0].tolist() != passes[1].tolist()


@pytest.mark.parametrize(("length", "seed"), [(1, 0), (72, 3), (5_200, 2**32 - 1)])
def test_the_permutation_is_the_one_of_grains_datasets(length, seed):
    """Over three passes; the last seed is the largest there is, after which they begin again."""
    shuffled = grain.MapDataset.range(length).shuffle(seed=seed).repeat(None)
    order = PermutedOrder(length, seed)
    places = range(0, 3 * length, max(1, length // 50))
    assert [order[p] for p in places] == [int(shuffled[p]) for p in places]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_beyond_the_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed={seed}: must be"):
        PermutedOrder(10, seed)


def test_sources_of_one_length_are_not_permuted_alike():
    order = WeightedOrder((3_000, 3_000), (1, 1), seed=0)
    stream = np.array([order[p] for p in range(60)])
    assert stream[stream < 3_000].tolist() != (stream[stream >= 3_000] - 3_000).tolist()


@pytest.mark.parametrize("order", [PermutedOrder(1_000_000, 3), WeightedOrder((10**6, 300_000), (0.9, 0.1), 3)])
def test_far_places_cost_what_near_ones_do(order):
    """Not a timing: 1,000 places past 10**9 in seconds say that nothing walks there."""
    started = time.monotonic()
    far = [order[10**9 + p] for p in range(1_000)]
    assert time.monotonic() - started < 5
    assert far == [order[10**9 + p] for p in range(1_000)]
    assert len(set(far)) > 990


def test_the_order_depends_on_the_seed_and_weights_alone():
    def first(weights=(2, 1, 1), seed=0):
        order = WeightedOrder(LENGTHS, weights, seed)
        return [order[p] for p in range(100)]

    assert first() == first() == first(weights=(0.5, 0.25, 0.25))
    assert first() != first(seed=1)
    assert first() != first(weights=(3, 1, 1))


@pytest.mark.parametrize(
    ("weights", "whole"),
    [((0.7, 0.3), (7, 3)), ((2.0, 4.0), (1, 2)), ((0.1, 0.2, 0.7), (1, 2, 7)), ((1e-3, 1), (1, 1000))],
)
def test_weights_are_read_as_they_are_written(weights, whole):
    assert whole_weights(weights) == whole


@pytest.mark.parametrize("weights", [(), (1, 0), (1, -2), (float("nan"), 1), (0.3333333, 0.6666667)])
def test_what_is_no_proportion_is_refused(weights):
    with pytest.raises(ValueError, match=r"data\.weights="):
        whole_weights(weights)
