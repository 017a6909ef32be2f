"""Columns of the protocols that train heads on cached features: `cached_head` and `label_efficiency`.

In: what is evaluated, a `Task`, the config's sections `head`, `features`, `training` and `label_efficiency` as plain
dictionaries. Out: name -> `Scores`.
"""

from collections.abc import Mapping
from typing import Any

from cxr_jax import config as door
from cxr_jax.config import ConfigError, RunError, call, require
from cxr_jax.evals.cached_heads import CachedHead, HeadSettings, cached_head_scores
from cxr_jax.evals.feature_cache import check_tokens
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.head_training import Recipe
from cxr_jax.evals.label_efficiency import all_draws, label_efficiency_scores, table_lines
from cxr_jax.evals.learning_curve import label_efficiency_section
from cxr_jax.evals.protocols import Floor, Scores
from cxr_jax.evals.subsets import amounts
from cxr_jax.evals.task import Task
from cxr_jax.heads.kinds import HEADS

Settings = Mapping[str, Any]
SECTIONS = ("head", "features", "training", "label_efficiency", "probe")


def refuse(error: ValueError, where: str) -> None:
    """Raise a ConfigError for an error that names its key itself, else a RunError that says `where` it came up."""
    text = str(error)
    if text.startswith(tuple(f"{section}{sign}" for section in SECTIONS for sign in ".:")):
        raise ConfigError(f"config.{text}") from None
    raise RunError(f"{where}: its features cannot be scored: {text}") from None


def head_settings(settings: Settings, model: Mapping[str, Any], run: str) -> HeadSettings:
    """The sections, checked key by key. Raises ConfigError."""
    missing = [f"config.{name}" for name in ("head", "features", "training") if name not in settings]
    require(not missing, f"{', '.join(missing)} missing; start from configs/eval/linear_cached.py")
    head, features, training = (dict(settings[name]) for name in ("head", "features", "training"))
    name = head.pop("name", "")
    require(name in HEADS, f"config.head.name={name!r}: legal are {', '.join(HEADS)}")
    dtypes = ("param_dtype", "compute_dtype", "reduce_dtype")
    door.check_keys("head", head, HEADS[name], given=("rngs", "width", "num_classes", *dtypes))
    require(head["blocks"] <= model["depth"], f"config.head.blocks={head['blocks']}: {run} has {model['depth']} blocks")
    seeds = training.pop("seeds")
    require(len(seeds) > 0, "config.training.seeds is empty; name one or more")
    recipe = call(Recipe, "training", {key: tuple(x) if isinstance(x, list) else x for key, x in training.items()})
    call(check_tokens, "features", {"tokens": features["tokens"]}, model=model, blocks=head["blocks"])
    return HeadSettings(
        name, head, recipe, tuple(seeds), tuple(features["tokens"]), features["cache"], features["max_gb"]
    )


def cached_head(
    task: Task, model: Mapping[str, Any], backbone: Mapping[str, Any], geometry: Geometry, settings: Settings, run: str
) -> Scores:
    """A head trained on cached features of one backbone."""
    return cached_head_scores(task, model, backbone, geometry, head_settings(settings, model, run))


def label_efficiency(
    task: Task, model: Mapping[str, Any], backbone: Mapping[str, Any], geometry: Geometry, settings: Settings, run: str
) -> Scores:
    """The same head on parts of the labels."""
    wanted, draws = head_settings(settings, model, run), _draws(task, settings)
    head = CachedHead(task, model, backbone, geometry, wanted)
    seeds = settings["label_efficiency"]["seeds"]
    return label_efficiency_scores(task, head.fit, draws, seeds, settings["bootstrap"])


def label_efficiency_floor(task: Task, fit: str, settings: Settings) -> Scores:
    """Hand-made features on the same draws."""
    seeds = settings["label_efficiency"]["seeds"]
    return label_efficiency_scores(task, Floor(task, fit).fit, _draws(task, settings), seeds, settings["bootstrap"])


def _draws(task: Task, settings: Settings) -> list:
    require("label_efficiency" in settings, "config.label_efficiency missing; start from that file of configs/eval")
    section = settings["label_efficiency"]
    require(len(section["seeds"]) > 0, "config.label_efficiency.seeds is empty; name one or more")
    wanted = amounts(section["fractions"], section["shots"])
    return all_draws(task, wanted, section["seeds"], section["selection"])


def curves_of(columns: Mapping[str, Scores]) -> dict[str, list[dict[str, Any]]]:
    """Label efficiency by column, empty where it was not asked for."""
    return {name: scores.curve for name, scores in columns.items() if scores.curve is not None}


def curve_section(columns: Mapping[str, Scores], settings: Settings) -> list[tuple[str, str, str]]:
    """The report's section of the curves, and the lines for the terminal; nothing where there are no curves."""
    curves = curves_of(columns)
    if not curves:
        return []
    print("\n".join(table_lines(curves)))
    return [("labels", "Label efficiency", label_efficiency_section(curves, settings["label_efficiency"]["selection"]))]
