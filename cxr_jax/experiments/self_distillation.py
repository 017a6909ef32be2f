"""Self-distillation from a config: DINO + iBOT + KoLeo with DINOv2's optimiser.

In: a resolved config. Out: an `Experiment`. Schedules lie on the run's `Timeline`.
"""

from typing import Any

from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax import optim
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe, multi_crop_recipes
from cxr_jax.experiments.base import (
    Experiment,
    make_start,
    make_timeline,
    model_kwargs,
    named_dtypes,
    pretraining_meta,
)
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.schedules import Timeline, sqrt_scaled

PAIRS = {
    "objective": ("mask_ratio", "teacher_temperature", "ema"),
    "crops": ("global_scale", "local_scale"),
    "optim": ("betas", "weight_decay"),
}


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """DINO + iBOT + KoLeo with DINOv2's optimiser; `saved` is what this run's own newest checkpoint says, if any."""
    for section, names in PAIRS.items():
        for name in names:
            value = config[section][name]
            require(len(value) == 2, f"config.{section}.{name}={tuple(value)} must be a pair of numbers")
    require(config.crops.num_local >= 1, f"config.crops.num_local={config.crops.num_local} must be at least 1")
    model, dtypes = model_kwargs(config), named_dtypes(config)
    check_sides(config, model)
    timeline = make_timeline(config, saved)
    door.check_keys("crops", config.crops, multi_crop_recipes, CropRecipe, given=("blur_prob", "size"))
    recipes = call(multi_crop_recipes, "crops", config.crops.to_dict())
    heads = {}
    for name, head in config.heads.items():
        door.check_keys(f"heads.{name}", head, ProjectionHead, given=("rngs", "width", *dtypes))
        heads[name] = head.to_dict() | dtypes | {"width": model["width"]}
    options = config.objective.to_dict()
    del options["name"]
    require(
        not config.objective.shared_heads or config.heads.ibot_head == config.heads.dino_head,
        "config.objective.shared_heads=True: iBOT uses config.heads.dino_head; give config.heads.ibot_head the same "
        "values, or set shared_heads=False",
    )
    low, high = options.pop("teacher_temperature")
    require(min(low, high) > 0, f"config.objective.teacher_temperature=({low}, {high}) must be above 0")
    temperature = timeline.linear(low, high, options.pop("teacher_temperature_warmup_frac"))
    momenta = tuple(options.pop("ema"))
    require(all(0 <= m <= 1 for m in momenta), f"config.objective.ema={momenta}: a momentum lies from 0 to 1")
    ema = timeline.cosine(*momenta)
    given = {"model": model, "heads": heads, "crops": recipes, "teacher_temperature": temperature, "ema": ema}
    door.check_keys("objective", options, SelfDistillation, given=given)
    objective = call(SelfDistillation, "objective", options, **given)
    given = {"timeline": timeline, "batch_size": config.batch_size, "depth": model["depth"]}
    door.check_keys("optim", config.optim, dino_optimiser, given=given)
    tx, schedules = call(dino_optimiser, "optim", config.optim.to_dict(), **given)
    meta = pretraining_meta("self_distillation", model, timeline)
    return Experiment(objective, tx, schedules, meta, make_start(config, model))


def check_sides(config: ConfigDict, model: dict[str, Any]) -> None:
    """Refuse sides in px that the patch does not divide, and global crops of another side than the model's."""
    patch = model["patch_size"]
    sides = {"model.image_size": model["image_size"]}
    sides |= {f"crops.{name}": config.crops[name] for name in ("global_size", "local_size")}
    for key, side in sides.items():
        near = max(patch, round(side / patch) * patch)
        require(
            side > 0 and side % patch == 0,
            f"config.{key}={side} px must be a multiple of the patch, {patch} px (model.patch_size={patch}); "
            f"the nearest is {near}",
        )
    require(
        config.crops.global_size == model["image_size"],
        f"config.crops.global_size={config.crops.global_size} px must equal config.model.image_size="
        f"{model['image_size']} px, for which position embeddings are made and the network is evaluated",
    )


def dino_optimiser(
    *,
    timeline: Timeline,
    batch_size: int,
    depth: int,
    base_learning_rate: float,
    final_learning_rate: float,
    schedule: str,
    warmup_frac: float,
    cooldown_frac: float,
    weight_decay: tuple[float, float],
    patch_embed_lr_mult: float,
    layer_decay: float,
    frozen_prototypes_frac: float,
    frozen_backbone_frac: float,
    clip_norm: float,
    betas: tuple[float, float],
    first_moment_dtype: str,
):
    """DINOv2's AdamW: sqrt-scaled rate, warm-up, cosine or constant with cool-down, tables by path.

    A frozen part has learning rate 0 for the first steps; its moments move. `cooldown_frac` is read by the schedule
    `constant_cooldown` alone.
    """
    peak = sqrt_scaled(base_learning_rate, batch_size)
    options = {"warmup_frac": warmup_frac, "cooldown_frac": cooldown_frac}
    schedules = {
        "learning_rate": timeline.learning_rate(schedule, peak, final_learning_rate, **options),
        "weight_decay": timeline.cosine(*weight_decay),
    }
    tx = optim.adamw(
        **schedules,
        betas=tuple(betas),
        first_moment_dtype=first_moment_dtype,
        clip_norm=clip_norm,
        lr_tables=(
            ((r"/patch_embed/", patch_embed_lr_mult), (r".", 1.0)),
            optim.layer_decay_table(layer_decay, depth),
        ),
        frozen_steps=(
            (r"/prototypes/", timeline.first_steps(frozen_prototypes_frac)),
            (r"^/backbone/", timeline.first_steps(frozen_backbone_frac)),
        ),
    )
    return tx, schedules
