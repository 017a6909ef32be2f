"""Entry: pretraining and fine-tuning.

    python -m cxr_jax.train --config=configs/smoke.py --workdir=DIR --config.data.path=DATASET

In: a config. Out: a run directory with run.json, metrics.jsonl, checkpoints/ and examples/. The same command continues
a run that was stopped. This file alone turns config sections into objects; everything else takes named arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from cxr_jax import checkpoint, loop, optim
from cxr_jax import config as door
from cxr_jax.config import call, require
from cxr_jax.data.augment import CropRecipe, multi_crop_recipes
from cxr_jax.data.geometry import MEAN, STD
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import open_split
from cxr_jax.metrics import Metrics, write_contact_sheet
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.base import Objective
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.objectives.supervised import HEADS, Supervised
from cxr_jax.sharding import batch_sharding, data_shards, make_layout, make_mesh, replicated
from cxr_jax.state import TrainState, abstract_state, init_state, make_step


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


COUNTS = ("batch_size", "total_steps", "checkpoint.every_steps", "checkpoint.keep", "log.every_steps")
COUNTS += ("data.threads", "data.prefetch")


def check_counts(config: ConfigDict) -> None:
    """Refuse zero and negative numbers where something is counted."""
    flat = door.flatten(config)
    for key in COUNTS:
        require(flat[key] >= 1, f"config.{key}={flat[key]} must be at least 1")


# What may change between starting a run and continuing it, because no result depends on it.
FREE_KEYS = ("log.", "checkpoint.", "mesh.", "data.path", "data.threads", "data.prefetch")


def check_same_config(saved: dict[str, Any], config: ConfigDict, workdir: Path) -> None:
    """Refuse to continue a run under another config; names what differs."""
    changed = door.diff(door.flatten(saved), door.flatten(config.to_dict()))
    changed = {key: values for key, values in changed.items() if not key.startswith(FREE_KEYS)}
    text = "; ".join(f"config.{key} was {old!r} and is {new!r}" for key, (old, new) in list(changed.items())[:4])
    require(not changed, f"{workdir} holds a run of another config: {text}; take another --workdir or the same values")


def start_from(config: ConfigDict, state: TrainState) -> TrainState:
    """A fresh state with the networks of the run `config.init_from`, which must be of the same architecture.

    Pretraining takes student and teacher with their heads; fine-tuning the backbone of `config.init_network`, or none
    for `random`.
    """
    run, network = config.init_from, config.get("init_network")
    if network == "random":
        return state
    if network is None:
        wanted = {"params": state.params, "targets": state.targets}
        saved = {item: checkpoint.read_item(run, item) for item in wanted}
    else:
        wanted = {"targets": state.targets}
        saved = checkpoint.read_item(run, "targets" if network == "teacher" else "params")
        saved = {"targets": {"backbone": saved["backbone"]}}
    checkpoint.check_same_tree(checkpoint.shapes_by_path(saved), wanted, run)

    def place(old, new):
        # Every process reads the file and places its own shards; device_put would compare whole arrays between them.
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index].astype(old.dtype))

    return state.replace(**jax.tree.map(place, wanted, saved))


def main() -> None:
    """Config -> mesh, data, objective, state -> loop."""
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    door.start_distributed()
    first_process = jax.process_index() == 0
    if "float64" in config.dtypes.values():
        jax.config.update("jax_enable_x64", True)
    mesh = call(make_mesh, "mesh", dict(config.mesh))
    shards, batch_size = data_shards(mesh), config.batch_size
    check_counts(config)
    require(
        batch_size % shards == 0,
        f"config.batch_size={batch_size} must be a multiple of {shards}, the devices that share it",
    )
    experiment = build(config)
    objective, tx = experiment.objective, experiment.tx
    group = getattr(objective, "group_size", 1)
    require(
        group >= 1 and batch_size // shards % group == 0,
        f"config.objective.group_size={group} must divide the {batch_size // shards} images of each device",
    )
    require(bool(config.data.path), "config.data.path is empty; name a dataset folder made by data_prep.build")
    where = {field: value for field, value in config.data.where.items() if value}
    split = open_split(config.data.path, config.data.split, where=where, targets=config.data.targets)

    key = jax.random.key(config.seed)
    init_key, step_key = jax.random.split(key)
    if first_process:
        door.lock_workdir(workdir)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
    meta = {
        **experiment.meta,
        "config": config.to_dict(),
        "geometry": {
            "fit": config.geometry.fit,
            "image_size": config.geometry.image_size or experiment.meta["model"]["image_size"],
            "mean": MEAN,
            "std": STD,
        },
        "fingerprint": split.manifest.fingerprint,
        "vocabulary": list(split.manifest.vocabulary),
        "data_skip": 0,
    }
    if checkpoints.latest_step() is None:
        state = init_state(objective, tx, mesh, init_key)
        if config.init_from:
            state = start_from(config, state)
    else:
        saved = checkpoints.meta()
        check_same_config(saved["config"], config, workdir)
        require(
            saved["fingerprint"] == meta["fingerprint"],
            f"{workdir} was trained on another dataset than {config.data.path} (fingerprints differ)",
        )
        state, saved = checkpoints.restore(abstract_state(objective, tx, mesh))
        meta["data_skip"] = saved["data_skip"]
    first = int(state.step)
    if first_process:
        print(
            f"{workdir}: step {first} of {config.total_steps}, {len(split)} images, "
            f"batch {batch_size} on {mesh.size} devices"
        )
    if first >= config.total_steps:
        return
    if first_process:
        door.write_run_json(workdir, config, {"resumed_from_step": first, "fingerprint": meta["fingerprint"]})

    batches = partial(
        train_batches,
        split,
        batch_size=batch_size,
        total_steps=config.total_steps,
        sharding=batch_sharding(mesh),
        seed=config.seed,
        data_skip=meta["data_skip"],
        targets=config.data.targets,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    if first == 0:
        # Every process takes part in the computation; its result is on every device.
        pictures = jax.jit(objective.pictures, out_shardings=replicated(mesh))
        rows = jax.device_get(pictures(next(batches()), jax.random.fold_in(step_key, 0)))
        if first_process:
            write_contact_sheet(workdir / "examples" / "first_batch.png", rows)

    layout = make_layout(mesh, config.dtypes.compute)
    metrics = Metrics(
        workdir,
        start_step=first,
        total_steps=config.total_steps,
        tensorboard=config.log.tensorboard,
        writes=first_process,
    )
    try:
        loop.run(
            state,
            train_step=make_step(objective, tx, mesh, layout, experiment.schedules),
            batches=batches(start_step=first),
            key=step_key,
            total_steps=config.total_steps,
            batch_size=batch_size,
            save_every_steps=config.checkpoint.every_steps,
            log_every_steps=config.log.every_steps,
            checkpoints=checkpoints,
            meta=meta,
            metrics=metrics,
        )
    finally:
        metrics.close()
        checkpoints.close()


if __name__ == "__main__":
    door.define_flags()
    door.define_process_flags()
    door.run_entry(main)
