"""The one interface between the loop and the science.

In: student parameters, targets, a batch, a key, the step. Out: a loss, named metrics, a carry for the targets, and
second moments of features.

`params` is what the gradient sees. `targets` is what the objective keeps without gradient: an EMA teacher with its
centres, a frozen backbone, or nothing. Both are plain nested dicts of arrays.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from cxr_jax.models.layers import IN_PLACE, Layout
from cxr_jax.models.vit import Features

Params = dict[str, Any]
Batch = dict[str, Array]


class Aux(NamedTuple):
    """What a loss returns beside its value.

    `metrics` are scalars to log, `carry` is what `update_targets` needs from this batch. `moments` are second moments
    `z^T z / rows` of features as they are (neither centred nor normalised), from which the host computes an effective
    rank at log steps, logged as `<name>_rank`.
    """

    metrics: dict[str, Float[Array, ""]]
    carry: Params
    moments: dict[str, Float[Array, "_ _"]]


@runtime_checkable
class Objective(Protocol):
    """What `loop` asks of an objective; nothing here knows an optimiser or a mesh.

    An objective with prototypes also has `num_prototypes`, a dict by loss (`dino`, `ibot`): see `cxr_jax.collapse`.
    One that learns from masks has `needs_masks = True`: its batches then bring `mask` and `has_mask`.
    """

    def init(self, key: Array) -> Params:
        """Fresh student parameters, one top-level entry per sub-module (each is clipped on its own)."""

    def init_targets(self, params: Params) -> Params:
        """Targets to start with, never the same buffers as `params` (the state is donated)."""

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """Loss of a global batch at `step`; every draw comes from `key`."""

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """Targets after the optimiser's step, from the new `params` and this step's carry."""

    def features(
        self,
        params: Params,
        targets: Params,
        images: Float[Array, "b S S"],
        *,
        network: str = "teacher",
        blocks: int = 1,
        layout: Layout = IN_PLACE,
    ) -> Features:
        """Deterministic features of normalised images from the last `blocks` blocks of `teacher` or `student`."""

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array) -> list[list[Array]]:
        """Rows of grey images in 0..1 that show what a step with this batch and `key` trains on.

        With the networks, so that an objective which makes pictures can show its own.
        """
