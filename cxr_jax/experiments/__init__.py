"""From config sections to the science: objective, optimiser, and what must be known of them later.

In: a resolved config. Out: an `Experiment`. One file per objective; the entry calls `build`.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from cxr_jax.config import call, require
from cxr_jax.experiments import mae, segmentation, self_distillation, supervised
from cxr_jax.experiments.base import Experiment
from cxr_jax.objectives.base import Objective

# The sections that each objective reads besides those of every training.
SECTIONS = {
    "self_distillation": ("model", "heads", "crops"),
    "mae": ("model", "decoder", "crop"),
    "supervised": ("head", "crop", "label_loss", "lora"),
    "segmentation": ("head", "crop"),
}
BUILDERS = {
    "self_distillation": self_distillation.build,
    "mae": mae.build,
    "supervised": supervised.build,
    "segmentation": segmentation.build,
}


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """The experiment that `config.objective.name` asks for.

    `saved` is what the newest checkpoint of this run says of itself; with it, the run it started from is not read.
    """
    name = config.objective.name
    require(name in BUILDERS, f"config.objective.name={name!r}: legal are {', '.join(BUILDERS)}")
    missing = [f"config.{section}" for section in SECTIONS[name] if section not in config]
    require(
        not missing,
        f"config.objective.name={name!r} needs {', '.join(missing)}, which this config file lacks; start from one of "
        "that objective",
    )
    experiment = BUILDERS[name](config, saved)
    # Shapes only: a model that cannot be built is told here, as a matter of the config.
    call(jax.eval_shape, "model", {}, fun=experiment.objective.init, key=jax.random.key(0))
    return experiment


def build_plain(config: ConfigDict) -> Objective:
    """The objective of `config` without anything that is computed twice to save memory: what its model needs."""
    plain = config.copy_and_resolve_references()
    if "model" in plain:
        plain.model.remat = "none"
    if "prototype_chunks" in plain.objective:
        plain.objective.prototype_chunks = 1
    if "remat" in plain.objective:
        plain.objective.remat = "none"
    return build(plain).objective
