"""Masks: exact counts per group, strata, positions and weights, independence of the number of groups."""

from functools import partial

import jax
import numpy as np
import pytest

from cxr_jax.data.masking import block_masks, mask_counts, patch_order

GROUPS, CROPS, GRID, RATIO = 3, 8, 7, (0.1, 0.5)


@pytest.fixture(scope="module")
def make():
    return jax.jit(partial(block_masks, num_crops=CROPS, grid=GRID, mask_ratio=RATIO), static_argnames=("num_groups",))


@pytest.fixture(scope="module")
def masks(make):
    return tuple(np.asarray(x) for x in make(jax.random.key(0), num_groups=GROUPS))


def strata():
    """Middle of stratum i of the ratio range, in patches, for half of the crops."""
    width = (RATIO[1] - RATIO[0]) / (CROPS // 2)
    return sorted(round((RATIO[0] + (i + 0.5) * width) * GRID**2) for i in range(CROPS // 2))


def test_half_of_each_groups_crops_are_masked_with_one_count_per_stratum(masks):
    counts = masks[0].sum(2)
    for group in counts:
        assert sorted(group[group > 0]) == strata() and (group == 0).sum() == CROPS // 2
    assert len({tuple(group) for group in counts}) > 1, "the counts are dealt in another order in each group"


def test_counts_of_the_recipe():
    """38 images, 76 crops of 14 x 14 patches: 38 masked, mean ratio 0.3."""
    counts = mask_counts(76, 196, RATIO)
    assert (counts > 0).sum() == 38
    assert counts[counts > 0].mean() == pytest.approx(0.3 * 196, abs=0.5)


def test_positions_are_the_hidden_patches_and_weights_their_crops_share(masks):
    mask, positions, weights = masks
    for group in range(GROUPS):
        np.testing.assert_array_equal(positions[group], np.flatnonzero(mask[group]))
        crop = positions[group] // GRID**2
        np.testing.assert_allclose(weights[group], 1 / mask[group].sum(1)[crop], rtol=1e-6)
    # Every masked crop weighs 1 in the sum.
    np.testing.assert_allclose(weights.sum(1), CROPS // 2, rtol=1e-5)


def test_a_groups_masks_depend_on_its_number_alone(make, masks):
    for a, b in zip(make(jax.random.key(0), num_groups=2), masks, strict=True):
        np.testing.assert_array_equal(a, b[:2])
    assert not np.array_equal(masks[0][0], masks[0][1])


def test_patches_are_hidden_in_blocks():
    """A hidden patch has more hidden neighbours than if patches were drawn one by one."""
    grid, hidden = 14, 59
    orders = jax.jit(jax.vmap(lambda key: patch_order(key, grid)))(jax.random.split(jax.random.key(1), 512))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(grid**2), (512, 1)))
    mask = np.zeros((512, grid**2), bool)
    np.put_along_axis(mask, np.asarray(orders)[:, :hidden], True, axis=1)
    mask = mask.reshape(512, grid, grid)
    together = (mask[:, :, :-1] & mask[:, :, 1:]).sum() / mask[:, :, :-1].sum()
    assert together > 0.7, f"{together:.2f} of hidden patches have a hidden right neighbour; 0.3 if drawn one by one"
    # Rectangles inside the grid prefer its middle; even so every patch is hidden sometimes and none always.
    share = mask.mean(0)
    assert share.min() > 0.005 and share.max() < 0.7
