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
from cxr_jax.evals.subsets import Drawn, everything
from cxr_jax.evals.task import ROLES, Task

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
      curve: label efficiency, where that was asked for (`label_efficiency.summarise`).
    """

    test: np.ndarray
    chosen: dict[str, Any]
    select: np.ndarray | None = None
    kind: str = "score"
    features: dict[str, np.ndarray] | None = None
    curve: list[dict[str, Any]] | None = None


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
    features = _probe_features(task, model, params, geometry, blocks=blocks, tokens=tokens)
    probe = linear_probe.fit_linear_probe(
        features["train"], task.labels["train"], features["select"], task.labels["select"]
    )
    test = task.over_mirror(lambda mirrored: probe.scores(features["mirrored test" if mirrored else "test"]))
    select = probe.scores(features["select"])
    return Scores(test, {"c": [fit.c for fit in probe.fits]}, select, "logit", _by_role(features))


def knn_scores(task: Task, model: dict[str, Any], params: dict, geometry: Geometry, *, k: int, tokens: str) -> Scores:
    """Nearest neighbours by cosine between `tokens`; nothing is chosen."""
    features = _probe_features(task, model, params, geometry, blocks=1, tokens=tokens)

    def scores(role):
        return knn.knn_scores(features["train"], task.labels["train"], features[role], k=k)

    test = task.over_mirror(lambda mirrored: scores("mirrored test" if mirrored else "test"))
    return Scores(test, {"k": k}, scores("select"), "probability", _by_role(features))


def _by_role(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {role: features[role] for role in ROLES}


def _probe_features(task: Task, model: dict[str, Any], params: dict, geometry: Geometry, *, blocks: int, tokens: str):
    """Arrays `[n, d]` of each role's rows and, where the task asks for them, of the test images' mirror pictures."""
    if blocks > model["depth"]:
        raise ValueError(f"probe.blocks={blocks}: the backbone has {model['depth']} blocks, so legal are 1 to that")
    function = backbone_function(model, blocks=blocks, tokens=tokens)
    run = task.runner(function, geometry)
    features = {role: run(split, params)["features"] for role, split in task.splits.items()}
    if task.flip:
        mirror = task.runner(function, geometry, mirrored=True)
        features["mirrored test"] = mirror(task.splits["test"], params)["features"]
    return features


class Floor:
    """Hand-made features (HOG, pixels, PCA) and logistic regression on the same rows; images are read once.

    No mirror pictures here, whatever `task.flip` says.
    """

    def __init__(self, task: Task, fit: str):
        shrink = jax.jit(partial(fit_images, image_size=FLOOR_SIDE, fit=fit))

        def features(split):
            parts = [range(start, min(start + FLOOR_CHUNK, len(split))) for start in range(0, len(split), FLOOR_CHUNK)]
            loaded = (load_rows(split, part) for part in parts)
            pixels = np.concatenate([np.asarray(shrink(rows["image"], rows["size"])) for rows in loaded])
            return floor.floor_features(pixels)

        self._labels = task.labels
        self._features = {role: features(split) for role, split in task.splits.items()}

    def fit(self, drawn: Drawn, seed: int = 0) -> Scores:
        """Learnt from the drawn training rows alone, C chosen on the drawn selection rows."""
        train, select = (
            tuple(kind[rows] for kind in self._features[role])
            for role, rows in (("train", drawn.train), ("select", drawn.select))
        )
        labels = self._labels["train"][drawn.train], self._labels["select"][drawn.select]
        test, chosen_on, probe = floor.fit_floor(train, select, self._features["test"], *labels, seed=seed)
        whole = len(drawn.select) == len(self._labels["select"])
        return Scores(test, {"c": [fit.c for fit in probe.fits]}, chosen_on if whole else None, "logit")


def floor_scores(task: Task, fit: str) -> Scores:
    """The hand-made floor on all rows."""
    return Floor(task, fit).fit(everything(task))
