"""Masked autoencoding from a config, with the optimiser of MAE's authors.

In: a resolved config. Out: an `Experiment`. Crops have the model's own size, `model.image_size`.
"""

from typing import Any

from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax import optim
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe
from cxr_jax.experiments.base import (
    Experiment,
    make_start,
    make_timeline,
    model_kwargs,
    named_dtypes,
    pretraining_meta,
)
from cxr_jax.models.mae_decoder import MAEDecoder
from cxr_jax.objectives.mae import MaskedAutoencoder
from cxr_jax.schedules import Timeline

REFERENCE_BATCH = 256


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """A masked autoencoder with AdamW at a rate linear in the batch; `saved` is what this run's own checkpoint says."""
    model, dtypes = model_kwargs(config), named_dtypes(config)
    given = dtypes | {"encoder_width": model["width"], "patch_size": model["patch_size"]}
    given |= {name: model[name] for name in ("scan", "remat", "norm_epsilon")}
    door.check_keys("decoder", config.decoder, MAEDecoder, given=("rngs", *given))
    door.check_keys("crop", config.crop, CropRecipe, given=("size",))
    crop = call(CropRecipe, "crop", config.crop.to_dict(), size=model["image_size"])
    options = config.objective.to_dict()
    del options["name"]
    parts = {"model": model, "decoder": config.decoder.to_dict() | given, "crop": crop}
    door.check_keys("objective", options, MaskedAutoencoder, given=parts)
    objective = call(MaskedAutoencoder, "objective", options, **parts)
    require(len(config.optim.betas) == 2, f"config.optim.betas={tuple(config.optim.betas)} must be a pair of numbers")
    timeline = make_timeline(config, saved)
    given = {"timeline": timeline, "batch_size": config.batch_size}
    door.check_keys("optim", config.optim, mae_optimiser, given=given)
    tx, schedules = call(mae_optimiser, "optim", config.optim.to_dict(), **given)
    return Experiment(objective, tx, schedules, pretraining_meta("mae", model, timeline), make_start(config, model))


def mae_optimiser(
    *,
    timeline: Timeline,
    batch_size: int,
    base_learning_rate: float,
    final_learning_rate: float,
    warmup_frac: float,
    weight_decay: float,
    clip_norm: float,
    betas: tuple[float, float],
    first_moment_dtype: str,
):
    """MAE's AdamW: `base * batch / 256`, warm-up and cosine, constant decay of all but biases and norms.

    `clip_norm` 0 does not clip. The mask and CLS tokens are decayed, as released.
    """
    schedules = {
        "learning_rate": timeline.learning_rate(
            "cosine",
            base_learning_rate * batch_size / REFERENCE_BATCH,
            final_learning_rate,
            warmup_frac=warmup_frac,
        ),
        "weight_decay": lambda step: weight_decay,
    }
    options = {"betas": tuple(betas), "first_moment_dtype": first_moment_dtype}
    return optim.adamw(**schedules, **options, clip_norm=clip_norm or None), schedules
