"""What the queries of a head look at, on images of the test split.

In: a fine-tuned run and its scores. Out: for the surest positives and negatives the image, the attention map of every
finding, and a caption.
"""

from typing import Any

import jax
import numpy as np

from cxr_jax.data.source import Split
from cxr_jax.evals.columns import Source, trained_head, trained_networks
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import Task
from cxr_jax.heads.kinds import HEADS


def attention_cases(source: Source, task: Task, scores: Scores, count: int) -> list[dict[str, Any]]:
    """`count` images with the maps of the chosen head; none where `scores` come from no head that attends."""
    meta = source.meta
    kind = HEADS.get(meta.get("head", {}).get("name"))
    if not count or "learning_rate" not in scores.chosen or not hasattr(kind, "attention"):
        return []
    objective, split = trained_head(meta), task.splits["test"]
    order = np.argsort(scores.test[:, 0])
    wanted = [*order[::-1][: -(-count // 2)], *order[: count // 2]]
    best = meta["learning_rates"].index(scores.chosen["learning_rate"])

    def function(networks, images):
        features = objective.features(*networks, images, blocks=objective.head["blocks"])
        head = objective.head_module(jax.tree.map(lambda leaf: leaf[best], networks[0]["head"]))
        return {"maps": head.attention(features).mean(1), "images": images}

    chosen = Split(split.records, np.asarray(split.rows)[wanted], split.manifest, split.name)
    out = task.runner(function, source.geometry)(chosen, trained_networks(source))
    side = source.geometry.image_size // meta["model"]["patch_size"]
    cases = []
    for i, row in enumerate(wanted):
        image = np.clip((out["images"][i] * meta["geometry"]["std"] + meta["geometry"]["mean"]) * 255, 0, 255)
        maps = {name: out["maps"][i, c].reshape(side, side) for c, name in enumerate(task.targets)}
        known = {1: "positive", 0: "negative", -1: "unknown"}[int(task.labels["test"][row, 0])]
        caption = f"{split.text(int(row), 'image_id')}: {task.targets[0]} {known}, score {scores.test[row, 0]:.2f}"
        cases.append({"image": image.astype(np.uint8), "maps": maps, "caption": caption})
    return cases
