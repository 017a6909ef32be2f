"""Supervised heads on a pretrained backbone, from a config.

In: a resolved config whose `init_from` names a pretraining run. Out: an `Experiment`.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cxr_jax import checkpoint, init_from, optim
from cxr_jax import config as door
from cxr_jax.config import ConfigError, call, require
from cxr_jax.data.augment import CropRecipe
from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split
from cxr_jax.experiments.base import Experiment, named_dtypes
from cxr_jax.heads.kinds import HEADS
from cxr_jax.models.vit import Features
from cxr_jax.objectives.label_losses import LabelLoss
from cxr_jax.objectives.supervised import Supervised
from cxr_jax.schedules import warmup_cosine_schedule

NETWORKS = ("teacher", "student", "random")
RESULTS = "results.json"  # of an evaluation


def build(config: ConfigDict, saved: dict[str, Any] | None = None) -> Experiment:
    """Heads on the backbone of the run `config.init_from`, whose architecture comes with its checkpoint.

    `saved` is what this run's own newest checkpoint says; with it, the pretraining need not exist any more.
    """
    require(bool(config.init_from), "config.init_from is empty; name the run directory of a pretraining")
    require(
        config.init_network in NETWORKS, f"config.init_network={config.init_network!r}: legal are {', '.join(NETWORKS)}"
    )
    require(len(config.data.targets) > 0, "config.data.targets is empty; name findings, or attributes such as sex:F")
    pretrained, dtypes = saved or checkpoint.read_meta(config.init_from), named_dtypes(config)
    how = config.objective.to_dict()
    del how["name"]
    model = pretrained["model"] | dtypes | {name: how.pop(name) for name in ("drop_path", "remat")}
    head = head_arguments(config, pretrained["model"])
    door.check_keys("crop", config.crop, CropRecipe, given=("size",))
    crop = call(CropRecipe, "crop", config.crop.to_dict(), size=config.geometry.image_size or model["image_size"])
    rates = chosen_rates(config, saved)
    given = {
        "model": model,
        "head_name": config.head.name,
        "head": head,
        "learning_rates": rates,
        "crop": crop,
        "lora": config.lora.to_dict(),
        "label_loss": make_label_loss(config),
        "label_counts": tuple(map(tuple, (saved or {}).get("label_counts", ()))),
    }
    door.check_keys("objective", how, Supervised, given=(*given, "seed"))
    objective = call(Supervised, "objective", how, **given)
    check_head(objective)
    require(
        not objective.mixup_alpha or config.batch_size % 2 == 0,
        f"config.batch_size={config.batch_size}: objective.mixup_alpha mixes pairs of images; take an even number",
    )
    tx, schedules = head_optimiser(config, rates, objective.backbone, model["depth"])
    mode = {"mode": objective.backbone} | (objective.lora if objective.backbone == "lora" else {})
    meta = {
        "model": model,
        "objective": "supervised",
        "head": {"name": config.head.name, **head},
        "backbone": mode,
        "learning_rates": list(rates),
        "targets": list(config.data.targets),
        "label_counts": [list(pair) for pair in objective.label_counts],
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
        item = "params" if objective.backbone == "full" else "targets"
        start = partial(init_from.pretrained_backbone, run=config.init_from, network=config.init_network, item=item)
    return Experiment(objective, tx, schedules, meta, start)


def head_arguments(config: ConfigDict, model: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the head that `config.head` names. Raises ConfigError for keys and blocks that are none."""
    head, dtypes = config.head.to_dict(), named_dtypes(config)
    name = head.pop("name")
    require(name in HEADS, f"config.head.name={name!r}: legal are {', '.join(HEADS)}")
    door.check_keys("head", head, HEADS[name], given=("rngs", "width", "num_classes", *dtypes))
    require(
        1 <= head["blocks"] <= model["depth"],
        f"config.head.blocks={head['blocks']}: {config.init_from} has {model['depth']} blocks",
    )
    return head | dtypes | {"width": model["width"], "num_classes": len(config.data.targets)}


def check_head(objective: Supervised) -> None:
    """Refuse a head that the backbone's tokens do not fit; computes shapes alone."""
    model, size = objective.model, objective.crop.size
    grid = size // model["patch_size"]
    require(
        grid * model["patch_size"] == size,
        f"config.geometry.image_size={size} px must be a multiple of the patch, {model['patch_size']} px",
    )
    counts = ((), (model.get("num_registers", 4),), (grid**2,))
    shapes = ((objective.head["blocks"], 1, *count, model["width"]) for count in counts)
    features = Features(*(jax.ShapeDtypeStruct(shape, model["compute_dtype"]) for shape in shapes))
    params = call(jax.eval_shape, "head", {}, fun=objective.init, key=jax.random.key(0))
    call(jax.eval_shape, "head", {}, fun=objective.logits, params=params, features=features)


def make_label_loss(config: ConfigDict) -> LabelLoss:
    """The loss that `config.label_loss` names; `balance_from_frac` is a share of the run."""
    options = config.label_loss.to_dict()
    first = round(options.pop("balance_from_frac") * config.total_steps)
    door.check_keys("label_loss", options, LabelLoss, given=("balance_from_step",))
    return call(LabelLoss, "label_loss", options | {"terms": tuple(options["terms"])}, balance_from_step=first)


def chosen_rates(config: ConfigDict, saved: dict[str, Any] | None) -> tuple[float, ...]:
    """The grid of learning rates: `optim.learning_rates`, or the one that the evaluation `optim.select_from` chose.

    A run that also trains on the rows that rates are chosen by has one rate. Raises ConfigError.
    """
    rates, source = tuple(config.optim.learning_rates), config.optim.select_from
    if source and saved:
        return tuple(saved["learning_rates"])
    if source:
        try:
            results = json.loads((Path(source) / RESULTS).read_text())
            rates = (float(results["evaluated"]["chosen"]["learning_rate"]),)
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"config.optim.select_from={source}: expected the folder of an evaluation of a fine-tuned run, whose "
                f"{RESULTS} says which learning rate was chosen"
            ) from None
    require(
        len(rates) == 1 or "+" not in config.data.split,
        f"config.data.split={config.data.split!r}: learning rates are chosen on a split that is trained on here; name "
        "one rate in optim.learning_rates, or the evaluation that chose it in optim.select_from",
    )
    return rates


def head_optimiser(config: ConfigDict, rates: tuple[float, ...], backbone: str, depth: int):
    """AdamW with a rate per head and cosine, `(tx, schedules)`; a trained backbone has layer-wise decay of its rate.

    A frozen run decays every parameter, as the reference; else biases, norms and tokens are left out, as MAE's authors
    do.
    """
    options, frozen = config.optim, backbone == "frozen"
    require(
        backbone == "full" or options.layer_decay == 1.0,
        f"config.optim.layer_decay={options.layer_decay}: with objective.backbone={backbone!r} no layer of "
        "the backbone has a rate of its own; legal is 1",
    )
    cosine = warmup_cosine_schedule(1.0, 0.0, round(options.warmup_frac * config.total_steps), config.total_steps)
    tables = [((r"/queries$", 0.0), (r"^/head/", np.asarray(rates)), (r".", rates[0]))]
    if not frozen:
        tables.append(optim.layer_decay_table(options.layer_decay, depth))
    tx = optim.adamw(
        learning_rate=cosine,
        weight_decay=lambda step: options.weight_decay,
        clip_norm=None,
        lr_tables=tables,
        wd_table=((r".", 1.0),) if frozen else (*UNDECAYED, (r".", 1.0)),
    )
    return tx, {"learning_rate": lambda step: max(rates) * cosine(step)}


UNDECAYED: optim.Table = (
    (r"/(bias|scale|layer_scale[12]|thresholds|log_temperature)$", 0.0),
    (r"^/backbone/(cls_token|register_tokens|mask_token|pos_embed)$", 0.0),
)


def with_labels(experiment: Experiment, split: Split) -> Experiment:
    """The experiment, knowing how often each target is positive and negative in its training rows.

    Raises DataError for a target that no row knows.
    """
    objective, meta = experiment.objective, experiment.meta
    if not isinstance(objective, Supervised) or objective.label_counts or not meta["targets"]:
        return experiment
    labels = split.labels(meta["targets"])
    counts = tuple((int((column == 1).sum()), int((column == 0).sum())) for column in labels.T)
    for target, (positive, negative) in zip(meta["targets"], counts, strict=True):
        if not positive + negative:
            raise DataError(
                f"config.data.targets: {target!r} is unknown in all {len(split)} rows of split {split.name!r} that "
                "were chosen; leave it out, or choose other rows"
            )
    meta = meta | {"label_counts": [list(pair) for pair in counts]}
    return replace(experiment, objective=replace(objective, label_counts=counts), meta=meta)
