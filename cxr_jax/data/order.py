"""Which record stands at which position of the endless stream that batches are cut from.

In: numbers of records, weights, a seed. Out: objects whose element p is the position in the split of the stream's p-th
record. Global batch t is elements `(t + data_skip) * B + r`. Every element is computed on its own, at any p in constant
time; nothing is kept, so nothing has to be saved.

Without weights every pass over all the data is a fresh pseudo-random permutation. With weights w_i, source i has its
own endless permutations, and which source stands at p is a fixed round of P = sum of w_i (as whole numbers) places.
After any number n of records, source i was taken A_i(n) times with

    floor(n w_i / P) <= A_i(n) <= ceil(n w_i / P)

which is a scheduling problem: the j-th record of source i (from 0) must be taken at or after place floor(j P / w_i) and
before place ceil((j + 1) P / w_i). It always has a solution (Tijdeman 1980; Steiner and Yeomans 1993), and taking the
one whose time ends first finds it.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

LONGEST_ROUND = 100_000
SEEDS = 2**32


class PermutedOrder:
    """All of `length` records in every pass, each pass permuted anew: the order of Grain's
    `MapDataset.range(length).shuffle(seed).repeat()`, asked without its layers.

    Raises ValueError for a seed that is not in 0 .. 2**32 - 1.
    """

    def __init__(self, length: int, seed: int):
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed={seed}: must be a whole number from 0 to {SEEDS - 1}")
        self._length, self._seed = length, seed

    def __getitem__(self, place: int) -> int:
        passes, index = divmod(place, self._length)
        return index_shuffle(index, max_index=self._length - 1, seed=(self._seed + passes) % SEEDS, rounds=4)


class WeightedOrder:
    """Sources of `lengths` records, end to end in the split, taken in exact proportion to `weights`.

    Raises ValueError for weights that are no proportions, see `whole_weights`.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[int | float], seed: int):
        self._weights = whole_weights(weights)
        if len(lengths) != len(self._weights):
            raise ValueError(f"data.weights={tuple(weights)}: {len(lengths)} datasets need as many weights")
        self._source, self._nth = one_round(self._weights)
        self._starts = np.cumsum([0, *lengths[:-1]]).tolist()
        # Sources of the same length must not be permuted alike.
        seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in range(len(lengths))]
        self._orders = [PermutedOrder(length, own) for length, own in zip(lengths, seeds, strict=True)]

    def __getitem__(self, place: int) -> int:
        rounds, place = divmod(place, len(self._source))
        i = int(self._source[place])
        return self._starts[i] + self._orders[i][rounds * self._weights[i] + int(self._nth[place])]


def whole_weights(weights: Sequence[int | float]) -> tuple[int, ...]:
    """The smallest whole numbers in the proportions that are written: (0.7, 0.3) is (7, 3).

    Raises ValueError for a weight that is not above 0, or proportions that only a round of more than `LONGEST_ROUND`
    records can keep exactly.
    """
    if not weights or not all(isinstance(w, int | float) and math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(f"data.weights={tuple(weights)}: each must be a number above 0; leave out what gets none")
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    whole = [weight // math.gcd(*whole) for weight in whole]
    if sum(whole) > LONGEST_ROUND:
        raise ValueError(
            f"data.weights={tuple(weights)}: only whole numbers with a sum above {LONGEST_ROUND} are in these "
            "proportions; write them with fewer digits"
        )
    return tuple(whole)


def one_round(weights: Sequence[int]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """For every place of a round, which source stands there and which of its records of this round it is."""
    places, taken = sum(weights), [0] * len(weights)
    source, nth = np.empty(places, np.int32), np.empty(places, np.int32)
    for place in range(places):
        # Whole numbers throughout: in floating point a time that ends exactly here may look missed.
        open_ones = [
            (-(-(taken[i] + 1) * places // weight), i)
            for i, weight in enumerate(weights)
            if taken[i] < weight and taken[i] * places // weight <= place
        ]
        _, i = min(open_ones)
        source[place], nth[place] = i, taken[i]
        taken[i] += 1
    return source, nth
