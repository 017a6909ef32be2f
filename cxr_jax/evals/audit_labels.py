"""Which labels do the most alike images contradict?

In: frozen features, labels and patients of the train and test rows. Out: for every finding how well the neighbours'
vote ranks the train labels, and the rows it contradicts most: candidates for a wrong label, to be looked at.

Of the k train rows of other patients nearest by cosine, whose label is known, a share s is positive. The vote weighs
the two labels as if they were equally frequent (prevalence q),

    v = (s / q) / (s / q + (1 - s) / (1 - q)),

and a row is listed where v is at least 0.8 away from its label. A label is contradicted only where chance would bring
at least 3 of k neighbours with it: the absence of something rare tells nothing. The features decide what "alike" means;
with an AUROC of the vote near 0.5 the list is noise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals.people import People
from cxr_jax.evals.ranking import auroc

ROWS_PER_CHUNK = 1024
DISAGREEMENT, MIN_EXPECTED, MAX_LISTED = 0.8, 3.0, 20


def audit_labels(
    features: Mapping[str, Float[np.ndarray, "_ d"]],
    labels: Mapping[str, Integer[np.ndarray, "_ c"]],
    people: Mapping[str, People],
    class_names: Sequence[str],
    *,
    neighbours: int,
) -> dict:
    """Finding -> `vote_auroc` on train rows, `contradicted` (how many), `of`, and `rows`, the strongest first, at most
    20.

    Raises:
      ValueError: neighbours is below 1.
    """
    check_neighbours(neighbours)
    shares = {
        role: neighbour_shares(
            features["train"],
            labels["train"],
            people["train"].patient_id,
            features[role],
            people[role].patient_id,
            k=neighbours,
        )
        for role in ("train", "test")
    }
    found = {}
    for c, name in enumerate(class_names):
        known = labels["train"][:, c] >= 0
        prevalence = float((labels["train"][known, c] == 1).mean()) if known.any() else 0.0
        candidates = []
        if 0.0 < prevalence < 1.0:
            for role, share in shares.items():
                candidates += _contradicted(role, share[:, c], labels[role][:, c], people[role], prevalence, neighbours)
        candidates.sort(key=lambda row: -abs(row["label"] - row["vote"]))
        found[name] = {
            "vote_auroc": auroc(np.nan_to_num(shares["train"][:, c]), labels["train"][:, c]),
            "contradicted": len(candidates),
            "of": int(sum((labels[role][:, c] >= 0).sum() for role in shares)),
            "rows": candidates[:MAX_LISTED],
        }
    return found


def check_neighbours(neighbours: int) -> None:
    """Raises ValueError where nobody votes."""
    if neighbours < 1:
        raise ValueError(f"audits.neighbours={neighbours} must be at least 1")


def neighbour_shares(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Integer[np.ndarray, "n c"],
    train_patients: Shaped[np.ndarray, " n"],
    features: Float[np.ndarray, "m d"],
    patients: Shaped[np.ndarray, " m"],
    *,
    k: int,
) -> Float[np.ndarray, "m c"]:
    """Share of positives among the k nearest known train rows of other patients; NaN where there are none."""
    train, rows = _unit(train_features), _unit(features)
    shares = np.full((len(rows), train_labels.shape[1]), np.nan)
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        similarity = rows[chunk] @ train.T
        similarity[patients[chunk, None] == train_patients] = -np.inf
        for c in range(train_labels.shape[1]):
            known = np.flatnonzero(train_labels[:, c] >= 0)
            if not len(known):
                continue
            near = np.argpartition(-similarity[:, known], min(k, len(known)) - 1, axis=1)[:, :k]
            other = np.isfinite(np.take_along_axis(similarity[:, known], near, axis=1))
            positive = (train_labels[known, c] == 1)[near] & other
            count = other.sum(axis=1)
            shares[chunk, c] = np.where(count > 0, positive.sum(axis=1) / np.maximum(count, 1), np.nan)
    return shares


def _contradicted(role, share, labels, people, prevalence, k) -> list[dict]:
    odds = share / prevalence, (1 - share) / (1 - prevalence)
    vote = odds[0] / (odds[0] + odds[1])
    expected = np.where(labels == 1, prevalence, 1 - prevalence) * k
    listed = (labels >= 0) & (np.abs(labels - vote) >= DISAGREEMENT) & (expected >= MIN_EXPECTED)
    return [
        {
            "split": role,
            "image_id": str(people.image_id[i]),
            "patient_id": str(people.patient_id[i]),
            "label": int(labels[i]),
            "positive_neighbours": float(share[i]),
            "vote": float(vote[i]),
        }
        for i in np.flatnonzero(listed)
    ]


def _unit(features):
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
