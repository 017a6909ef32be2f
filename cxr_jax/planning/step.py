"""One step, planned: compiled for machines that are not there, and read.

In: an experiment's parts, a mesh of a topology's devices, the shapes of a batch. Out: a plan as a plain dict, the
content of plan.json.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from cxr_jax.objectives.base import Objective
from cxr_jax.planning import collectives, flops, memory
from cxr_jax.planning.bounds import Work, bounds_of, run_of
from cxr_jax.planning.hlo import parse
from cxr_jax.planning.topology import Topology, compiler_options
from cxr_jax.planning.traffic import memory_traffic
from cxr_jax.sharding import batch_sharding, data_shards, make_layout
from cxr_jax.state import TrainState, abstract_state, make_step

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Case:
    """What is planned: an objective and its optimiser on a mesh, with the compute and reduce dtypes.

    `plain` is the same objective without anything recomputed, to count the FLOPs that the model needs.
    """

    objective: Objective
    plain: Objective
    tx: optax.GradientTransformationExtraArgs
    schedules: dict[str, Any]
    mesh: Mesh
    topology: Topology
    batch: Shapes
    batch_size: int
    total_steps: int
    compute_dtype: str
    reduce_dtype: str
    options: dict[str, Any]  # of `make_step`


def batch_shapes(mesh: Mesh, batch_size: int, canvas: Sequence[int], num_targets: int, masks: bool = False) -> Shapes:
    """The arrays of a training batch; `canvas` is height and width in px."""
    shapes = {
        "image": ((batch_size, *canvas), "uint8"),
        "size": ((batch_size, 2), "int32"),
        "index": ((batch_size,), "int32"),
    }
    if num_targets:
        shapes["labels"] = ((batch_size, num_targets), "int8")
    if masks:
        shapes |= {"mask": shapes["image"], "has_mask": ((batch_size,), "bool")}
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}


def plan_step(case: Case, *, price_per_chip_hour: float = 0.0, hlo: Path | None = None) -> dict[str, Any]:
    """Compile the step of `case` and read what it needs; with `hlo`, the program's text is written there.

    A step that does not fit has no collectives and no bounds: its compiler gives up before there is a program.
    """
    state = abstract_state(case.objective, case.tx, case.mesh)
    chip, devices = case.topology.chip, case.mesh.size
    step_flops, kept = count_flops(case, state)
    plan = {
        "topology": case.topology.name,
        "devices": devices,
        "mesh": dict(case.mesh.shape),
        "batch_size": case.batch_size,
        "images_per_device": case.batch_size / data_shards(case.mesh),
        "parameters": memory.parameter_counts(state.params),
        "flops_per_step": step_flops,
        "bytes_per_device": memory.state_bytes(state, case.batch),
    }
    started = time.perf_counter()
    compiled, too_much = compile_step(case, state)
    plan["compile_secs"] = time.perf_counter() - started
    if compiled is None:
        used, limit = too_much
        plan["bytes_per_device"] |= {"total": used, "capacity": limit, "excess": used - limit}
        return plan | {"fits": False}

    needed = memory.step_memory(compiled)
    parts = case.options.get("accumulate_steps", 1)
    activations = min(kept // data_shards(case.mesh) // parts, needed.temporaries)
    capacity = chip.memory * chip.usable
    plan["bytes_per_device"] |= {
        "padding": max(needed.arguments - sum(plan["bytes_per_device"].values()), 0),
        "activations": activations,
        "temporaries": needed.temporaries - activations,
        "program": needed.program,
        "total": needed.total,
        "capacity": capacity,
        "excess": max(needed.total - capacity, 0) if capacity else 0,
    }
    plan["fits"] = not plan["bytes_per_device"]["excess"]
    text = compiled.as_text()
    if hlo:
        hlo.write_text(text)
    program = parse(text)
    found = collectives.collectives_of(program, places(case.mesh))
    sent = [float(sum(one.times * getattr(one, name) for one in found)) for name in ("near", "far")]
    least = memory.least_collective_bytes(state, case.mesh, case.compute_dtype, case.reduce_dtype)
    plan["collectives"] = collectives.summary(found)
    plan["collective_bytes"] = {"total": sum(sent), "between_slices": sent[1], "least": least}
    plan["memory_traffic"] = memory_traffic(program)
    work = Work(step_flops["executed"] / devices, step_flops["model"] / devices, float(plan["memory_traffic"]), *sent)
    bounds = bounds_of(work, chip)
    if bounds:
        plan["bounds_secs"] = bounds.to_dict()
        plan["run"] = run_of(bounds.step, case.total_steps, case.batch_size, devices, price_per_chip_hour)
    return plan


def compile_step(case: Case, state: TrainState) -> tuple[jax.stages.Compiled | None, tuple[float, float] | None]:
    """The compiled step, or None with the bytes that it would use and those there are."""
    layout = make_layout(case.mesh, case.compute_dtype)
    step = make_step(case.objective, case.tx, case.mesh, layout, case.schedules, **case.options)
    lowered = step.lower(state, case.batch, jax.eval_shape(lambda: jax.random.key(0)))
    try:
        return lowered.compile(compiler_options(case.topology.chip.platform)), None
    except jax.errors.JaxRuntimeError as error:
        too_much = memory.exhausted(str(error))
        if not too_much:
            raise
        return None, too_much


def count_flops(case: Case, state: TrainState) -> tuple[dict[str, int], int]:
    """FLOPs of all matrix products of one step over all devices, and bytes that its forward pass keeps.

    `model` is what the model needs: forward and backward once, without augmentation and recomputation. `executed` is
    what the program does.
    """
    executed = _traced(case.objective, case.batch)
    counts = {"executed": flops.distinct_flops(executed), "augmentation": augmentation_flops(case.plain, case.batch)}
    counts["model"] = model_flops(case.plain, case.batch)
    parameters = jax.tree.leaves((state.params, state.targets))
    return counts, flops.kept_bytes(executed, {leaf.shape for leaf in parameters})


def model_flops(plain: Objective, batch: Shapes) -> int:
    """FLOPs that one step of a model needs, forward and backward, over the whole batch and without augmentation.

    `plain` is an objective that computes nothing twice.
    """
    return flops.distinct_flops(_traced(plain, batch)) - augmentation_flops(plain, batch)


def augmentation_flops(objective: Objective, batch: Shapes) -> int:
    """FLOPs of making the views of a batch."""
    key, _ = _key_and_step()
    views = getattr(objective, "views", None)
    return flops.distinct_flops(flops.trace(views, _bare(batch), key)) if views else 0


def _bare(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _key_and_step():
    return jax.eval_shape(lambda: (jax.random.key(0), jax.numpy.zeros((), "int32")))


def _traced(objective: Objective, batch: Shapes):
    params = jax.eval_shape(objective.init, jax.random.key(0))
    targets = jax.eval_shape(objective.init_targets, params)
    gradient = jax.value_and_grad(objective.loss, has_aux=True)
    return flops.trace(gradient, params, targets, _bare(batch), *_key_and_step())


def places(mesh: Mesh) -> list[int]:
    """The slice of each device of a compiled program, or its host where there are no slices (GPUs)."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "gpu" or "gpu" in str(getattr(devices[0], "device_kind", "")).lower():
        return [device.process_index for device in devices]
    return [getattr(device, "slice_index", 0) or 0 for device in devices]
