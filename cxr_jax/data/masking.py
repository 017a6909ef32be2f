"""Masks with exact counts: blocks for iBOT, single patches for MAE.

In: a key and static sizes. Out: `mask` (True = hidden) and the positions of the hidden patches, or for MAE the order
in which patches are seen.

MAE shows every image the same number of patches, the first ones of a random order of its own.

iBOT hides blocks in half of the global crops, with mask ratios spread over 0.1-0.5. Here both are static: within a
group of crops exactly half are masked, the i-th of them with n_i patches, the middle of the i-th stratum of the ratio
range, in a random permutation. So a group always hides the same number of patches: nothing is padded, no draw is
rejected, shapes never change. All sorting is batched over groups, which keeps it on the device that holds the group.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

RECTANGLES = 16
MIN_AREA = 4
ASPECT = (0.3, 1 / 0.3)


def mask_counts(num_crops: int, num_patches: int, mask_ratio: tuple[float, float]) -> np.ndarray:
    """Hidden patches of each of a group's `num_crops` crops, half of them 0, in an order that is permuted later."""
    masked = num_crops // 2
    low, high = mask_ratio
    middles = low + (high - low) * (np.arange(masked) + 0.5) / max(masked, 1)
    counts = np.zeros(num_crops, int)
    counts[:masked] = np.round(middles * num_patches)
    return counts


def patch_order(key: Array, grid: int) -> Int[Array, " n"]:
    """Patches in the order in which they are hidden: by the first random rectangle that covers them, then by noise.

    Rectangles have an area of 4 patches up to half of the grid, log-uniform aspect 0.3-3.33, and lie inside the grid.
    """
    key_area, key_aspect, key_top, key_left, key_noise = jax.random.split(key, 5)
    area = jax.random.uniform(key_area, (RECTANGLES,), jnp.float32, MIN_AREA, max(grid * grid / 2, MIN_AREA + 1))
    aspect = jnp.exp(jax.random.uniform(key_aspect, (RECTANGLES,), jnp.float32, *np.log(ASPECT)))
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, grid)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, grid)
    top = jnp.floor(jax.random.uniform(key_top, (RECTANGLES,), jnp.float32) * (grid - height + 1))
    left = jnp.floor(jax.random.uniform(key_left, (RECTANGLES,), jnp.float32) * (grid - width + 1))

    at = jnp.arange(grid)
    in_rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    in_columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    covers = (in_rows[:, :, None] & in_columns[:, None, :]).reshape(RECTANGLES, grid * grid)
    first = jnp.where(covers.any(0), jnp.argmax(covers, axis=0), RECTANGLES)
    return jnp.argsort(first + jax.random.uniform(key_noise, (grid * grid,), jnp.float32))


def block_masks(
    key: Array, *, num_groups: int, num_crops: int, grid: int, mask_ratio: tuple[float, float], dtype="float32"
) -> tuple[Bool[Array, "groups crops n"], Int[Array, "groups m"], Float[Array, "groups m"]]:
    """Masks for `num_groups` groups of `num_crops` global crops on a `grid x grid` patch grid.

    Returns the mask, the positions of its hidden patches in the group's `crops * n` patches (rising, exactly m of
    them), and for each the weight 1 / (hidden patches of its crop) in `dtype`. The draws of a group depend on its
    number alone.
    """
    patches = grid * grid
    counts = mask_counts(num_crops, patches, mask_ratio)
    total = int(counts.sum())

    def group(g):
        key_counts, key_order = jax.random.split(jax.random.fold_in(key, g))
        n = jax.random.permutation(key_counts, jnp.asarray(counts))
        orders = jax.vmap(lambda c: patch_order(jax.random.fold_in(key_order, c), grid))(jnp.arange(num_crops))
        return jnp.argsort(orders, axis=1) < n[:, None], n

    mask, n = jax.vmap(group)(jnp.arange(num_groups))
    hidden_first = jnp.argsort(~mask.reshape(num_groups, -1), axis=1, stable=True)
    positions = hidden_first[:, :total]
    per_crop = jnp.take_along_axis(n, positions // patches, axis=1)
    return mask, positions, 1.0 / per_crop.astype(dtype)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """How many patches of an image stay visible: exactly `round(n (1 - mask_ratio))`.

    Raises ValueError when the ratio is not inside (0, 1), or leaves no patch visible or none hidden.
    """
    count = round(num_patches * (1 - mask_ratio))
    if not 0 < mask_ratio < 1 or not 0 < count < num_patches:
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves {count} of {num_patches} patches visible: it must lie inside (0, 1) and "
            "leave at least one patch visible and one hidden"
        )
    return count


def random_masks(
    key: Array, *, rows: int, num_patches: int, mask_ratio: float
) -> tuple[Int[Array, "rows v"], Int[Array, "rows n"]]:
    """Random patches of every row, as MAE draws them: noise, sorted.

    Returns the `visible` patches in the order drawn, and for each patch its `place` in the whole order, the visible
    ones first: patch i is hidden where `place[:, i] >= v`. The draws of row r depend on the key and r alone.
    """

    def row(r):
        # Named float32: the same patches are drawn whether or not 64-bit mode is on.
        return jax.random.uniform(jax.random.fold_in(key, r), (num_patches,), jnp.float32)

    order = jnp.argsort(jax.vmap(row)(jnp.arange(rows)), axis=1)
    return order[:, : num_visible(num_patches, mask_ratio)], jnp.argsort(order, axis=1)
