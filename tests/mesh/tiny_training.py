"""A whole self-distillation training, small enough to compile in seconds, on any mesh.

In: a mesh, a dataset, a dtype. Out: the compiled step, a state, batches, the scalars of ten steps.

Sizes are chosen so that no parameter has the shape of an activation: 32 global and 16 local rows, 24 hidden patches,
16 images, and on 8 devices 4, 2, 3 and 2 of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import smoke
from cxr_jax import experiments
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.source import open_split
from cxr_jax.sharding import batch_sharding, make_layout
from cxr_jax.state import TrainState, abstract_state, init_state, make_step

STEPS = 10
# LLVM's optimisation is a good part of the compile time; it changes neither the program nor its collectives.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def tiny_config(*, dtype: str, layer_scale: float) -> ConfigDict:
    """Width 32, depth 2, crops of 32 and 16 px, 64 prototypes, 16 images in groups of 2; every loss term is on."""
    config = smoke.get_config()
    config.batch_size, config.total_steps = 16, STEPS
    config.objective.update(group_size=2, prototype_chunks=2)
    config.model.update(image_size=32, width=32, depth=2, num_heads=2, num_registers=5)
    config.model.update(layer_scale=layer_scale, drop_path=0.4)
    config.crops.update(global_size=32, local_size=16, num_local=1)
    for head in config.heads.values():
        head.update(hidden=40, bottleneck=24, num_prototypes=64)
    config.dtypes.update(param=dtype, compute=dtype, reduce=dtype)
    return config


@dataclass
class TinyTraining:
    """One training on `mesh`; everything is made by the code that `cxr_jax.train` runs."""

    config: ConfigDict
    mesh: Mesh
    dataset: Path

    @cached_property
    def experiment(self) -> experiments.base.Experiment:
        return experiments.build(self.config)

    @cached_property
    def abstract_state(self) -> TrainState:
        return abstract_state(self.experiment.objective, self.experiment.tx, self.mesh)

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        """The global batches of all steps."""
        return train_batches(
            open_split(str(self.dataset), "train"),
            batch_size=self.config.batch_size,
            total_steps=STEPS,
            sharding=batch_sharding(self.mesh),
            seed=0,
        )

    def init(self) -> TrainState:
        """A fresh state in its shards."""
        return init_state(self.experiment.objective, self.experiment.tx, self.mesh, jax.random.key(0))

    @cached_property
    def compiled_step(self) -> jax.stages.Compiled:
        layout = make_layout(self.mesh, self.config.dtypes.compute)
        parts = {"accumulate_steps": self.config.accumulate_steps}
        experiment = self.experiment
        step = make_step(experiment.objective, experiment.tx, self.mesh, layout, experiment.schedules, **parts)
        return step.lower(self.abstract_state, next(self.batches()), jax.random.key(1)).compile(FAST_COMPILE)

    def run(self, state: TrainState) -> list[dict[str, float]]:
        """The scalars of every step from `state`, which is donated."""
        history = []
        for batch in self.batches():
            state, scalars, _ = self.compiled_step(state, batch, jax.random.key(1))
            history.append({name: float(value) for name, value in jax.device_get(scalars).items()})
        return history


def relative_differences(history: list[dict], reference: list[dict]) -> dict[str, float]:
    """For every scalar, the largest relative difference over the steps."""
    return {
        name: max(
            abs(row[name] - other[name]) / max(abs(other[name]), 1e-30)
            for row, other in zip(history, reference, strict=True)
        )
        for name in reference[0]
    }
