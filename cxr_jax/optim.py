"""The optimiser: AdamW on schedules, per-module clipping, and multipliers by parameter path.

In: gradients as nested dicts (one top-level entry per sub-module), parameters, the step. Out: updates.

    g <- g min(1, clip / |g|)                       per top-level entry
    p <- p - lr(t) lr_mult (adam(g) + wd(t) wd_mult p)

Multipliers come from tables of (path pattern, value). Every parameter must be covered, so a new module cannot be
decayed, frozen or trained by accident. A value is a number, or an array that broadcasts over leading stacked axes
(depth for layer-wise decay, a learning-rate grid).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxr_jax.schedules import Schedule
from cxr_jax.sharding import path_name

Table = Sequence[tuple[str, Any]]
FIRST_MOMENTS = ("param", "bfloat16")

# DINOv2's and CheXFound's: none on biases, norms and LayerScale, but on tokens, positions, and the head's v and g.
NO_DECAY_ON_VECTORS: Table = (
    (r"/(bias|scale|layer_scale[12])$", 0.0),
    (r"/(kernel|cls_token|register_tokens|mask_token|pos_embed|v|g|queries)$", 1.0),
)


def multipliers(params, table: Table):
    """A tree like `params` with the value of the first pattern of `table` that matches each path.

    Array values get trailing axes so that they broadcast over a parameter's leading ones. Raises ValueError naming
    parameters that no pattern matches.
    """
    missing = []

    def lookup(path, leaf):
        name = path_name(path)
        for pattern, value in table:
            if re.search(pattern, "/" + name):
                value = np.asarray(value)
                return value.reshape(value.shape + (1,) * (leaf.ndim - value.ndim)) if value.ndim else float(value)
        missing.append(name)
        return 0.0

    tree = jax.tree_util.tree_map_with_path(lookup, params)
    if missing:
        patterns = ", ".join(repr(pattern) for pattern, _ in table)
        raise ValueError(f"no pattern covers the parameters {', '.join(missing)}; patterns are {patterns}")
    return tree


def layer_decay_table(decay: float, depth: int, prefix: str = "backbone") -> Table:
    """Learning-rate multipliers `decay^(depth + 1 - layer)`: embeddings are layer 0, blocks 1..depth, the rest 1."""
    blocks = decay ** (depth + 1 - np.arange(1, depth + 1))
    return (
        (rf"^/{prefix}/(patch_embed|cls_token|register_tokens|mask_token|pos_embed)", decay ** (depth + 1)),
        (rf"^/{prefix}/blocks/", blocks),
        (r".", 1.0),
    )


def global_norm(tree) -> jax.Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def clip_per_module(limit: float) -> optax.GradientTransformation:
    """Scale each top-level entry of the gradients to norm `limit` if it is longer (the reference's `|g| + 1e-6`)."""

    def update(grads, state, params=None):
        del params
        clipped = {}
        for name, module in grads.items():
            factor = jnp.minimum(1.0, limit / (global_norm(module) + 1e-6))
            clipped[name] = jax.tree.map(lambda g, f=factor: g * f.astype(g.dtype), module)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_and_scale(
    learning_rate: Schedule, weight_decay: Schedule, lr_table: Sequence[Table], wd_table: Table, frozen_steps: Table
) -> optax.GradientTransformationExtraArgs:
    """`-lr(t) * lr_mult * (update + wd(t) * wd_mult * p)`; `lr_table`s multiply each other.

    `frozen_steps` gives, by path, for how many first steps a parameter's learning rate is 0; its moments still move.
    """

    def update(updates, state, params, *, step):
        lr, wd = learning_rate(step), weight_decay(step)
        rates = [multipliers(params, table) for table in lr_table]
        decays = multipliers(params, wd_table)
        frozen = multipliers(params, (*frozen_steps, (".", 0)))

        def leaf(u, p, decay, freeze, *rate):
            # The decay is inside the rate, as in PyTorch's AdamW: a multiplier of 0 freezes a parameter to the bit.
            scale = lr * np.prod(np.broadcast_arrays(*rate), axis=0) if rate else lr
            scale = jnp.where(step >= freeze, scale, 0.0)
            return (-scale * (u + wd * decay * p)).astype(p.dtype)

        return jax.tree.map(leaf, updates, params, decays, frozen, *rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def adamw(
    *,
    learning_rate: Schedule,
    weight_decay: Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    first_moment_dtype: str = "param",
    epsilon: float = 1e-8,
    clip_norm: float | None = 3.0,
    lr_tables: Sequence[Table] = (),
    wd_table: Table = NO_DECAY_ON_VECTORS,
    frozen_steps: Table = (),
) -> optax.GradientTransformationExtraArgs:
    """The chain above. `update(grads, state, params, step=step)`; schedules see the train step, not a counter.

    `first_moment_dtype` is `param` (that of each parameter) or `bfloat16`, which saves a quarter of Adam's memory: a
    mean of gradients bears the rounding, a mean of squares that decays by 0.999 would stand still. Raises ValueError
    for others.
    """
    if first_moment_dtype not in FIRST_MOMENTS:
        raise ValueError(f"first_moment_dtype={first_moment_dtype!r}: legal are {', '.join(FIRST_MOMENTS)}")
    moment = None if first_moment_dtype == "param" else first_moment_dtype
    return optax.chain(
        *((clip_per_module(clip_norm),) if clip_norm else ()),
        optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=epsilon, mu_dtype=moment),
        decay_and_scale(learning_rate, weight_decay, lr_tables, wd_table, frozen_steps),
    )
