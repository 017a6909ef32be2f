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
    """One column of a report: scores `[n, c]` of the test rows, and what was chosen on the selection rows."""

    test: np.ndarray
    chosen: dict[str, Any]


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
    return Scores(probe.scores(features["test"]), {"c": [fit.c for fit in probe.fits]})


def knn_scores(task: Task, model: dict[str, Any], params: dict, geometry: Geometry, *, k: int, tokens: str) -> Scores:
    """Nearest neighbours by cosine between `tokens`; nothing is chosen."""
    run = task.runner(backbone_function(model, blocks=1, tokens=tokens), geometry)
    train, test = (run(task.splits[role], params)["features"] for role in ("train", "test"))
    return Scores(knn.knn_scores(train, task.labels["train"], test, k=k), {"k": k})


def floor_scores(task: Task, fit: str) -> Scores:
    """Hand-made features (HOG, pixels, PCA) and logistic regression on the same rows."""

    shrink = jax.jit(partial(fit_images, image_size=FLOOR_SIDE, fit=fit))

    def images(split):
        parts = [range(start, min(start + FLOOR_CHUNK, len(split))) for start in range(0, len(split), FLOOR_CHUNK)]
        loaded = (load_rows(split, part) for part in parts)
        return np.concatenate([np.asarray(shrink(rows["image"], rows["size"])) for rows in loaded])

    pixels = {role: images(split) for role, split in task.splits.items()}
    scores, probe = floor.floor_scores(
        pixels["train"], task.labels["train"], pixels["select"], task.labels["select"], pixels["test"]
    )
    return Scores(scores, {"c": [fit.c for fit in probe.fits]})
