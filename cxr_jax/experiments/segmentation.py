"""Segmentation heads on a frozen backbone, from a config.

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
from cxr_jax.experiments.supervised import NETWORKS
from cxr_jax.objectives.segmentation import SEGMENTERS, Segmentation
from cxr_jax.schedules import warmup_cosine_schedule

# What a grid of heads for findings has and masks do not.
OF_CLASSES = ("seed", "backbone", "lora", "group_size", "mixup_alpha", "label_loss", "label_counts")


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """Heads on the frozen backbone of the run `config.init_from`, whose architecture comes with its checkpoint.

    `saved` is what this run's own newest checkpoint says; with it, the pretraining need not exist any more.
    """
    require(bool(config.init_from), "config.init_from is empty; name the run directory of a pretraining")
    network = config.init_network
    require(network in NETWORKS, f"config.init_network={network!r}: legal are {', '.join(NETWORKS)}")
    require(
        not config.data.targets,
        f"config.data.targets={tuple(config.data.targets)}: segmentation learns the masks of the records; legal is ()",
    )
    pretrained, dtypes = saved or checkpoint.read_meta(config.init_from), named_dtypes(config)
    model = pretrained["model"] | dtypes | {"drop_path": 0.0, "remat": "none"}
    head = config.head.to_dict()
    name = head.pop("name")
    require(name in SEGMENTERS, f"config.head.name={name!r}: legal are {', '.join(SEGMENTERS)}")
    given = {"width": model["width"], "patch_size": model["patch_size"], "num_classes": 1}
    door.check_keys("head", head, SEGMENTERS[name], given=("rngs", *given, *dtypes))
    require(
        1 <= head["blocks"] <= model["depth"],
        f"config.head.blocks={head['blocks']}: {config.init_from} has {model['depth']} blocks",
    )
    door.check_keys("crop", config.crop, CropRecipe, given=("size",))
    side = config.geometry.image_size or model["image_size"]
    require(
        side % model["patch_size"] == 0,
        f"config.geometry.image_size={side}: must be a multiple of {model['patch_size']}, the patch size",
    )
    crop = call(CropRecipe, "crop", config.crop.to_dict(), size=side)
    rates = tuple(config.optim.learning_rates)
    parts = {"model": model, "head_name": name, "head": head | dtypes | given, "learning_rates": rates, "crop": crop}
    weights = {key: value for key, value in config.objective.items() if key != "name"}
    door.check_keys("objective", weights, Segmentation, given=(*parts, *OF_CLASSES))
    objective = call(Segmentation, "objective", weights, **parts)
    cosine = warmup_cosine_schedule(1.0, 0.0, round(config.optim.warmup_frac * config.total_steps), config.total_steps)
    tx = optim.adamw(
        learning_rate=cosine,
        weight_decay=lambda step: config.optim.weight_decay,
        clip_norm=None,
        lr_tables=(((r".", np.asarray(rates)),),),
        wd_table=((r"/(bias|scale)$", 0.0), (r".", 1.0)),
    )
    source = {"run": str(config.init_from), "step": pretrained["step"], "fingerprint": pretrained["fingerprint"]}
    meta = {
        "model": model,
        "objective": "segmentation",
        "head": {"name": name, **parts["head"]},
        "learning_rates": list(rates),
        "targets": [],
        "pretrained": saved["pretrained"]
        if saved
        else source | {"network": checkpoint.network_of(pretrained, network)},
    }
    start = (
        None
        if network == "random"
        else partial(init_from.pretrained_backbone, run=config.init_from, network=network, item="targets")
    )
    return Experiment(objective, tx, {"learning_rate": lambda step: max(rates) * cosine(step)}, meta, start)
