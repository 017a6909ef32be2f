"""Images of the test split to look at: the surest errors and right answers, and what the queries of a head look at.

In: a run, its scores and the thresholds chosen on the selection rows. Out: cases for a report: the image, the attention
map of every finding where the head has such, and a caption. Nothing is read unless images are asked for.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cxr_jax.data.source import Split
from cxr_jax.evals.columns import Source, trained_networks
from cxr_jax.evals.decisions import confusion
from cxr_jax.evals.people import UNKNOWN, People
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import Task
from cxr_jax.heads.kinds import HEADS
from cxr_jax.objectives.supervised import Supervised

ERRORS, RIGHT = ("false_positives", "false_negatives"), ("true_positives", "true_negatives")


def example_cases(
    source: Source,
    task: Task,
    people: People,
    scores: Scores,
    thresholds: Mapping[str, float | None],
    count: int,
) -> list[dict[str, Any]]:
    """At most `count` images, half of them errors, in turn for every finding that has a threshold.

    Returns:
      `{"image": uint8 [S, S], "maps": {finding: [g, g]} or empty, "caption": str, "detail": str}` each.
    """
    chosen = chosen_rows(scores.test, task.labels["test"], [thresholds[name] for name in task.targets], count)
    if not chosen:
        return []
    split, (function, networks) = task.splits["test"], _function(source, scores)
    rows = [row for _, _, row in chosen]
    few = Split(split.records, np.asarray(split.rows)[rows], split.manifest, split.name)
    out = task.runner(function, source.geometry)(few, networks)
    geometry, side = source.meta["geometry"], source.geometry.image_size // source.meta["model"]["patch_size"]
    cases = []
    for i, (kind, c, row) in enumerate(chosen):
        image = np.clip((out["images"][i] * geometry["std"] + geometry["mean"]) * 255, 0, 255)
        # A head that reads merged patches has no map of the grid.
        whole = "maps" in out and out["maps"].shape[-1] == side * side
        maps = {n: out["maps"][i, j].reshape(side, side) for j, n in enumerate(task.targets)} if whole else {}
        name = task.targets[c]
        caption = f"{name}: {kind.removesuffix('s').replace('_', ' ')}"
        detail = _detail(people, row, float(scores.test[row, c]), float(thresholds[name]))
        cases.append({"image": image.astype(np.uint8), "maps": maps, "caption": caption, "detail": detail})
    return cases


def chosen_rows(
    scores: np.ndarray, labels: np.ndarray, thresholds: list[float | None], count: int
) -> list[tuple[str, int, int]]:
    """(kind, class, row) of at most `count` examples, errors first; no row comes twice."""
    tables = {
        c: confusion(scores[:, c].astype(np.float64), labels[:, c], threshold)
        for c, threshold in enumerate(thresholds)
        if threshold is not None and np.isfinite(scores[:, c]).all()
    }
    taken: list[tuple[str, int, int]] = []
    for kinds, limit in ((ERRORS, -(-count // 2)), (RIGHT, count)):
        queues = [[(kind, c, int(row)) for row in table[kind]] for c, table in tables.items() for kind in kinds]
        for example in itertools.chain.from_iterable(itertools.zip_longest(*queues)):
            if len(taken) >= limit:
                break
            if example and example[2] not in [row for _, _, row in taken]:
                taken.append(example)
    return taken


def _function(source: Source, scores: Scores):
    """What to run over the images, and the networks it takes: only a head that attends has maps."""
    kind = HEADS.get(source.meta.get("head", {}).get("name"))
    if "learning_rate" not in scores.chosen or not hasattr(kind, "attention"):
        return lambda networks, images: {"images": images}, {}
    objective = Supervised.trained(source.meta)
    best = source.meta["learning_rates"].index(scores.chosen["learning_rate"])

    def function(networks, images):
        features = objective.features(*networks, images, blocks=objective.head["blocks"])
        head = objective.head_module(jax.tree.map(lambda leaf: leaf[best], networks[0]["head"]))
        return {"maps": head.attention(features).mean(1), "images": images}

    return function, trained_networks(source)


def _detail(people: People, row: int, score: float, threshold: float) -> str:
    age = people.age_years[row]
    who = [people.view[row], people.sex[row], "" if np.isnan(age) else f"{age:.0f} years"]
    words = [people.image_id[row], *(word for word in who if word not in ("", UNKNOWN))]
    return f"{', '.join(words)}; score {score:.2f}, threshold {threshold:.2f}"
