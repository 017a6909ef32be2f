"""Gradient accumulation: a batch that is too large for the memory, in parts one after the other.

In: an objective that can `teach` and `learn`. Out: loss, metrics and gradients of the whole batch.

    lesson = teach(whole batch)          no gradient: views, and what the teacher makes of all of them
    L = mean over parts p of learn(p),   dL = mean over p of dlearn(p)

The teacher runs over all parts first, so that an assignment over the batch (Sinkhorn) sees all of it. Losses and
gradients are those of the uncut batch up to rounding. Logged quantities that are no means over images (quantiles, the
share of prototypes in use) are means over parts.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.models.layers import IN_PLACE, WHOLE, Layout, Part
from cxr_jax.objectives.base import Aux, Batch, Objective, Params


@runtime_checkable
class Divisible(Protocol):
    """An objective whose loss over a batch is the mean of its losses over parts of it, given a lesson.

    `whole_batch_terms` names what is switched on and breaks that; with any of it a batch cannot be cut.
    """

    whole_batch_terms: tuple[str, ...]

    def teach(
        self, targets: Params, batch: Batch, key: Array, step: Array, *, parts: int = 1, layout: Layout = IN_PLACE
    ) -> Any:
        """All that needs no gradient, over the whole batch, never holding the activations of more than one part."""

    def learn(
        self,
        params: Params,
        targets: Params,
        lesson: Any,
        key: Array,
        step: Array,
        *,
        part: Part = WHOLE,
        layout: Layout = IN_PLACE,
    ) -> tuple[Float[Array, ""], Aux]:
        """The loss of one part; the same key for all parts."""


def loss_and_gradients(objective: Objective, parts: int, layout: Layout, shardings: Params) -> Callable:
    """`(params, targets, batch, key, step) -> ((loss, aux), gradients)` over `parts` parts of a batch.

    `shardings`, a tree like the parameters, says where accumulated gradients live.
    """
    if parts == 1:

        def whole(params, targets, batch, key, step):
            loss = jax.value_and_grad(objective.loss, has_aux=True)
            return loss(params, targets, batch, key, step, layout=layout)

        return whole

    def in_parts(params, targets, batch, key, step):
        lesson = objective.teach(targets, batch, key, step, parts=parts, layout=layout)
        learn = jax.value_and_grad(objective.learn, has_aux=True)

        def body(total, index):
            out, grads = learn(params, targets, lesson, key, step, part=Part(index, parts), layout=layout)
            total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
            return jax.lax.with_sharding_constraint(total, shardings), out

        start = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), shardings)
        grads, outs = jax.lax.scan(body, start, jnp.arange(parts))
        return jax.tree.map(lambda x: x.mean(0), outs), grads

    return in_parts
