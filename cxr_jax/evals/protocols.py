"""How a column of scores is made from frozen features or from the pixels themselves.

In: a `Task` and a backbone. Out: `Scores` of the test rows. Everything is chosen on the `select` rows; the test rows
are scored once.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from cxr_jax.data.geometry import fit_images
from cxr_jax.data.records import DataError
from cxr_jax.data.steps import load_rows
from cxr_jax.evals import floor, knn, linear_probe
from cxr_jax.evals.features import Geometry, backbone_function
from cxr_jax.evals.ranking import auroc
from cxr_jax.evals.task import Task

FLOOR_SIDE = 128  # px; hand-made features shrink further themselves
FLOOR_CHUNK = 64


@dataclass(frozen=True)
class Scores:
    """One column of a report: scores of the test rows, and what was chosen on the selection rows.

    Attributes:
      test: `[n, c]`, NaN in the column of a class that had nothing to learn from.
      chosen: what was chosen on the selection rows.
      select: scores `[v, c]` of the selection rows, on which thresholds are chosen; None where there are none.
      kind: `logit`, `probability`, or `score` for what is neither and cannot be calibrated.
      features: frozen features `[rows, d]` by role, where the scores come from such.
    """

    test: np.ndarray
    chosen: dict[str, Any]
    select: np.ndarray | None = None
    kind: str = "score"
    features: dict[str, np.ndarray] | None = None


def mean_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes that have both labels. Raises DataError when none has."""
    values = []
    for c in range(labels.shape[1]):
        known = labels[:, c] >= 0
        value = auroc(scores[known, c].astype(np.float64), labels[known, c])
        values += [] if value is None else [value]
    if not values:
        raise DataError("the selection split has no class with both labels, so nothing can be chosen on it")
    return float(np.mean(values))


def linear_probe_scores(
    task: Task, model: dict[str, Any], params: dict, geometry: Geometry, *, blocks: int, tokens: str
) -> Scores:
    """Logistic regression on CLS tokens of the last blocks, the mean patch, or both; C chosen on the selection rows."""
    run = task.runner(backbone_function(model, blocks=blocks, tokens=tokens), geometry)
    features = {role: run(split, params)["features"] for role, split in task.splits.items()}
    probe = linear_probe.fit_linear_probe(
        features["train"], task.labels["train"], features["select"], task.labels["select"]
    )
    select, test = (probe.scores(features[role]) for role in ("select", "test"))
    return Scores(test, {"c": [fit.c for fit in probe.fits]}, select, "logit", features)


def knn_scores(task: Task, model: dict[str, Any], params: dict, geometry: Geometry, *, k: int, tokens: str) -> Scores:
    """Nearest neighbours by cosine between `tokens`; nothing is chosen."""
    run = task.runner(backbone_function(model, blocks=1, tokens=tokens), geometry)
    features = {role: run(split, params)["features"] for role, split in task.splits.items()}
    train, labels = features["train"], task.labels["train"]
    select, test = (knn.knn_scores(train, labels, features[role], k=k) for role in ("select", "test"))
    return Scores(test, {"k": k}, select, "probability", features)


def floor_scores(task: Task, fit: str) -> Scores:
    """Hand-made features (HOG, pixels, PCA) and logistic regression on the same rows."""

    shrink = jax.jit(partial(fit_images, image_size=FLOOR_SIDE, fit=fit))

    def images(split):
        parts = [range(start, min(start + FLOOR_CHUNK, len(split))) for start in range(0, len(split), FLOOR_CHUNK)]
        loaded = (load_rows(split, part) for part in parts)
        return np.concatenate([np.asarray(shrink(rows["image"], rows["size"])) for rows in loaded])

    pixels = {role: images(split) for role, split in task.splits.items()}
    test, select, probe = floor.floor_scores(
        pixels["train"], task.labels["train"], pixels["select"], task.labels["select"], pixels["test"]
    )
    return Scores(test, {"c": [fit.c for fit in probe.fits]}, select, "logit")
