"""The train state, its creation straight into shards, and one training step.

In: an objective, an optimiser, a mesh. Out: a `TrainState` that never existed whole on one device, and the jitted
step `(state, batch, key) -> (state, scalars, moments)`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from cxr_jax.accumulation import loss_and_gradients
from cxr_jax.models.layers import Layout
from cxr_jax.objectives.base import Objective
from cxr_jax.optim import global_norm
from cxr_jax.sharding import batch_sharding, replicated, tree_shardings

NONFINITE_LIMIT = 3  # skipped updates in a row that end a run
NUM_SKIPPED = 16  # how many skipped steps `health` remembers between two log steps
NUM_TERMS = 64  # how many scalars `health` can tell apart


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes, as nested dicts of arrays.

    `health` counts on the device what Python only looks at on log steps: steps without a finite loss or gradient in a
    row, which scalars were not finite in them, all updates skipped for that reason and the last steps of those. The
    same tree also carries
    shapes or shardings in place of arrays.
    """

    step: Any
    params: Any
    targets: Any
    opt_state: Any
    health: dict[str, Any]


def create_state(objective: Objective, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; call it under `jit` with out_shardings, or under `eval_shape`."""
    params = objective.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        targets=objective.init_targets(params),
        opt_state=tx.init(params),
        health={
            "nonfinite_in_a_row": jnp.zeros((), jnp.int32),
            "nonfinite_terms": jnp.zeros((NUM_TERMS,), bool),
            "skipped_updates": jnp.zeros((), jnp.int32),
            "skipped_steps": jnp.full((NUM_SKIPPED,), -1, jnp.int32),
        },
    )


COUNTERS = ("nonfinite_in_a_row", "skipped_updates")


def term_names(scalars: Iterable[str]) -> list[str]:
    """What the entries of `health["nonfinite_terms"]` stand for, given the names of a step's scalars."""
    return sorted(set(scalars) - {*COUNTERS})[:NUM_TERMS]


def next_health(
    health: dict[str, Array], step: Int[Array, ""], finite: Bool[Array, ""], scalars: dict[str, Array]
) -> dict[str, Array]:
    """The counters after `step`.

    At `NONFINITE_LIMIT` the count no longer falls, so that a limit passed between two log steps is still seen, and
    its terms still named, at the next one.
    """
    bad, steps = jnp.where(finite, 0, 1), health["skipped_steps"]
    stuck = health["nonfinite_in_a_row"] >= NONFINITE_LIMIT
    in_a_row = jnp.where(finite & ~stuck, 0, health["nonfinite_in_a_row"] + bad)
    now = jnp.stack([~jnp.isfinite(scalars[name]) for name in term_names(scalars)])
    terms = health["nonfinite_terms"] | jnp.pad(now & ~finite, (0, NUM_TERMS - len(now)))
    return {
        "nonfinite_in_a_row": in_a_row,
        "nonfinite_terms": terms & (in_a_row > 0),
        "skipped_updates": health["skipped_updates"] + bad,
        "skipped_steps": jnp.where(finite, steps, jnp.roll(steps, 1).at[0].set(step)),
    }


def abstract_state(objective: Objective, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; uses no memory."""
    shapes = jax.eval_shape(partial(create_state, objective, tx), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def init_state(objective: Objective, tx: optax.GradientTransformation, mesh: Mesh, key: jax.Array) -> TrainState:
    """A fresh state, each leaf created in its own shards."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, tx, mesh))
    return jax.jit(partial(create_state, objective, tx), out_shardings=shardings)(key)


def make_step(
    objective: Objective,
    tx: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    layout: Layout,
    schedules: dict,
    *,
    accumulate_steps: int = 1,
) -> Callable:
    """The jitted training step; its state argument is donated.

    Step t draws from `fold_in(key, t)`, and goes over its batch in `accumulate_steps` parts. When loss or gradients are
    not finite, parameters, targets and optimiser stay as they were and `health` counts it. `schedules` are logged by
    name. The objective's second moments come out as they are: their ranks are the host's work, at log steps.
    """

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, tx, mesh))
    gradients = loss_and_gradients(objective, accumulate_steps, layout, shardings.params)

    def train_step(state: TrainState, batch, key):
        step_key = jax.random.fold_in(key, state.step)
        (loss, aux), grads = gradients(state.params, state.targets, batch, step_key, state.step)
        norms = {name: global_norm(module) for name, module in grads.items()}
        grad_norm = jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        targets = objective.update_targets(state.targets, params, aux.carry, state.step)
        new, old = (params, targets, opt_state), (state.params, state.targets, state.opt_state)
        params, targets, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        scalars = {
            "loss": loss,
            **aux.metrics,
            "grad_norm": grad_norm,
            **{f"grad_norm_{name}": norm for name, norm in norms.items()},
            **{name: schedule(state.step) for name, schedule in schedules.items()},
        }
        health = next_health(state.health, state.step, finite, scalars)
        scalars |= {name: health[name] for name in COUNTERS}
        return TrainState(state.step + 1, params, targets, opt_state, health), scalars, aux.moments

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), everywhere),
        out_shardings=(shardings, everywhere, everywhere),
        donate_argnums=0,
    )
