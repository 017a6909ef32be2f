"""The frozen features behind a column, for audits.

In: what is evaluated, a `Task`, the column's `Scores`. Out: features `[rows, d]` by role: those that the column brought
along, else CLS and mean patch tokens of the last block of the backbone it stands on.
"""

import jax.numpy as jnp
import numpy as np

from cxr_jax import checkpoint
from cxr_jax.evals.columns import NETWORKS, Source, trained_networks
from cxr_jax.evals.features import backbone_function
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import Task
from cxr_jax.objectives.supervised import Supervised


def frozen_features(source: Source, task: Task, scores: Scores, network: str) -> dict[str, np.ndarray]:
    """Features by role; `network` says which of a pretraining's two is meant."""
    if scores.features is not None:
        return dict(scores.features)
    function, params = _backbone(source, network)
    run = task.runner(function, source.geometry)
    return {role: run(split, params)["features"] for role, split in task.splits.items()}


def _backbone(source: Source, network: str):
    """What to run over the images, and the parameters it takes."""
    if source.meta["objective"] != "supervised":
        item = NETWORKS[checkpoint.network_of(source.meta, network)]
        params = checkpoint.read_item(source.run, item, source.step)["backbone"]
        return backbone_function(source.meta["model"], blocks=1, tokens="cls_and_mean_patch"), params
    objective = Supervised.trained(source.meta)

    def function(networks, images):
        features = objective.features(*networks, images, blocks=1)
        return {"features": jnp.concatenate([features.cls[-1], features.patches[-1].mean(1)], axis=-1)}

    return function, trained_networks(source)
