"""The protocol `segmentation`: a fine-tuned run's masks against the true ones, beside other runs and a floor.

In: a run whose objective is `segmentation`, and splits whose records have masks. Out: a `Page` of Dice and IoU of every
test image and column. The learning rate, and the floor's two numbers, are those with the best mean Dice on the
selection split.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from cxr_jax.config import require
from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split
from cxr_jax.evals import segmentation
from cxr_jax.evals.classification import require_disjoint_patients
from cxr_jax.evals.columns import Source, column_name, open_source, trained_networks
from cxr_jax.evals.features import Geometry, identities
from cxr_jax.evals.figures import outlined
from cxr_jax.evals.per_image_report import Case, Page, ScoreColumn, lowest_middle_highest
from cxr_jax.evals.segmentation import SCORES, MaskFunction
from cxr_jax.evals.task import ROLES, open_role
from cxr_jax.objectives.segmentation import Segmentation

FLOOR = "mean training mask and darkness"
HEADINGS = {
    "dice": "Dice",
    "iou": "IoU",
    "dice_at_input": "Dice at the model input",
    "iou_at_input": "IoU at the model input",
}
EXPLANATION = (
    "The worst, the middle and the best images of the evaluated column by Dice, at the stored size. Cyan: the true "
    "mask's outline. Amber: the predicted one."
)
NOTES = (
    "Dice and IoU are counted at the size in which images are stored: logits are brought back to it by bilinear "
    "interpolation and cut at probability 1/2. At the model input, against the mask shrunk by area, they leave out "
    "what the input's resolution costs.",
    "Images without a mask are not scored. An image whose true mask is empty is undefined, whatever is predicted, and "
    "left out of every column.",
    "What is chosen was chosen on the selection split by mean Dice; no test row took part in a choice.",
    f"{FLOOR}: log odds of the training masks' mean at each pixel, minus how bright the pixel is; nothing is learned.",
)


@dataclass(frozen=True)
class Predictor:
    """What makes masks: a function, its parameters, the candidate that was chosen, and the geometry it wants."""

    function: MaskFunction
    params: Any
    candidate: int
    geometry: Geometry


@dataclass(frozen=True)
class Masked:
    """The rows by role (`train`, `select`, `test`) that have masks, and how batches of them lie on the devices."""

    splits: Mapping[str, Split]
    batch_size: int
    sharding: NamedSharding


def open_masked(
    path: str,
    *,
    splits: Mapping[str, str],
    where: Mapping[str, str],
    cache_dir: str = "",
    batch_size: int,
    sharding: NamedSharding,
) -> Masked:
    """Open the rows with masks, `splits` naming one for each of `ROLES`. Raises DataError if they share a patient."""
    opened = {role: open_role(role, path, splits[role], where=where, cache_dir=cache_dir, masks=True) for role in ROLES}
    try:
        require_disjoint_patients(**{role: identities(split, "patient_id") for role, split in opened.items()})
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return Masked(opened, batch_size, sharding)


def score(source: Source, task: Masked, *, runs: Collection[str], floor: bool, pictures: int) -> Page:
    """Everything that the report shows, with `pictures` images of outlines."""
    columns, rows, predictor = mask_columns(source, task, runs=runs, floor=floor)
    test = task.splits["test"]
    fields = ("image_id", "patient_id", "source")
    who = {field: [test.text(int(row), field) for row in rows] for field in fields}
    return Page(
        columns=columns,
        headings=HEADINGS,
        identities=who,
        groups=groups_of(who["source"]),
        tiles=("dice", "iou"),
        cases=mask_cases(test, columns[0], rows, predictor, pictures),
        explanation=EXPLANATION,
        notes=NOTES,
    )


def mask_columns(
    source: Source, task: Masked, *, runs: Collection[str], floor: bool
) -> tuple[list[ScoreColumn], np.ndarray, Predictor]:
    """Columns (the evaluated run, other `runs`, the `floor`), which test rows they score, and what made the first."""
    batches = {"batch_size": task.batch_size, "sharding": task.sharding}
    columns, predictors = [], []

    def add(name, function, params, geometry, candidates, note):
        scorer = segmentation.make_scorer(function, geometry=geometry, **batches)
        grid = scorer(task.splits["select"], params).mean_dice()
        if np.isnan(grid).all():
            raise DataError(f"split {task.splits['select'].name!r} has no mask but empty ones: nothing can be chosen")
        best = int(np.nanargmax(grid))
        by_candidate = dict(zip(candidates, grid.tolist(), strict=True))
        chosen = {**note, "chosen": candidates[best], "selection_dice": by_candidate}
        overlaps = scorer(task.splits["test"], params)
        columns.append(ScoreColumn(name, overlaps.scores(best), chosen))
        predictors.append(Predictor(function, params, best, geometry))
        return overlaps.rows

    for run in (source, *map(open_source, runs)):
        function = run_function(run)
        name = column_name(run.run, run.meta, [column.name for column in columns])
        rates = [f"learning rate {rate:g}" for rate in run.meta["learning_rates"]]
        rows = add(name, function, trained_networks(run), run.geometry, rates, {"pretrained": run.meta["pretrained"]})
    if floor:
        geometry = source.geometry
        mean = segmentation.mean_mask(task.splits["train"], geometry=geometry, **batches)
        add(FLOOR, segmentation.floor_function, mean, geometry, segmentation.floor_candidates(), {})
    return columns, rows, predictors[0]


def run_function(source: Source) -> MaskFunction:
    """Logits of a run's heads from its networks. Raises ConfigError when the run segments nothing."""
    found = source.meta["objective"]
    require(found == "segmentation", f"{source.run} was trained for {found}; legal is segmentation (configs/finetune)")
    objective = Segmentation.trained(source.meta)

    def function(networks, images):
        params, targets = networks
        features = objective.features(params, targets, images, blocks=objective.head["blocks"])
        return objective.pixel_logits(params, features).swapaxes(0, 1)

    return function


def mask_cases(split: Split, column: ScoreColumn, rows: np.ndarray, predictor: Predictor, count: int) -> list[Case]:
    """`count` test images with both outlines: the worst, the middle, the best by Dice."""
    dice = column.values[:, SCORES.index("dice")]
    wanted = lowest_middle_highest(dice, count)
    if not wanted:
        return []
    pictures = segmentation.show(
        predictor.function,
        predictor.params,
        split,
        [int(rows[i]) for i in wanted],
        predictor.candidate,
        predictor.geometry,
    )
    cases = []
    for i, picture in zip(wanted, pictures, strict=True):
        row = int(rows[i])
        caption = f"{split.text(row, 'image_id')} ({split.text(row, 'source')}): Dice {dice[i]:.3f}"
        both = outlined(picture["image"], [picture["true"], picture["predicted"]])
        cases.append(Case(caption, ((outlined(picture["image"], []), "the image"), (both, "true and predicted mask"))))
    return cases


def groups_of(sources: Sequence[str]) -> dict[str, np.ndarray]:
    """All images, and where there are several sources those of each."""
    sources = np.asarray(sources)
    names = np.unique(sources)
    groups = {"All images": np.ones(len(sources), bool)}
    return groups | ({str(name): sources == name for name in names} if len(names) > 1 else {})
