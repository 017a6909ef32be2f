"""Entry: pretraining and fine-tuning.

    python -m cxr_jax.train --config=configs/smoke.py --workdir=DIR --config.data.path=DATASET

In: a config. Out: a run directory with run.json, metrics.jsonl, checkpoints/ and examples/. The same command continues
a run that was stopped. `experiments` turns config sections into objects; everything else takes named arguments.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cxr_jax import checkpoint, loop
from cxr_jax import config as door
from cxr_jax.collapse import MODES, CollapseWatch
from cxr_jax.config import call, require
from cxr_jax.data.geometry import MEAN, STD
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import open_split
from cxr_jax.evals.features import Geometry
from cxr_jax.examples import Examples
from cxr_jax.experiments import build
from cxr_jax.metrics import Metrics
from cxr_jax.models.layers import Layout
from cxr_jax.objectives.base import Objective
from cxr_jax.online_probe import OnlineProbe
from cxr_jax.sharding import batch_sharding, data_shards, make_layout, make_mesh
from cxr_jax.state import abstract_state, init_state, make_step

COUNTS = ("batch_size", "total_steps", "checkpoint.every_steps", "checkpoint.keep", "log.every_steps")
COUNTS += ("log.collapse_patience", "data.threads", "data.prefetch")
EXAMPLES = "log.examples_every_steps"


def check_counts(config: ConfigDict) -> None:
    """Refuse zero and negative numbers where something is counted."""
    flat = door.flatten(config)
    for key in COUNTS:
        require(flat[key] >= 1, f"config.{key}={flat[key]} must be at least 1")
    mode = config.log.on_collapse
    require(mode in MODES, f"config.log.on_collapse={mode!r}: legal are {', '.join(MODES)}")
    every = flat.get(EXAMPLES, 0)
    require(every >= 0, f"config.{EXAMPLES}={every} must be at least 0; 0 shows the first batch at the start alone")


# What may change between starting a run and continuing it, because no result depends on it.
FREE_KEYS = ("log.", "probe.", "checkpoint.", "mesh.", "data.path", "data.threads", "data.prefetch")


def check_same_config(saved: dict[str, Any], config: ConfigDict, workdir: Path) -> None:
    """Refuse to continue a run under another config; names what differs."""
    changed = door.diff(door.flatten(saved), door.flatten(config.to_dict()))
    changed = {key: values for key, values in changed.items() if not key.startswith(FREE_KEYS)}
    text = "; ".join(f"config.{key} was {old!r} and is {new!r}" for key, (old, new) in list(changed.items())[:4])
    require(not changed, f"{workdir} holds a run of another config: {text}; take another --workdir or the same values")


def check_numbers(config: ConfigDict) -> None:
    """Refuse shares of a run that are none, and negative numbers of the optimiser."""
    for key, value in door.flatten(config).items():
        if key.endswith("_frac"):
            require(0 <= value <= 1, f"config.{key}={value} must be a fraction of the run, 0 to 1")
        elif key.startswith("optim."):
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, (int, float))]
            require(all(n >= 0 for n in numbers), f"config.{key}={value} must not be negative")


def check_split(config: ConfigDict, mesh: Mesh, group_size: int) -> None:
    """Refuse numbers that the devices cannot share evenly."""
    shards, batch_size, tensor = data_shards(mesh), config.batch_size, mesh.shape["tensor"]
    require(
        batch_size % shards == 0,
        f"config.batch_size={batch_size} must be a multiple of {shards}, the devices that share it",
    )
    share = batch_size // shards
    require(
        group_size >= 1 and share % group_size == 0,
        f"config.objective.group_size={group_size} must divide the {share} images of each device "
        f"(batch_size {batch_size} on {shards})",
    )
    for name, head in config.get("heads", {}).items():
        require(
            head.num_prototypes % tensor == 0,
            f"config.heads.{name}.num_prototypes={head.num_prototypes} must be a multiple of {tensor}, "
            "the devices of config.mesh.tensor that share them",
        )


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


def online_probe(
    config: ConfigDict, objective: Objective, geometry: Geometry, mesh: Mesh, layout: Layout
) -> dict[str, OnlineProbe]:
    """The probe that `config.probe` asks for, if it does; an empty path means the dataset that is trained on."""
    section = config.get("probe")
    if section is None or section.every_steps == 0:
        return {}
    given = {"objective": objective, "geometry": geometry, "mesh": mesh, "layout": layout}
    given |= {"batch_size": config.batch_size, "dtype": config.dtypes.reduce}
    door.check_keys("probe", section, OnlineProbe, given=given)
    options = section.to_dict()
    options["path"] = options["path"] or config.data.path
    options["where"] = {field: value for field, value in options["where"].items() if value}
    with door.naming("probe"):
        return {"probe": call(OnlineProbe, "probe", options, **given)}


def main() -> None:
    """Config -> mesh, data, objective, state -> loop."""
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    door.start_distributed()
    first_process = jax.process_index() == 0
    if "float64" in config.dtypes.values():
        jax.config.update("jax_enable_x64", True)
    mesh = call(make_mesh, "mesh", dict(config.mesh))
    batch_size = config.batch_size
    check_counts(config)
    check_numbers(config)
    if first_process:
        door.lock_workdir(workdir)
    # What this run said of itself when it last saved; None when it has not begun.
    saved = checkpoint.read_meta(workdir) if checkpoint.steps_of(workdir) else None
    if saved:
        check_same_config(saved["config"], config, workdir)
    experiment = build(config, saved)
    objective, tx = experiment.objective, experiment.tx
    check_split(config, mesh, getattr(objective, "group_size", 1))
    require(bool(config.data.path), "config.data.path is empty; name a dataset folder made by data_prep.build")
    where = {field: value for field, value in config.data.where.items() if value}
    with door.naming("data"):
        split = open_split(config.data.path, config.data.split, where=where, targets=config.data.targets)
    require(
        batch_size <= len(split),
        f"config.batch_size={batch_size} is more than the {len(split)} images of split {config.data.split!r}; "
        "an image would stand in a batch twice",
    )
    geometry = Geometry(config.geometry.fit, config.geometry.image_size or experiment.meta["model"]["image_size"])
    layout = make_layout(mesh, config.dtypes.compute)
    # Before anything is written: what is wrong with the probe's data is told at once.
    evaluations = online_probe(config, objective, geometry, mesh, layout)

    key = jax.random.key(config.seed)
    init_key, step_key = jax.random.split(key)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
    meta = {
        **experiment.meta,
        "config": config.to_dict(),
        "geometry": {**asdict(geometry), "mean": MEAN, "std": STD},
        "fingerprint": split.manifest.fingerprint,
        "vocabulary": list(split.manifest.vocabulary),
        "data_skip": 0,
        "init": None,
    }
    if saved is None:
        state = init_state(objective, tx, mesh, init_key)
        if experiment.start:
            started = experiment.start(state)
            state, meta = started.state, meta | started.carried | {"init": started.report}
            if first_process:
                print(started.describe())
    else:
        require(
            saved["fingerprint"] == meta["fingerprint"],
            f"{workdir} was trained on another dataset than {config.data.path} (fingerprints differ)",
        )
        state, saved = checkpoints.restore(abstract_state(objective, tx, mesh))
        meta |= {name: saved[name] for name in ("data_skip", "init", "owed", "collapse") if name in saved}
    first = int(state.step)
    if first_process:
        print(
            f"{workdir}: step {first} of {config.total_steps}, {len(split)} images, "
            f"batch {batch_size} on {mesh.size} devices"
        )
    if first >= config.total_steps:
        return
    if first_process:
        facts = {name: meta[name] for name in ("fingerprint", "init")}
        door.write_run_json(workdir, config, {"resumed_from_step": first, **facts})

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
    watch = collapse_watch(config, objective, meta.get("collapse"))
    examples = Examples(
        workdir / "examples",
        every_steps=config.log.get("examples_every_steps", 0),
        objective=objective,
        load=lambda: next(batches()),
        key=jax.random.fold_in(step_key, 0),
        mesh=mesh,
        writes=first_process,
    )
    if saved is None:
        examples.write(state, "first_batch.png")
    if examples.every_steps:
        evaluations["examples"] = examples
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
            watch=watch,
            evaluations=evaluations,
        )
    finally:
        metrics.close()
        checkpoints.close()


if __name__ == "__main__":
    door.define_flags()
    door.define_process_flags()
    door.run_entry(main)
