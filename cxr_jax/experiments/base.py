"""What every experiment shares: the `Experiment` itself, and model arguments read from a config.

In: a resolved config. Out: named arguments. Sections are checked key by key against the functions that take them, so
a key that nothing reads is refused with the legal ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.config import call, require
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.base import Objective


@dataclass(frozen=True)
class Experiment:
    """What a config means: the science (objective, optimiser) and what must be known of it later (meta)."""

    objective: Objective
    tx: optax.GradientTransformationExtraArgs
    schedules: dict[str, Callable]
    meta: dict[str, Any]


DTYPES = ("bfloat16", "float16", "float32", "float64")


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
