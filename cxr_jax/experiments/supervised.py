"""Supervised heads on a frozen backbone, from a config.

In: a resolved config whose `init_from` names a pretraining run. Out: an `Experiment`.
"""

from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cxr_jax import checkpoint, init_from, optim
from cxr_jax import config as door
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe
from cxr_jax.experiments.base import Experiment, named_dtypes
from cxr_jax.objectives.supervised import HEADS, Supervised
from cxr_jax.schedules import warmup_cosine_schedule

NETWORKS = ("teacher", "student", "random")


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """Heads on the frozen backbone of the run `config.init_from`, whose architecture comes with its checkpoint.

    `saved` is what this run's own newest checkpoint says; with it, the pretraining need not exist any more.
    """
    require(bool(config.init_from), "config.init_from is empty; name the run directory of a pretraining")
    require(
        config.init_network in NETWORKS, f"config.init_network={config.init_network!r}: legal are {', '.join(NETWORKS)}"
    )
    require(len(config.data.targets) > 0, "config.data.targets is empty; name findings, or attributes such as sex:F")
    pretrained, dtypes = saved or checkpoint.read_meta(config.init_from), named_dtypes(config)
    model = pretrained["model"] | dtypes | {"drop_path": 0.0, "remat": "none"}
    head = config.head.to_dict()
    name = head.pop("name")
    require(name in HEADS, f"config.head.name={name!r}: legal are {', '.join(HEADS)}")
    door.check_keys("head", head, HEADS[name], given=("rngs", "width", "num_classes", *dtypes))
    require(
        head["blocks"] <= model["depth"],
        f"config.head.blocks={head['blocks']}: {config.init_from} has {model['depth']} blocks",
    )
    head |= dtypes | {"width": model["width"], "num_classes": len(config.data.targets)}
    door.check_keys("crop", config.crop, CropRecipe, given=("size",))
    crop = call(CropRecipe, "crop", config.crop.to_dict(), size=config.geometry.image_size or model["image_size"])
    rates = tuple(config.optim.learning_rates)
    objective = call(Supervised, "head", {}, model=model, head_name=name, head=head, learning_rates=rates, crop=crop)
    cosine = warmup_cosine_schedule(1.0, 0.0, round(config.optim.warmup_frac * config.total_steps), config.total_steps)
    tx = optim.adamw(
        learning_rate=cosine,
        weight_decay=lambda step: config.optim.weight_decay,
        clip_norm=None,
        lr_tables=(((r"/queries$", 0.0), (r".", np.asarray(rates))),),
        wd_table=((r".", 1.0),),
    )
    meta = {
        "model": model,
        "objective": "supervised",
        "head": {"name": name, **head},
        "learning_rates": list(rates),
        "targets": list(config.data.targets),
        "pretrained": saved["pretrained"]
        if saved
        else {
            "run": str(config.init_from),
            "step": pretrained["step"],
            "network": checkpoint.network_of(pretrained, config.init_network),
            "fingerprint": pretrained["fingerprint"],
        },
    }
    start = None
    if config.init_network != "random":
        start = partial(init_from.frozen_backbone, run=config.init_from, network=config.init_network)
    return Experiment(objective, tx, {"learning_rate": lambda step: max(rates) * cosine(step)}, meta, start)
