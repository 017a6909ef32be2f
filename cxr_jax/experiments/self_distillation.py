"""Self-distillation from a config: DINO + iBOT + KoLeo with DINOv2's optimiser.

In: a resolved config. Out: an `Experiment`. Fractions of the schedules are of `total_steps`.
"""

from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax import optim
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe, multi_crop_recipes
from cxr_jax.experiments.base import Experiment, model_kwargs, named_dtypes
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.objectives.self_distillation import SelfDistillation

PAIRS = {
    "objective": ("mask_ratio", "teacher_temperature", "ema"),
    "crops": ("global_scale", "local_scale"),
    "optim": ("betas", "weight_decay"),
}


def build(config: ConfigDict) -> Experiment:
    """DINO + iBOT + KoLeo with DINOv2's optimiser; fractions are of `total_steps`."""
    steps, batch = config.total_steps, config.batch_size
    for section, names in PAIRS.items():
        for name in names:
            value = config[section][name]
            require(len(value) == 2, f"config.{section}.{name}={tuple(value)} must be a pair of numbers")
    require(config.crops.num_local >= 1, f"config.crops.num_local={config.crops.num_local} must be at least 1")
    model, dtypes = model_kwargs(config), named_dtypes(config)
    door.check_keys("crops", config.crops, multi_crop_recipes, CropRecipe, given=("blur_prob", "size"))
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
