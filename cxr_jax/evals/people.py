"""Who the rows of a split are: what subgroups, audits and predictions.csv need to know beside labels.

In: a `Split`. Out: `People`, one entry a row, read in one pass without decoding an image.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.data.source import Split

TEXTS = ("image_id", "patient_id", "source", "view", "sex")
UNKNOWN = "UNKNOWN"
FIELDS = ("source", "view", "sex", "age")  # that subgroups can be made of


def check_field(field: str) -> None:
    """Raises ValueError for a field that no subgroups can be made of."""
    if field not in FIELDS:
        raise ValueError(f"subgroups.fields has {field!r}; legal are {', '.join(FIELDS)}")


def check_bins(bins: Sequence[float]) -> None:
    """Raises ValueError for edges in years that do not rise."""
    if list(bins) != sorted(set(bins)):
        raise ValueError(f"subgroups.age_bins={tuple(bins)} must rise")


@dataclass(frozen=True)
class People:
    """The rows of a split. `age_years` is NaN where unknown; `image_bytes` is the size of the stored JPEG."""

    image_id: Shaped[np.ndarray, " n"]
    patient_id: Shaped[np.ndarray, " n"]
    source: Shaped[np.ndarray, " n"]
    view: Shaped[np.ndarray, " n"]
    sex: Shaped[np.ndarray, " n"]
    age_years: Float[np.ndarray, " n"]
    height: Integer[np.ndarray, " n"]
    width: Integer[np.ndarray, " n"]
    image_bytes: Integer[np.ndarray, " n"]

    def __len__(self):
        return len(self.image_id)

    def groups(self, field: str, age_bins: Sequence[float]) -> dict[str, np.ndarray]:
        """Rows by value of `source`, `view`, `sex` or `age` (in bins between `age_bins`), rows without one left out.

        Raises:
          ValueError: another field, or bins that do not rise.
        """
        check_field(field)
        if field == "age":
            return self._ages(age_bins)
        values = getattr(self, field)
        known = [value for value in np.unique(values) if value not in (UNKNOWN, "")]
        return {str(value): np.flatnonzero(values == value) for value in known}

    def _ages(self, bins):
        check_bins(bins)
        edges = [-np.inf, *bins, np.inf]
        groups = {}
        for low, high in itertools.pairwise(edges):
            rows = np.flatnonzero((self.age_years >= low) & (self.age_years < high))
            name = f"{low:g} and over" if high == np.inf else f"{low:g} to under {high:g}"
            name = f"under {high:g}" if low == -np.inf else name
            if len(rows):
                groups[name] = rows
        return groups


def read_people(split: Split) -> People:
    """Read every record of the split once."""
    records = [split[i] for i in range(len(split))]
    texts = {name: np.array([_text(record[name]) for record in records], str) for name in TEXTS}
    ages = np.array([float(record["age_years"]) for record in records])
    return People(
        **texts,
        age_years=np.where(ages < 0, np.nan, ages),
        height=np.array([int(record["height"]) for record in records]),
        width=np.array([int(record["width"]) for record in records]),
        image_bytes=np.array([len(record["image"]) for record in records]),
    )


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
