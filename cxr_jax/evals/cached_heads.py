"""The protocols that train heads on cached features: `cached_head` on all training rows, `label_efficiency` on parts.

In: a `Task`, a frozen backbone, what head and how it is trained. Out: `Scores`. Everything is chosen on the selection
rows; the test rows are scored by the chosen head alone.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_jax.data.augment import CropRecipe
from cxr_jax.evals.feature_cache import features_of
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.head_training import HeadTrainer, Recipe, choose, class_aurocs, spread
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.subsets import Drawn, everything
from cxr_jax.evals.task import Task
from cxr_jax.objectives.supervised import Supervised


@dataclass(frozen=True)
class HeadSettings:
    """What head is trained, how, and where its features are kept.

    `head` are keyword arguments of the head `name` without `width` and `num_classes`; `tokens`, `folder` and `max_gb`
    are those of `feature_cache.features_of`.
    """

    name: str
    head: Mapping[str, Any]
    recipe: Recipe
    seeds: tuple[int, ...]
    tokens: tuple[str, ...]
    folder: str
    max_gb: float


class CachedHead:
    """`fit(drawn, seed)`: a head on one backbone, trained on any part of the rows. Images are read once."""

    def __init__(
        self,
        task: Task,
        model: Mapping[str, Any],
        backbone: Mapping[str, Any],
        geometry: Geometry,
        wanted: HeadSettings,
    ):
        self._task, self._recipe = task, wanted.recipe
        rates = tuple(rate for rate, _ in wanted.recipe.grid)
        sizes = {"width": model["width"] * (2 if task.beside else 1), "num_classes": len(task.targets)}
        crop = CropRecipe(size=geometry.image_size, scale=(1.0, 1.0))  # of no use without images
        objective = Supervised({**model, "drop_path": 0.0}, wanted.name, {**wanted.head, **sizes}, rates, crop)

        def tokens(split, mirrored):
            return features_of(
                task,
                split,
                backbone,
                model=model,
                geometry=geometry,
                blocks=wanted.head["blocks"],
                tokens=wanted.tokens,
                folder=wanted.folder,
                max_gb=wanted.max_gb,
                mirrored=mirrored,
            )

        def features(role, mirrored=False):
            found = tokens(task.splits[role], mirrored)
            if not task.beside:
                return found
            other = tokens(task.beside[role], mirrored)
            return {name: np.concatenate([found[name], other[name]], axis=-1) for name in found}

        self._select = features("select")
        self._test = {mirrored: features("test", mirrored) for mirrored in ((False, True) if task.flip else (False,))}
        self._trainer = HeadTrainer(objective, wanted.recipe, features("train"), task.labels["train"])

    def fit(self, drawn: Drawn, seed: int) -> Scores:
        """Trained on the drawn training rows, chosen on the drawn selection rows alone.

        A class without both labels among the drawn training rows is not scored.
        """
        params = self._trainer.fit(drawn.train, seed)
        logits = self._trainer.logits(params, self._select)
        best, values = choose(logits[drawn.select], self._task.labels["select"][drawn.select])
        rate, decay = self._recipe.grid[best]
        test = self._task.over_mirror(lambda mirrored: self._trainer.logits(params, self._test[mirrored])[:, best])
        learnt = self._task.labels["train"][drawn.train]
        both = (learnt == 1).any(0) & (learnt == 0).any(0)
        test, select = (np.where(both, x, np.nan).astype(np.float64) for x in (test, logits[:, best]))
        chosen = {"learning_rate": rate, "weight_decay": decay, "selection_auroc": values[best], "grid": values}
        whole = len(drawn.select) == len(select)
        return Scores(test, chosen, select if whole else None, "logit")


def cached_head_scores(
    task: Task, model: Mapping[str, Any], backbone: Mapping[str, Any], geometry: Geometry, wanted: HeadSettings
) -> Scores:
    """The head of the first seed; the others say how much initial weights and order of the rows matter."""
    head, rows = CachedHead(task, model, backbone, geometry, wanted), everything(task)
    fitted = [head.fit(rows, seed) for seed in wanted.seeds]
    grid = [f"learning rate {rate:g}, weight decay {decay:g}" for rate, decay in wanted.recipe.grid]
    chosen = fitted[0].chosen | {"grid": dict(zip(grid, fitted[0].chosen["grid"], strict=True))}
    values = [class_aurocs(scores.test, task.labels["test"]) for scores in fitted]
    if len(fitted) > 1 and all(values):
        means = [float(np.mean(value)) for value in values]
        chosen["test_auroc_of_seeds"] = dict(zip(map(str, wanted.seeds), means, strict=True)) | spread(means)
    return dataclasses.replace(fitted[0], chosen=chosen)
