"""The protocol `localisation`: where a fine-tuned head such as GLoRI looks, against the boxes of the same findings.

In: a run whose head attends, and test records with boxes. Out: a `Page` of the pointing game, the share of attention
in the boxes and IoU, for every pair of an image and a finding that has boxes. Labels alone were learnt, boxes are only
scored; the learning rate is the one with the best mean AUROC on the selection split.

Beside it: other runs, and rivals that see no image, a Gaussian about the picture's middle and the mean of the training
boxes.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cxr_jax.config import require
from cxr_jax.data.geometry import fit_images
from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split
from cxr_jax.data.steps import load_rows
from cxr_jax.evals import localisation
from cxr_jax.evals.columns import Source, column_name, head_scores, open_source, trained_networks
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.figures import attention_overlay, outlined
from cxr_jax.evals.localisation import SCORES, THRESHOLDS, Boxed
from cxr_jax.evals.per_image_report import Case, Page, ScoreColumn, lowest_middle_highest
from cxr_jax.evals.task import Task
from cxr_jax.heads.kinds import HEADS
from cxr_jax.objectives.supervised import Supervised

CENTRE, PRIOR = "middle of the picture", "mean training box"
HEADINGS = {
    "hit": "Highest point in a box",
    "mass": "Share of the map in the boxes",
    **{f"iou_{threshold:g}": f"IoU above {threshold:g} of the peak" for threshold in THRESHOLDS},
    "chance": "Share of the picture in the boxes",
}
EXPLANATION = (
    "Attention of the finding's query, mean over heads, of the images with the lowest, middle and highest share in the "
    "boxes. Cyan: the boxes. Attention shows what was read, not why the score came out as it did."
)
NOTES = (
    "Highest point in a box is the pointing game without tolerance. For a map that knows nothing it is the share of "
    "the picture that the boxes cover, and so is the share of the map in the boxes.",
    "Everything is measured in px of the model input: maps are enlarged bilinearly, padding is left out, several boxes "
    "of one finding in one image count as their union.",
    f"{CENTRE} and {PRIOR} look at no image: findings have their places, and attention has to be above what places "
    "alone tell.",
    "The head has learnt from labels alone; its learning rate was chosen by AUROC on the selection split.",
)


def score(source: Source, task: Task, *, runs: Collection[str], floor: bool, pictures: int) -> Page:
    """Everything that the report shows, with `pictures` images of attention; with `floor` the rivals that see none.

    Raises ConfigError when a run has no head that attends, DataError when no test image has a box of the targets.
    """
    geometry, test = source.geometry, task.splits["test"]
    boxed, others = localisation.boxed_images(test, task.targets, geometry)
    if not boxed:
        found = ", ".join(f"{count} of {name}" for name, count in sorted(others.items())) or "none"
        raise DataError(
            f"split {test.name!r} has no box of {', '.join(task.targets)}; boxes that it has: {found}; a table of "
            "boxes comes into a dataset by data_prep.build --boxes"
        )
    columns, maps = [], []
    for run in (source, *map(open_source, runs)):
        require(
            (run.geometry.fit, run.geometry.image_size) == (geometry.fit, geometry.image_size),
            f"config.baselines.runs: {run.run} has another geometry than {source.run}",
        )
        weights, chosen = attention_maps(run, task, boxed)
        name = column_name(run.run, run.meta, [column.name for column in columns])
        columns.append(_column(name, weights, boxed, chosen))
        maps.append(weights)
    if floor:
        columns += rivals(boxed, localisation.boxed_images(task.splits["train"], task.targets, geometry)[0])
    findings = [one.finding for one in boxed]
    groups = {"All images": np.ones(len(boxed), bool)}
    if len(set(findings)) > 1:
        groups |= {name: np.array([finding == name for finding in findings]) for name in dict.fromkeys(findings)}
    who = {field: [test.text(one.row, field) for one in boxed] for field in ("image_id", "patient_id")}
    left = ", ".join(f"{count} of {name}" for name, count in sorted(others.items()))
    return Page(
        columns=columns,
        headings=HEADINGS,
        identities=who | {"finding": findings},
        groups=groups,
        tiles=("hit", "mass"),
        cases=box_cases(test, boxed, maps[0], columns[0], geometry, pictures),
        explanation=EXPLANATION,
        notes=(
            *NOTES,
            f"Boxes of findings that the head was not trained for are left out: {left or 'there are none'}.",
        ),
    )


def attention_maps(source: Source, task: Task, boxed: Sequence[Boxed]) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The attention of the boxed finding's query at the model input, mean over heads, and what was chosen."""
    require(
        source.meta["objective"] == "supervised" and hasattr(HEADS[source.meta["head"]["name"]], "attention"),
        f"{source.run}: localisation needs a run with a head that attends, such as head.name='glori'",
    )
    chosen = dict(head_scores(source, task).chosen)
    best = source.meta["learning_rates"].index(chosen["learning_rate"])
    objective = Supervised.trained(source.meta)

    def function(networks, images):
        params, targets = networks
        features = objective.features(params, targets, images, blocks=objective.head["blocks"])
        head = objective.head_module(jax.tree.map(lambda leaf: leaf[best], params["head"]))
        return {"maps": head.attention(features).mean(1)}

    rows = sorted({one.row for one in boxed})
    test = task.splits["test"]
    split = Split(test.records, np.asarray(test.rows)[rows], test.manifest, test.name)
    found = task.runner(function, source.geometry)(split, trained_networks(source))["maps"]
    side = source.geometry.image_size
    grid = round(found.shape[-1] ** 0.5)
    maps = []
    for one in boxed:
        flat = found[rows.index(one.row), task.targets.index(one.finding)]
        maps.append(localisation.enlarge(flat.reshape(grid, grid), side))
    return maps, chosen


def rivals(boxed: Sequence[Boxed], training: Sequence[Boxed]) -> list[ScoreColumn]:
    """Maps that see no image; the mean training box only where every finding has boxes in training."""
    columns = [_column(CENTRE, [localisation.centre_map(one) for one in boxed], boxed, {})]
    priors = {one.finding: localisation.mean_boxes(training, one.finding) for one in boxed}
    if all(prior is not None for prior in priors.values()):
        counts = {name: sum(one.finding == name for one in training) for name in priors}
        columns.append(_column(PRIOR, [priors[one.finding] for one in boxed], boxed, {"training images": counts}))
    return columns


def _column(name: str, maps: Sequence[Float[np.ndarray, "S S"]], boxed: Sequence[Boxed], chosen) -> ScoreColumn:
    values = [localisation.score_map(weights, one) for weights, one in zip(maps, boxed, strict=True)]
    return ScoreColumn(name, np.stack(values), chosen)


def box_cases(
    split: Split,
    boxed: Sequence[Boxed],
    maps: Sequence[np.ndarray],
    column: ScoreColumn,
    geometry: Geometry,
    count: int,
) -> list[Case]:
    """`count` images in the geometry of the model input: the boxes, and the attention over them."""
    mass = column.values[:, SCORES.index("mass")]
    wanted = lowest_middle_highest(mass, count)
    if not wanted:
        return []
    loaded = load_rows(split, [boxed[i].row for i in wanted])
    fitted = fit_images(jnp.asarray(loaded["image"]), jnp.asarray(loaded["size"]), geometry.image_size, geometry.fit)
    cases = []
    for i, image in zip(wanted, (255 * np.asarray(fitted)).round().astype(np.uint8), strict=True):
        one = boxed[i]
        overlay, peak = attention_overlay(image, maps[i].astype(np.float32))
        share = mass[i] / column.values[i, SCORES.index("chance")]
        caption = f"{split.text(one.row, 'image_id')}: {one.finding}, {mass[i]:.2f} in the boxes, {share:.1f} × chance"
        images = ((outlined(image, [one.inside]), "boxes"), (overlay, f"attention, peak {peak:.1f} × even share"))
        cases.append(Case(caption, images))
    return cases
