"""What every head reads: the tokens of the last blocks, checked and put side by side.

In: `Features` with a leading block axis in rising order. Out: `[b, blocks*d]` or `[b, n, blocks*d]`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cxr_jax.models.vit import Features


def last_blocks(features: Features, *, blocks: int, width: int) -> Features:
    """The last `blocks` blocks of `features`, or an error that names what the backbone gave instead.

    Raises:
      ValueError: the features hold fewer blocks, or another width.
    """
    found_blocks, found_width = features.cls.shape[0], features.cls.shape[-1]
    if found_blocks < blocks:
        raise ValueError(
            f"head needs the last {blocks} blocks, the features hold {found_blocks}: extract them with "
            f"blocks={blocks}, or build the head with blocks={found_blocks} or fewer"
        )
    if found_width != width:
        raise ValueError(
            f"head was built for features of width {width}, the backbone gives {found_width}: build it with "
            f"width={found_width}"
        )
    return Features(features.cls[-blocks:], features.registers[-blocks:], features.patches[-blocks:])


def side_by_side(tokens: Float[Array, "blocks *rest d"]) -> Float[Array, "*rest blocks_d"]:
    """Concatenate the blocks on the channel axis, the earliest block first."""
    return jnp.concatenate(list(tokens), axis=-1)


def pooled(features: Features, *, mean_patch: bool, reduce_dtype: str) -> Float[Array, "b inputs"]:
    """The CLS tokens of all blocks side by side, with `mean_patch` the last block's mean patch token behind them."""
    x = side_by_side(features.cls)
    if mean_patch:
        mean = features.patches[-1].astype(reduce_dtype).mean(axis=1)
        x = jnp.concatenate([x, mean.astype(x.dtype)], axis=-1)
    return x
