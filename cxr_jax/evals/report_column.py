"""One score set of a report: what all its sections are handed."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Column:
    """One score set of the report.

    `results` is from `measures.measure` (or `classification.evaluate`, which leaves out the sections on decisions);
    `difference`, for columns after the first, is `measures.difference` (or `classification.compare`) of the scores of
    the first column and these. `kind` says what the scores are, see `protocols.Scores`.
    """

    name: str
    scores: Float[np.ndarray, "n c"]
    results: dict
    difference: dict | None = None
    kind: str = "score"
