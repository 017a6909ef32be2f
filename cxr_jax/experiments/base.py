"""What every experiment shares: the `Experiment` itself, and model arguments read from a config.

In: a resolved config. Out: named arguments. Sections are checked key by key against the functions that take them, so
a key that nothing reads is refused with the legal ones.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import optax
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax import init_from
from cxr_jax.config import call, require
from cxr_jax.init_from import Start
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.base import Objective
from cxr_jax.schedules import Timeline
from cxr_jax.state import TrainState


@dataclass(frozen=True)
class Experiment:
    """What a config means: the science (objective, optimiser) and what must be known of it later (meta).

    `start` puts the arrays of `config.init_from` into a fresh state; None when the run starts from nothing.
    """

    objective: Objective
    tx: optax.GradientTransformationExtraArgs
    schedules: dict[str, Callable]
    meta: dict[str, Any]
    start: Callable[[TrainState], Start] | None


DTYPES = ("bfloat16", "float32", "float64")  # float16 overflows at 65,504 and would need its loss scaled


def named_dtypes(config: ConfigDict) -> dict[str, str]:
    """`{"param_dtype": ...}` from `config.dtypes`."""
    for name, value in config.dtypes.items():
        require(value in DTYPES, f"config.dtypes.{name}={value!r}: legal are {', '.join(DTYPES)}")
    return {f"{name}_dtype": value for name, value in config.dtypes.items()}


def model_kwargs(config: ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `ViT`: the variant's sizes, overridden by what else `config.model` names."""
    model, dtypes = config.model.to_dict(), named_dtypes(config)
    sizes = call(variant, "model", {"name": model.pop("variant")})
    door.check_keys("model", model, ViT, given=("rngs", *dtypes))
    return sizes | model | dtypes


SCHEDULES_FROM = ("restart", "continue")


def one_of(config: ConfigDict, key: str, legal: tuple[str, ...]) -> str:
    """The value of a top-level key. Raises ConfigError unless it is there and legal."""
    require(key in config, f"config.{key} is missing; legal are {', '.join(legal)}")
    require(config[key] in legal, f"config.{key}={config[key]!r}: legal are {', '.join(legal)}")
    return config[key]


def make_timeline(config: ConfigDict, saved: dict[str, Any] | None) -> Timeline:
    """Where this run's steps lie on its schedules.

    `saved` is what the newest checkpoint of this very run says, None when there is none. It holds the timeline, so a
    run that goes on needs its source no more.
    """
    fresh = Timeline.fresh(config.total_steps)
    if one_of(config, "schedules_from", SCHEDULES_FROM) == "restart" or not config.init_from:
        return fresh
    if saved:
        return Timeline(**saved["timeline"])
    require(
        not init_from.is_public(config.init_from),
        f"config.schedules_from='continue': {config.init_from} holds weights and no schedules; legal is restart",
    )
    meta = init_from.read_source_meta(config.init_from, config.init_step)
    require("timeline" in meta, f"config.schedules_from='continue': {config.init_from} keeps no schedules")
    # With everything, the step counter goes on and has the source's steps in it.
    step = 0 if config.init_parts == "everything" else meta["step"]
    return Timeline(**meta["timeline"]).after(step, config.total_steps)


def make_start(config: ConfigDict, model: dict[str, Any]) -> Callable[[TrainState], Start] | None:
    """How a pretraining starts from `config.init_from`, by the keys `init_network`, `init_parts` and `init_step`."""
    network = one_of(config, "init_network", init_from.NETWORKS)
    parts = one_of(config, "init_parts", init_from.PARTS)
    if not config.init_from:
        for key, idle in (("init_step", -1), ("init_parts", "networks"), ("schedules_from", "restart")):
            require(config[key] == idle, f"config.{key}={config[key]!r} needs config.init_from, which is empty")
        return None
    return partial(
        init_from.start_from,
        source=config.init_from,
        network=network,
        parts=parts,
        step=config.init_step,
        model=model,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
    )


def pretraining_meta(name: str, model: dict[str, Any], timeline: Timeline) -> dict[str, Any]:
    """What a checkpoint says of every pretraining, whatever its objective.

    How attention was computed is no part of the model: who opens the checkpoint may have another device.
    """
    return {"model": model | {"attention": "plain"}, "objective": name, "timeline": asdict(timeline)}
