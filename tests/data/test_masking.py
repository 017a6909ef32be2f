"""Masks: exact counts per group, strata, positions and weights, independence of the number of groups."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cxr_jax.data.masking import block_masks, mask_counts, num_visible, patch_order, random_masks

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


PATCHES, ROWS = 49, 16


@pytest.fixture(scope="module")
def random_rows():
    return jax.jit(partial(random_masks, num_patches=PATCHES, mask_ratio=0.75), static_argnames="rows")


def test_every_row_sees_the_same_number_of_its_own_patches(random_rows):
    visible, place = (np.asarray(x) for x in random_rows(jax.random.key(0), rows=ROWS))
    assert visible.shape == (ROWS, 12)  # round(49 * 0.25)
    np.testing.assert_array_equal(np.sort(place, axis=1), np.tile(np.arange(PATCHES), (ROWS, 1)))
    for row in range(ROWS):
        # Patch visible[j] stands at place j, and no other patch is among the first twelve.
        np.testing.assert_array_equal(place[row][visible[row]], np.arange(12))
    assert len({tuple(row) for row in visible}) == ROWS


def test_a_rows_patches_depend_on_its_number_alone(random_rows):
    for a, b in zip(random_rows(jax.random.key(0), rows=5), random_rows(jax.random.key(0), rows=ROWS), strict=True):
        np.testing.assert_array_equal(a, b[:5])


def test_patches_are_drawn_alike(random_rows):
    """4,096 rows: each patch visible in 12/49 of them, within five standard deviations."""
    visible, _ = random_rows(jax.random.key(1), rows=4096)
    share, expected = np.bincount(np.asarray(visible).ravel(), minlength=PATCHES) / 4096, 12 / PATCHES
    assert np.abs(share - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 4096)


def test_masks_are_the_same_on_eight_devices_and_none_travels(random_rows):
    sharding = NamedSharding(jax.make_mesh((8,), ("rows",)), PartitionSpec("rows"))
    run = jax.jit(partial(random_masks, rows=ROWS, num_patches=PATCHES, mask_ratio=0.75), out_shardings=sharding)
    for a, b in zip(run(jax.random.key(0)), random_rows(jax.random.key(0), rows=ROWS), strict=True):
        assert len(a.addressable_shards) == 8
        np.testing.assert_array_equal(a, b)
    text = run.lower(jax.random.key(0)).compile().as_text()
    assert not [kind for kind in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if kind in text]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, 0.01, 0.99])
def test_ratios_that_leave_nothing_visible_or_hidden_are_refused(ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} leaves .* of 16 patches"):
        num_visible(16, ratio)
