"""Parts of a batch: what gradient accumulation runs one after the other.

In: arrays whose rows come in `groups` equal groups, and a `Part`. Out: the rows of that part, or the parts put together
again.

Part j of n holds the groups j, j + n, j + 2n, ...: every device that holds neighbouring groups has work in every part,
nothing moves between devices, and which rows a part holds does not depend on their number.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from cxr_jax.models.layers import Layout, Part


class Rows(NamedTuple):
    """How many groups there are in the whole batch, and where rows live."""

    groups: int
    layout: Layout


def take(tree: Any, part: Part, rows: Rows) -> Any:
    """The rows of `part` of every array of a tree; the whole arrays for `WHOLE`."""
    if part.of == 1:
        return tree

    def one(x):
        x = x.reshape(rows.groups // part.of, part.of, -1, *x.shape[1:])
        x = jax.lax.dynamic_index_in_dim(x, part.index, axis=1, keepdims=False)
        return rows.layout.rows(x.reshape(-1, *x.shape[2:]))

    return jax.tree.map(one, tree)


def put_together(tree: Any, rows: Rows) -> Any:
    """Arrays `[parts, rows of a part, ...]` as `[rows, ...]` in the order of the whole batch."""

    def one(x: Float[Array, "parts _ *rest"]) -> Float[Array, " _ *rest"]:
        parts = x.shape[0]
        x = x.reshape(parts, rows.groups // parts, -1, *x.shape[2:]).swapaxes(0, 1)
        return rows.layout.rows(x.reshape(-1, *x.shape[3:]))

    return jax.tree.map(one, tree)
