"""From a resolved config to all that a training needs before its parameters exist, or one clear line of what is wrong.

In: a config, and what the run's own checkpoint says of it. Out: mesh, experiment, data, geometry, evaluations. Nothing
is written and nothing is compiled, so that a sweep can ask this of every run before it starts the first.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.checks import check_batch, check_counts, check_experiment, check_numbers
from cxr_jax.collapse import CollapseWatch
from cxr_jax.config import call, require
from cxr_jax.data.source import Split, open_split
from cxr_jax.evals.features import Geometry
from cxr_jax.experiments import build, build_plain
from cxr_jax.experiments.base import Experiment
from cxr_jax.experiments.supervised import with_labels
from cxr_jax.models.layers import Layout
from cxr_jax.objectives.base import Objective
from cxr_jax.online_probe import OnlineProbe
from cxr_jax.planning.chips import chip_of_device
from cxr_jax.planning.step import batch_shapes, model_flops
from cxr_jax.saving import Checkpoints
from cxr_jax.sharding import make_layout, make_mesh


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found in a config."""

    experiment: Experiment
    split: Split
    geometry: Geometry
    layout: Layout
    evaluations: dict[str, OnlineProbe]


def mesh_of(config: ConfigDict) -> Mesh:
    """The mesh of a config whose own numbers make sense; reads nothing but the config and the devices."""
    mesh = call(make_mesh, "mesh", dict(config.mesh))
    check_counts(config)
    check_numbers(config)
    return mesh


def prepare(config: ConfigDict, mesh: Mesh, saved: dict[str, Any] | None) -> Prepared:
    """Everything that the sections of a config ask for; `saved` is what the run's newest checkpoint says, if any.

    Raises ConfigError or DataError.
    """
    experiment = build(config, saved)
    check_experiment(config, mesh, experiment.objective, experiment.meta["model"])
    split = open_data(config, needs_masks(experiment.objective))
    experiment = with_labels(experiment, split)
    geometry = Geometry(config.geometry.fit, config.geometry.image_size or experiment.meta["model"]["image_size"])
    layout = make_layout(mesh, config.dtypes.compute)
    evaluations = online_probe(config, experiment.objective, geometry, mesh, layout)
    return Prepared(experiment, split, geometry, layout, evaluations)


def needs_masks(objective: Objective) -> bool:
    """Whether an objective learns from masks, so that its batches bring them and rows without one are left out."""
    return getattr(objective, "needs_masks", False)


def open_data(config: ConfigDict, masks: bool) -> Split:
    """The rows that `config.data` asks for, with `masks` those that have one; at least a batch of them."""
    require(bool(config.data.path), "config.data.path is empty; name a dataset folder made by data_prep.build")
    where = {field: value for field, value in config.data.where.items() if value}
    options = {name: config.data[name] for name in ("path", "split", "targets", "weights", "cache_dir")}
    with door.naming("data"):
        split = call(open_split, "data", options, where=where, masks=masks)
    check_batch(config, len(split))
    return split


def online_probe(
    config: ConfigDict, objective: Objective, geometry: Geometry, mesh: Mesh, layout: Layout
) -> dict[str, OnlineProbe]:
    """The probe that `config.probe` asks for, if it does; an empty path means the dataset that is trained on."""
    section = config.get("probe")
    if section is None or section.every_steps == 0:
        return {}
    given = {"objective": objective, "geometry": geometry, "mesh": mesh, "layout": layout}
    given |= {"batch_size": config.batch_size, "dtype": config.dtypes.reduce, "cache_dir": config.data.cache_dir}
    door.check_keys("probe", section, OnlineProbe, given=given)
    options = section.to_dict()
    options["path"] = options["path"] or config.data.path
    options["where"] = {field: value for field, value in options["where"].items() if value}
    with door.naming("probe"):
        return {"probe": call(OnlineProbe, "probe", options, **given)}


def flops_share_per_image(config: ConfigDict, mesh: Mesh, split: Split) -> float:
    """FLOPs that an image costs, over those that all devices do in a second at their peak; 0 where that is unknown."""
    chip = chip_of_device(mesh.devices.flat[0].device_kind)
    if chip is None or not chip.flops:
        return 0.0
    canvas = split.manifest.canvas
    sides = canvas["height"], canvas["width"]
    plain = build_plain(config)
    batch = batch_shapes(mesh, config.batch_size, sides, len(config.data.targets), needs_masks(plain))
    return model_flops(plain, batch) / config.batch_size / (mesh.size * chip.flops)


def collapse_watch(config: ConfigDict, objective: Objective, saved: dict[str, Any] | None) -> CollapseWatch:
    """The watch that `config.log` asks for, going on from the checkpoint's."""
    return call(
        CollapseWatch,
        "log",
        {"mode": config.log.on_collapse, "patience": config.log.collapse_patience},
        after_step=round(config.log.collapse_after_frac * config.total_steps),
        num_prototypes=getattr(objective, "num_prototypes", {}),
        images=config.batch_size,
        saved=saved,
    )


def checkpoints_of(config: ConfigDict, workdir: Path, mesh: Mesh) -> Checkpoints:
    """What `config.checkpoint` asks for."""
    options = config.checkpoint.to_dict()
    for own in ("every_steps", "every_secs"):
        del options[own]
    door.check_keys("checkpoint", options, Checkpoints, given=("workdir", "mesh", "every_steps", "every_secs"))
    return call(Checkpoints, "checkpoint", options, workdir=workdir, mesh=mesh)


def check(config: ConfigDict, *, data: bool = True) -> None:
    """Raise what a fresh training of `config` would be refused for, without starting it.

    `data=False` leaves out what needs the dataset, for a machine that does not see it.
    """
    mesh = mesh_of(config)
    if data:
        experiment = prepare(config, mesh, None).experiment
    else:
        experiment = build(config)
        check_experiment(config, mesh, experiment.objective, experiment.meta["model"])
    collapse_watch(config, experiment.objective, None)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints_of(config, Path(folder), mesh).close()
