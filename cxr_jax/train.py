"""Entry: pretraining and fine-tuning.

    python -m cxr_jax.train --config=configs/smoke.py --workdir=DIR --config.data.path=DATASET

In: a config. Out: a run directory with run.json, metrics.jsonl, checkpoints/ and examples/. The same command continues
a run that was stopped. `experiments` turns config sections into objects; everything else takes named arguments.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import jax
from absl import flags

from cxr_jax import checkpoint, loop
from cxr_jax import config as door
from cxr_jax.config import call
from cxr_jax.data.geometry import MEAN, STD
from cxr_jax.data.pipeline import train_batches
from cxr_jax.examples import Examples
from cxr_jax.experiments.prepare import (
    checkpoints_of,
    collapse_watch,
    flops_share_per_image,
    mesh_of,
    needs_masks,
    prepare,
)
from cxr_jax.metrics import Metrics
from cxr_jax.phases import Phases
from cxr_jax.preemption import Preemption
from cxr_jax.profiling import ObservedStep
from cxr_jax.record_log import RecordLog
from cxr_jax.resume import carried, check_same_config, check_same_data, roll_back
from cxr_jax.sharding import batch_sharding
from cxr_jax.skipped import SkippedBatches
from cxr_jax.state import abstract_state, init_state, make_step
from cxr_jax.trackers import open_trackers

# How batches are made; what they hold depends on none of it.
DECODING = ("threads", "prefetch", "workers", "prefetch_to_device", "cache_decoded_mb")


def main() -> None:
    """Config -> mesh, data, objective, state -> loop."""
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    door.start_distributed()
    first_process = jax.process_index() == 0
    if "float64" in config.dtypes.values():
        jax.config.update("jax_enable_x64", True)
    mesh = mesh_of(config)
    if first_process:
        door.lock_workdir(workdir)
    # What this run said of itself when it last saved; None when it has not begun.
    saved = checkpoint.read_meta(workdir) if checkpoint.steps_of(workdir) else None
    changed = check_same_config(saved["config"], config.to_dict(), workdir) if saved else {}
    # Before anything is written: what is wrong with the config or the data is told at once.
    prepared = prepare(config, mesh, saved)
    experiment, split, geometry = prepared.experiment, prepared.split, prepared.geometry
    objective, tx, layout = experiment.objective, experiment.tx, prepared.layout
    masks = needs_masks(objective)
    evaluations = dict(prepared.evaluations)

    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    phases, preemption = Phases(config.log.stall_secs), Preemption()
    checkpoints = checkpoints_of(config, workdir, mesh)
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
        checkpoints.prepare(state)
    else:
        check_same_data(saved, meta["fingerprint"], meta["config"], workdir)
        with phases("restore", saved["step"]):
            state, saved = checkpoints.restore(abstract_state(objective, tx, mesh))
        meta |= carried(saved, meta["config"])
    first = int(state.step)
    if first_process:
        print(
            f"{workdir}: step {first} of {config.total_steps}, {len(split)} images, "
            f"batch {config.batch_size} on {mesh.size} devices"
        )
        for key, (old, new) in changed.items():
            print(f"  changed: config.{key} from {old!r} to {new!r}")
    if first >= config.total_steps:
        if first_process:
            print(f"nothing is left to do: config.total_steps={config.total_steps}; a longer run needs a larger one")
        return
    if first_process:
        facts = {name: meta[name] for name in ("fingerprint", "init")}
        door.write_run_json(workdir, config, {"resumed_from_step": first, "changed": changed, **facts})

    order = {"batch_size": config.batch_size, "total_steps": config.total_steps, "seed": config.seed}

    def batches(data_skip, start_step=0, **changes):
        decoding = {name: config.data[name] for name in DECODING}
        return train_batches(
            split,
            **order,
            sharding=batch_sharding(mesh),
            start_step=start_step,
            data_skip=data_skip,
            targets=config.data.targets,
            masks=masks,
            **decoding | changes,
        )

    examples = Examples(
        workdir / "examples",
        every_steps=config.log.get("examples_every_steps", 0),
        objective=objective,
        load=lambda: next(batches(0, workers=0)),
        key=jax.random.fold_in(step_key, 0),
        mesh=mesh,
        writes=first_process,
    )
    if saved is None:
        examples.write(state, "first_batch.png")
    if examples.every_steps:
        evaluations["examples"] = examples

    flops_share = flops_share_per_image(config, mesh, split)

    def train(state, meta):
        start_step = int(state.step)
        names = config.log.trackers if first_process else ()
        trackers = open_trackers(names, workdir, config.log.project, door.flatten(config))
        metrics = Metrics(
            workdir,
            start_step=start_step,
            total_steps=config.total_steps,
            tensorboard=config.log.tensorboard,
            trackers=trackers,
            writes=first_process,
            flops_share_per_image=flops_share if first_process else 0.0,
        )
        record_log = RecordLog(workdir, start_step) if config.log.record_ids and first_process else None
        stream = batches(meta["data_skip"], start_step, on_records=record_log)
        watched = {"folder": workdir, "start_step": start_step, "writes": first_process}
        observed = call(ObservedStep, "profile", config.profile.to_dict(), train_step=train_step, **watched)
        try:
            loop.run(
                state,
                train_step=observed,
                batches=stream,
                key=step_key,
                total_steps=config.total_steps,
                batch_size=config.batch_size,
                save_times=loop.SaveTimes(config.checkpoint.every_steps, config.checkpoint.every_secs),
                log_every_steps=config.log.every_steps,
                checkpoints=checkpoints,
                meta=meta,
                metrics=metrics,
                watch=collapse_watch(config, objective, meta.get("collapse")),
                evaluations=evaluations,
                phases=phases,
                stop_requested=preemption.requested,
                note_skipped=SkippedBatches(workdir, split, **order, data_skip=meta["data_skip"], writes=first_process),
            )
        finally:
            observed.close()
            stream.close()
            metrics.close()

    parts = config.accumulate_steps
    train_step = make_step(objective, tx, mesh, layout, experiment.schedules, accumulate_steps=parts)
    try:
        while True:
            try:
                return train(state, meta)
            except loop.NumericError as error:
                if config.numerics.on_nonfinite != "rollback":
                    raise
                good, back = roll_back(error, checkpoints.steps(), meta, config.numerics.max_rollbacks)
                checkpoints.delete_from(good + 1)
                state, saved = checkpoints.restore(abstract_state(objective, tx, mesh))
                meta |= carried(saved, meta["config"]) | back
                if first_process:
                    print(
                        f"warning: step {error.step}: {error.what}; going back to step {good}, past these batches",
                        file=sys.stderr,
                    )
    finally:
        phases.close()
        preemption.close()
        checkpoints.close()


if __name__ == "__main__":
    door.define_flags()
    door.define_process_flags()
    door.run_entry(main)
