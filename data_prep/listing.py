"""The listing: every sample's split and its place in the final order, before any image is read.

In: a reader's samples. Out: `Listing`: the order (train, val, test; within a split by a seeded hash of the key), the
splits (the published one, else the patient's hash), the samples left out because their patient is in two published
splits, and a digest that tells whether a second listing is the same. Then `chunks` cuts the order into pieces of work.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from cxr_jax.data.records import SPLITS, DataError
from data_prep.chunks import Chunk, chunk_size
from data_prep.readers import Sample
from data_prep.sample_text import to_text
from data_prep.splits import draw_split, stable_hash

# A sample without a published split; above every code of SPLITS.
_DRAWN = 255


@dataclasses.dataclass(frozen=True)
class Listing:
    """Row i of every array is the i-th sample of the final order.

    Attributes:
      samples: the reader's samples, in the reader's order.
      order: indices into `samples`.
      split: index into SPLITS.
      patient: hash of the patient's id.
      crossing: index into `samples` of a sample that was left out -> why.
      digest: sha256 over all samples, in order.
      chunk_size: rows a chunk.
    """

    samples: Sequence[Sample]
    order: Int64[np.ndarray, " n"]
    split: UInt8[np.ndarray, " n"]
    patient: UInt64[np.ndarray, " n"]
    crossing: Mapping[int, str]
    digest: str
    chunk_size: int

    def __len__(self) -> int:
        return len(self.order)

    @property
    def num_chunks(self) -> int:
        """Number of chunks; the last may be short."""
        return -(-len(self) // self.chunk_size)

    def sample(self, row: int) -> Sample:
        """The sample at a place of the final order."""
        return self.samples[int(self.order[row])]

    def key(self, row: int) -> str:
        """The key of the sample at a place of the final order."""
        return self.sample(row).key

    def chunks(self, numbers: Sequence[int]) -> Iterator[Chunk]:
        """The chunks of these numbers."""
        for number in numbers:
            first = number * self.chunk_size
            rows = range(first, min(first + self.chunk_size, len(self)))
            yield Chunk(number, first, [self.sample(row) for row in rows])


def list_samples(
    samples: Sequence[Sample], seed: int, fractions: tuple[float, float, float], on_crossing: str
) -> Listing:
    """Splits and orders the samples.

    A patient with a published split keeps it for all its images. One with two stops the build (`on_crossing` "stop":
    DataError), or keeps the images of the split that comes first in test, val, train ("drop").
    """
    count = len(samples)
    published, drawn = np.empty(count, np.uint8), np.empty(count, np.uint8)
    place, patient = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for index, sample in enumerate(samples):
        published[index] = SPLITS.index(sample.split) if sample.split else _DRAWN
        drawn[index] = SPLITS.index(draw_split(sample.patient_id, seed, fractions))
        place[index], patient[index] = stable_hash(sample.key, seed), stable_hash(sample.patient_id, 0)
    if len(np.unique(place)) < count:
        raise DataError(f"{_repeated_key(samples)}: the reader lists it twice; ids must be unique")
    split, crossing = _patient_splits(samples, published, drawn, patient, on_crossing)
    keep = np.ones(count, bool)
    keep[list(crossing)] = False
    order = np.lexsort((place, split))
    order = order[keep[order]]
    digest = hashlib.sha256()
    for index in order:
        digest.update(to_text(samples[int(index)]).encode() + b"\n")
    return Listing(samples, order, split[order], patient[order], crossing, digest.hexdigest(), chunk_size(len(order)))


def _repeated_key(samples: Sequence[Sample]) -> str:
    keys = sorted(sample.key for sample in samples)
    return next((one for one, two in itertools.pairwise(keys) if one == two), keys[0])


def _patient_splits(
    samples: Sequence[Sample],
    published: UInt8[np.ndarray, " n"],
    drawn: UInt8[np.ndarray, " n"],
    patient: UInt64[np.ndarray, " n"],
    on_crossing: str,
) -> tuple[UInt8[np.ndarray, " n"], dict[int, str]]:
    """Each sample's split, and the samples left out with the reason."""
    fixed = published != _DRAWN
    if not fixed.any():
        return drawn, {}
    _, person = np.unique(patient, return_inverse=True)
    first = np.full(person.max() + 1, _DRAWN, np.uint8)
    last = np.zeros(len(first), np.uint8)
    np.minimum.at(first, person[fixed], published[fixed])
    np.maximum.at(last, person[fixed], published[fixed])
    split = np.where(first[person] == _DRAWN, drawn, last[person])
    crossed = fixed & (published != split)
    if crossed.any() and on_crossing == "stop":
        where = int(np.flatnonzero(crossed)[0])
        other = int(np.flatnonzero(fixed & (person == person[where]) & (published == split[where]))[0])
        one, two = samples[where], samples[other]
        raise DataError(
            f"patient {one.patient_id} is in the splits {one.split} ({one.key}) and {two.split} ({two.key}), "
            f"{len(np.unique(person[crossed]))} patients in all; give each patient one split, "
            "or --on_crossing=drop keeps such a patient's images of test, else of val"
        )
    reasons = {int(index): f"its patient is in {SPLITS[split[index]]} too" for index in np.flatnonzero(crossed)}
    return split, reasons
