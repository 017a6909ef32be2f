"""Splits and order from hashes: the same input gives the same split and order on every machine.

In: patient ids and keys. Out: a split per patient (train, val or test) and a place in the shuffled order. A
patient's split depends on nothing but its id and the seed, so adding patients never moves the others.
"""

import hashlib

from cxr_jax.data.records import SPLITS, DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def stable_hash(text: str, seed: int) -> int:
    """64 bits of sha256 over the seed and the text."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")


def draw_split(patient_id: str, seed: int, fractions: tuple[float, float, float]) -> str:
    """The split of a patient; `fractions` are those of train, val and test and sum to 1."""
    position = stable_hash(patient_id, seed) / 2**64
    edge = 0.0
    for split, fraction in zip(SPLITS, fractions, strict=True):
        edge += fraction
        if position < edge:
            return split
    # Only rounding of the sum of the fractions leads here.
    return SPLITS[max(i for i, fraction in enumerate(fractions) if fraction > 0)]


def parse_split(text: str, where: str) -> str:
    """The contract's name of a split as a source writes it; raises DataError for a name that is no split."""
    split = SPLIT_NAMES.get(text.strip().lower())
    if split is None:
        raise DataError(f"{where}: split is {text!r}; legal: {', '.join(SPLIT_NAMES)}")
    return split
