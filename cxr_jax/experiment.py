"""From config sections to the science: objective, optimiser, and what must be known of them later.

In: a resolved config. Out: an `Experiment`. Sections are checked key by key against the functions that take them, so
a key that nothing reads is refused with the legal ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from cxr_jax import checkpoint, optim
from cxr_jax import config as door
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe, multi_crop_recipes
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.base import Objective
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.objectives.supervised import HEADS, Supervised


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


PAIRS = {
    "objective": ("mask_ratio", "teacher_temperature", "ema"),
    "crops": ("global_scale", "local_scale"),
    "optim": ("betas", "weight_decay"),
}


def build_self_distillation(config: ConfigDict) -> Experiment:
    """DINO + iBOT + KoLeo with DINOv2's optimiser; fractions are of `total_steps`."""
    steps, batch = config.total_steps, config.batch_size
    for section, names in PAIRS.items():
        for name in names:
            value = config[section][name]
            require(len(value) == 2, f"config.{section}.{name}={tuple(value)} must be a pair of numbers")
    require(config.crops.num_local >= 1, f"config.crops.num_local={config.crops.num_local} must be at least 1")
    model, dtypes = model_kwargs(config), named_dtypes(config)
    door.check_keys("crops", config.crops, multi_crop_recipes, CropRecipe, given=("blur_prob", "solarise_prob", "size"))
    recipes = call(multi_crop_recipes, "crops", config.crops.to_dict())
    heads = {}
    for name, head in config.heads.items():
        door.check_keys(f"heads.{name}", head, ProjectionHead, given=("rngs", "width", *dtypes))
        heads[name] = head.to_dict() | dtypes | {"width": model["width"]}
    options = config.objective.to_dict()
    del options["name"]
    low, high = options.pop("teacher_temperature")
    warmup = round(options.pop("teacher_temperature_warmup_frac") * steps)
    temperature, ema = optim.linear_schedule(low, high, warmup), optim.cosine_schedule(*options.pop("ema"), steps)
    given = {"model": model, "heads": heads, "crops": recipes, "teacher_temperature": temperature, "ema": ema}
    door.check_keys("objective", options, SelfDistillation, given=given)
    objective = call(SelfDistillation, "objective", options, **given)
    door.check_keys("optim", config.optim, dino_optimiser, given=("total_steps", "batch_size", "depth"))
    tx, schedules = call(
        dino_optimiser, "optim", config.optim.to_dict(), total_steps=steps, batch_size=batch, depth=model["depth"]
    )
    return Experiment(objective, tx, schedules, {"model": model, "objective": "self_distillation"})


def dino_optimiser(
    *,
    total_steps: int,
    batch_size: int,
    depth: int,
    base_learning_rate: float,
    final_learning_rate: float,
    warmup_frac: float,
    weight_decay: tuple[float, float],
    patch_embed_lr_mult: float,
    layer_decay: float,
    frozen_prototypes_frac: float,
    clip_norm: float,
    betas: tuple[float, float],
):
    """DINOv2's AdamW: sqrt-scaled rate, warm-up and cosines, tables by path."""
    peak = optim.sqrt_scaled(base_learning_rate, batch_size)
    schedules = {
        "learning_rate": optim.warmup_cosine_schedule(
            peak, final_learning_rate, round(warmup_frac * total_steps), total_steps
        ),
        "weight_decay": optim.cosine_schedule(*weight_decay, total_steps),
    }
    tx = optim.adamw(
        **schedules,
        betas=tuple(betas),
        clip_norm=clip_norm,
        lr_tables=(
            ((r"/patch_embed/", patch_embed_lr_mult), (r".", 1.0)),
            optim.layer_decay_table(layer_decay, depth),
        ),
        frozen_steps=((r"/prototypes/", round(frozen_prototypes_frac * total_steps)),),
    )
    return tx, schedules


def build_supervised(config: ConfigDict) -> Experiment:
    """Heads on the frozen backbone of the run `config.init_from`, whose architecture comes with its checkpoint."""
    require(bool(config.init_from), "config.init_from is empty; name the run directory of a pretraining")
    require(
        config.init_network in NETWORKS, f"config.init_network={config.init_network!r}: legal are {', '.join(NETWORKS)}"
    )
    require(len(config.data.targets) > 0, "config.data.targets is empty; name findings, or attributes such as sex:F")
    pretrained, dtypes = checkpoint.read_meta(config.init_from), named_dtypes(config)
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
    crop = CropRecipe(size=config.geometry.image_size or model["image_size"], **config.crop.to_dict())
    rates = tuple(config.optim.learning_rates)
    objective = call(Supervised, "head", {}, model=model, head_name=name, head=head, learning_rates=rates, crop=crop)
    cosine = optim.warmup_cosine_schedule(
        1.0, 0.0, round(config.optim.warmup_frac * config.total_steps), config.total_steps
    )
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
        "pretrained": {
            "run": str(config.init_from),
            "step": pretrained["step"],
            "network": config.init_network,
            "fingerprint": pretrained["fingerprint"],
        },
    }
    return Experiment(objective, tx, {"learning_rate": lambda step: max(rates) * cosine(step)}, meta)


NETWORKS = ("teacher", "student", "random")
BUILDERS = {"self_distillation": build_self_distillation, "supervised": build_supervised}


def build(config: ConfigDict) -> Experiment:
    """The experiment that `config.objective.name` asks for."""
    name = config.objective.name
    require(name in BUILDERS, f"config.objective.name={name!r}: legal are {', '.join(BUILDERS)}")
    experiment = BUILDERS[name](config)
    # Shapes only: a model that cannot be built is told here, as a matter of the config.
    call(jax.eval_shape, "model", {}, fun=experiment.objective.init, key=jax.random.key(0))
    return experiment
