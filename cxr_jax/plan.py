"""Entry: what a config needs on any machine, and how fast it can be there, before it is paid for. Runs no step.

    python -m cxr_jax.plan --config=configs/pretrain/chexfound_vitl16_pod.py --topology=v5e:16x16 \\
        --config.batch_size=24576 --output=plan.json --price_per_chip_hour=1.2

In: a config and a topology, which need not be there. Out: a page of text, and with --output the same as JSON.

The real training step is compiled by the machine's real compiler (libtpu, XLA for GPUs), on this computer's CPU.
Topologies: see `planning.topology`. With --search, batch sizes and remat policies are tried; with --quick the TPU
compiler tries less. Exit codes: 0 it fits, 1 it does not, 2 a bad config or flag.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.checks import check_counts, check_experiment, check_numbers, check_split
from cxr_jax.config import ConfigError, RunError, call, require
from cxr_jax.data.records import read_manifest
from cxr_jax.experiments import build, build_plain
from cxr_jax.experiments.prepare import needs_masks
from cxr_jax.planning import report
from cxr_jax.planning.search import POLICIES, search
from cxr_jax.planning.step import Case, batch_shapes, plan_step
from cxr_jax.planning.topology import (
    MissingCompiler,
    Topology,
    check_compiler,
    devices_of,
    parse_topology,
    prepare,
)
from cxr_jax.sharding import AXES, data_shards, make_mesh, mesh_shape

FALLBACK = "cpu:8"


class DoesNotFit(RunError):
    """The step needs more memory than there is."""


def define_plan_flags() -> None:
    """The flags of this entry beside `--config`."""
    flags.DEFINE_string("topology", None, "Machine, such as v5e:16x16, 4xv5e:16x16, v5p:4x4x8, h100:4x8 or cpu:8.")
    flags.DEFINE_string("output", None, "Where to write the plan as JSON.")
    flags.DEFINE_float("price_per_chip_hour", 0.0, "Price of one chip for one hour, in any currency.", lower_bound=0)
    flags.DEFINE_integer("canvas_px", 1024, "Side of the canvases if config.data.path is empty.", lower_bound=1)
    flags.DEFINE_bool("search", False, "Try batch sizes and remat policies; tell the fastest that fits.")
    flags.DEFINE_bool("quick", False, "Let the TPU compiler try less: a quarter of its time, a rougher plan.")
    flags.DEFINE_string("hlo", None, "Where to write the text of the compiled program.")
    flags.mark_flags_as_required(["topology"])


def machine(name: str) -> tuple[Topology, str]:
    """The topology to plan for, and a warning where its compiler is not installed and another one stands in."""
    try:
        topology = parse_topology(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        check_compiler(topology)
    except MissingCompiler as error:
        return parse_topology(FALLBACK), f"{error}; planning for {FALLBACK} instead"
    return topology, ""


def stand_in(config: ConfigDict, asked: Topology, topology: Topology) -> str:
    """Shrink mesh and batch of a config made for `asked` to `topology`, images per device as they were.

    Returns what was changed, in words. Raises ConfigError for what `asked` could not run either.
    """
    shape = call(mesh_shape, "mesh", dict(config.mesh), count=asked.num_devices)
    mesh = AbstractMesh(shape, AXES)
    check_split(config, mesh, config.objective.get("group_size", 1))
    tensor, devices = mesh.shape["tensor"], topology.num_devices
    require(
        devices % tensor == 0,
        f"config.mesh.tensor={tensor} does not divide the {devices} devices of {topology.name}, which would stand in "
        f"for {asked.name}; install its compiler, or take another",
    )
    share, before = config.batch_size // data_shards(mesh), config.batch_size
    config.mesh.update(replica=1, fsdp=devices // tensor, tensor=tensor)
    config.batch_size = share * (devices // tensor)
    mesh_now = f"mesh 1 x {devices // tensor} x {tensor}"
    return f"batch {before} becomes {config.batch_size}, the same {share} images a device, {mesh_now}"


def canvas_of(config: ConfigDict) -> tuple[int, int]:
    """Height and width in px of the canvases: the dataset's, else a square of --canvas_px."""
    if not config.data.path:
        return (flags.FLAGS.canvas_px,) * 2
    with door.naming("data"):
        canvas = read_manifest(config.data.path).canvas
    return canvas["height"], canvas["width"]


def make_case(config: ConfigDict, topology: Topology, devices: list) -> Case:
    """What the config means on these devices; refuses what cannot run there."""
    mesh = call(make_mesh, "mesh", dict(config.mesh), devices=devices, keep_order=False)
    experiment = build(config)
    check_experiment(config, mesh, experiment.objective, experiment.meta["model"])
    return Case(
        objective=experiment.objective,
        plain=build_plain(config),
        tx=experiment.tx,
        schedules=experiment.schedules,
        mesh=mesh,
        topology=topology,
        batch=batch_shapes(
            mesh, config.batch_size, canvas_of(config), len(config.data.targets), needs_masks(experiment.objective)
        ),
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        compute_dtype=config.dtypes.compute,
        reduce_dtype=config.dtypes.reduce,
        options={"accumulate_steps": config.accumulate_steps},
    )


def check_outputs() -> None:
    """Refuse files that could not be written once all is compiled."""
    for name in ("output", "hlo"):
        file = flags.FLAGS[name].value
        if file and (Path(file).is_dir() or not os.access(Path(file).parent, os.W_OK)):
            raise ConfigError(f"--{name}={file}: cannot be written; name a file in a folder that exists and is yours")


def write_whole(file: Path, text: str) -> None:
    """Write a file that is never seen half-written; one that was there stays until then."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def planned(config: ConfigDict, topology: Topology, devices: list) -> dict[str, Any]:
    """The plan of one config."""
    options = flags.FLAGS
    case = make_case(config, topology, devices)
    print(f"compiling for {topology.name}: a minute or two for large models", flush=True)
    hlo = Path(options.hlo) if options.hlo else None
    plan = plan_step(case, price_per_chip_hour=options.price_per_chip_hour, hlo=hlo)
    height, width = canvas_of(config)
    remat = config.model.remat if "model" in config else "none"
    settings = f"remat {remat}, compute {config.dtypes.compute}, canvas {height} x {width} px"
    versions = {"jax": jax.__version__, "compiler": devices[0].client.platform_version.strip()}
    return {"command": " ".join(sys.orig_argv), "versions": versions, "settings": settings, "remat": remat} | plan


def searched(config: ConfigDict, topology: Topology, devices: list) -> dict[str, Any]:
    """The plan of the fastest variation that fits. Raises DoesNotFit when none does."""
    require(bool(topology.chip.memory), f"--search: {topology.name} has no memory of its own that could be too small")

    def plan_of(remat, batch_size):
        variation = config.copy_and_resolve_references()
        variation.batch_size = batch_size
        if "model" in variation:
            variation.model.remat = remat
        return planned(variation, topology, devices)

    mesh = call(make_mesh, "mesh", dict(config.mesh), devices=devices, keep_order=False)
    group = config.objective.get("group_size", 1)
    policies = POLICIES if "model" in config else ("none",)
    least = data_shards(mesh) * group * config.accumulate_steps
    best, rows = search(plan_of, policies, config.batch_size, least, lambda line: print(line, flush=True))
    if best is None:
        raise DoesNotFit(f"nothing fits: {len(rows)} batch sizes and remat policies were tried; raise config.mesh.fsdp")
    print(f"\nfastest that fits: --config.batch_size={best['batch_size']} --config.model.remat={best['remat']}\n")
    return best | {"search": rows}


def main() -> None:
    """Config and topology -> plan."""
    config, options = flags.FLAGS.config, flags.FLAGS
    topology, warning = machine(options.topology)
    check_outputs()
    prepare(topology)
    if "float64" in config.dtypes.values():
        jax.config.update("jax_enable_x64", True)
    check_counts(config)
    check_numbers(config)
    if warning:
        changes = stand_in(config, parse_topology(options.topology), topology)
        print(f"warning: {warning}: {changes}", file=sys.stderr)
    devices = devices_of(topology)
    if options.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    plan = (searched if options.search else planned)(config, topology, devices)
    print("\n".join(report.lines(plan)))
    if options.output:
        write_whole(Path(options.output), json.dumps(plan, indent=1) + "\n")
    if not plan["fits"]:
        sizes = plan["bytes_per_device"]
        raise DoesNotFit(
            f"does not fit: a device needs {report.gb(sizes['total'])} of {report.gb(sizes['capacity'])}, "
            f"{report.gb(sizes['excess'])} too much; lower config.batch_size or raise config.mesh.fsdp, "
            "config.model.remat or config.objective.prototype_chunks"
        )


if __name__ == "__main__":
    door.define_flags(workdir=False)
    define_plan_flags()
    door.run_entry(main)
