"""Does a test image stand among the training images, under another patient's name?

In: thumbnails (centred, length 1) and identities of the rows that something was fitted or chosen on, and of the test
rows. Out: pairs whose thumbnails correlate, as they are, mirrored or inverted, and how near the others come.

Splits are made by patient, which does not help when one patient goes by two names or one image lies in two collections.
A pair found here is a candidate: someone has to look at it. `data_prep` finds copies before a dataset is written.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cxr_jax.evals.people import People

ROWS_PER_CHUNK = 512
MAX_LISTED = 20


def audit_duplicates(
    thumbnails: Mapping[str, Float[np.ndarray, "_ s s"]], people: Mapping[str, People], *, correlation: float
) -> dict:
    """`pairs` of a seen (train or select) and a test image that correlate by at least `correlation`, the likest first
    and at most 20; `test_images` that are in any such pair, of `of`; and `nearest`, quantiles of each test image's
    nearest.

    Raises:
      ValueError: correlation is not in 0.5..1.
    """
    check_correlation(correlation)
    test = thumbnails["test"]
    best, pairs = np.zeros(len(test)), []
    for role in ("train", "select"):
        seen = thumbnails[role].reshape(len(thumbnails[role]), -1)
        for start in range(0, len(test), ROWS_PER_CHUNK):
            chunk = test[start : start + ROWS_PER_CHUNK]
            alike = np.maximum(*(np.abs(view.reshape(len(chunk), -1) @ seen.T) for view in (chunk, chunk[:, :, ::-1])))
            best[start : start + len(chunk)] = np.maximum(best[start : start + len(chunk)], alike.max(axis=1))
            for i, j in np.argwhere(alike >= correlation):
                pairs.append((float(alike[i, j]), role, int(j), start + int(i)))
    pairs.sort(key=lambda pair: -pair[0])
    listed = [
        {
            "correlation": value,
            "split": role,
            "image_id": str(people[role].image_id[j]),
            "patient_id": str(people[role].patient_id[j]),
            "test_image_id": str(people["test"].image_id[i]),
            "test_patient_id": str(people["test"].patient_id[i]),
        }
        for value, role, j, i in pairs[:MAX_LISTED]
    ]
    return {
        "correlation": correlation,
        "count": len(pairs),
        "test_images": int((best >= correlation).sum()),
        "of": len(test),
        "pairs": listed,
        "nearest": {name: float(np.quantile(best, q)) for name, q in (("median", 0.5), ("p99", 0.99), ("highest", 1))},
    }


def check_correlation(correlation: float) -> None:
    """Raises ValueError for a correlation that is not in 0.5..1."""
    if not 0.5 <= correlation <= 1.0:
        raise ValueError(f"audits.duplicate_correlation={correlation}: legal are 0.5 to 1")
