"""The draws: torchvision's distributions, the recipe's probabilities, and that a row depends on key and row alone.

Every test has a fixed seed and refuses at p < 0.001: it says the same on every run, and fails when a distribution is
changed (an aspect that is uniform and not log-uniform, or three tries). 4,000 draws each.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_augmentation as reference
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cxr_jax.data.augment import CropRecipe, blur, jitter, multi_crop_recipes, random_box, random_crop, random_crops
from cxr_jax.data.geometry import denormalise

DRAWS, P = 4000, 1e-3
ASPECT, GLOBAL, LOCAL = (3 / 4, 4 / 3), (0.32, 1.0), (0.05, 0.32)


@pytest.fixture(scope="module")
def draw_boxes():
    """`[DRAWS, 4]` top, left, height, width; compiled once a scale."""
    make = lambda size, scale: jax.vmap(lambda key: jnp.stack(random_box(key, size, scale, ASPECT)))
    compiled = {scale: jax.jit(lambda keys, size, scale=scale: make(size, scale)(keys)) for scale in (GLOBAL, LOCAL)}
    return lambda seed, size, scale: np.asarray(
        compiled[scale](jax.random.split(jax.random.key(seed), DRAWS), jnp.array(size))
    )


def same(ours, theirs):
    """The p-value of both being draws of one distribution (two-sample Kolmogorov-Smirnov)."""
    return scipy.stats.ks_2samp(ours, theirs).pvalue


def uniform(draws, low, high):
    """The p-value of `draws` being uniform."""
    return scipy.stats.kstest(draws, scipy.stats.uniform(low, high - low).cdf).pvalue


# On the wide image most tries of a global crop do not fit, and 4 % of the boxes are the central one after ten.
@pytest.mark.parametrize("size", [(400, 300), (200, 400)])
@pytest.mark.parametrize("scale", [GLOBAL, LOCAL])
def test_boxes_are_distributed_as_torchvisions(draw_boxes, size, scale, capsys):
    ours = draw_boxes(1, size, scale)
    rng = np.random.default_rng(1)
    drawn = [reference.random_resized_crop(rng, size, scale, ASPECT) for _ in range(DRAWS)]
    theirs = np.array([box[:4] for box in drawn])
    p = {}
    for name, value in {
        "area": lambda box: box[:, 2] * box[:, 3] / (size[0] * size[1]),
        "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
    }.items():
        p[name] = float(round(same(value(ours), value(theirs)), 3))
    fell_back = np.mean([not box[4] for box in drawn])
    with capsys.disabled():
        print(f"\nboxes {scale} of {size}: fallback {fell_back:.3f}, p {p}", end=" ")
    assert min(p.values()) > P
    assert (fell_back > 0.02) == (size == (200, 400) and scale == GLOBAL)


def test_area_is_uniform_aspect_log_uniform_and_position_uniform_in_what_is_free(draw_boxes):
    """On an image so large that whole pixels do not show, and where the first try always fits."""
    size = (3000, 3000)
    top, left, height, width = draw_boxes(2, size, LOCAL).T
    area, log_aspect = height * width / (size[0] * size[1]), np.log(width / height)
    assert uniform(area, *LOCAL) > P
    assert uniform(log_aspect, *np.log(ASPECT)) > P
    down, right = top / (size[0] - height), left / (size[1] - width)
    assert uniform(down, 0, 1) > P and uniform(right, 0, 1) > P
    for one, other in ((area, log_aspect), (down, right), (area, down), (log_aspect, right)):
        assert scipy.stats.spearmanr(one, other).pvalue > P, "draws of one box must not depend on each other"


def test_whole_boxes_lie_inside_and_reach_every_border(draw_boxes):
    top, left, height, width = draw_boxes(3, (40, 30), GLOBAL).T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 40).all() and (left + width <= 30).all()
    free = (height < 38) & (width < 28)
    for touches in (top == 0, left == 0, top + height == 40, left + width == 30):
        assert touches[free].any()


def test_a_box_that_never_fits_is_the_largest_central_one_of_a_legal_aspect():
    never_fits = jax.jit(lambda key, size: random_box(key, size, (0.9, 1.0), ASPECT))
    for size, expected in (((20, 400), (0, 186, 20, 27)), ((400, 20), (186, 0, 27, 20))):
        box = [int(x) for x in never_fits(jax.random.key(0), jnp.array(size))]
        assert box == list(expected)
        assert box == list(reference.random_resized_crop(np.random.default_rng(0), size, (0.9, 1.0), ASPECT)[:4])


def many(stage, x, recipe, seed):
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: stage(key, jnp.asarray(x, jnp.float32), recipe)))(keys), np.float64)


def test_jitter_factors_are_uniform_and_orders_even():
    """Read from pictures of two greys: brightness scales a grey, contrast scales the distance to the mean."""
    recipe = CropRecipe(size=2, scale=LOCAL, jitter_prob=1.0)
    brightness = many(jitter, np.full((2, 2), 0.5), dataclasses.replace(recipe, contrast=0.0), 1)[:, 0, 0] / 0.5
    assert uniform(brightness, 0.6, 1.4) > P
    two = np.array([[0.4, 0.6], [0.4, 0.6]])
    contrast = (many(jitter, two, dataclasses.replace(recipe, brightness=0.0), 2)[:, 0, 1] - 0.5) / 0.1
    assert uniform(contrast, 0.6, 1.4) > P
    # Greys of 0.1 and 0.9: whether clipping came before or after the contrast shows in the mean.
    both = many(jitter, np.array([[0.05, 0.95], [0.05, 0.95]]), dataclasses.replace(recipe, contrast=1.0), 3)
    assert scipy.stats.spearmanr(brightness, contrast).pvalue > P
    assert (both >= 0).all() and (both <= 1).all()
    _, order, b, c = (jax.vmap(lambda key: jax.random.split(key, 4))(jax.random.split(jax.random.key(3), DRAWS))).T
    last = np.asarray(jax.vmap(jax.random.bernoulli)(order))
    b, c = (np.asarray(jax.vmap(lambda k, s=s: jax.random.uniform(k, (), jnp.float32, 1 - s, 1 + s))(k))
            for k, s in ((b, 0.4), (c, 1.0)))  # fmt: skip
    expected = [
        reference.contrast(reference.brighten(x, bi), ci) if li else reference.brighten(reference.contrast(x, ci), bi)
        for x, li, bi, ci in zip([np.array([[0.05, 0.95], [0.05, 0.95]])] * DRAWS, last, b, c, strict=True)
    ]
    np.testing.assert_allclose(both, expected, atol=1e-5)
    assert scipy.stats.binomtest(int(last.sum()), DRAWS, 0.5).pvalue > P


def test_sigma_is_uniform():
    """Read from a blurred point: its neighbour over itself is exp(-1 / (2 sigma^2))."""
    point = np.zeros((9, 9))
    point[4, 4] = 1
    blurred = many(blur, point, CropRecipe(size=9, scale=LOCAL, blur_prob=1.0), 4)
    with np.errstate(divide="ignore"):
        sigma = np.sqrt(-0.5 / np.log(blurred[:, 4, 5] / blurred[:, 4, 4]))
    assert uniform(sigma, 0.1, 2.0) > P


SIDE = 9
PROBABILITIES = {  # blur of the first global, the second global and the local crops
    "as_documented": (1.0, 0.1, 0.5),
    "as_released": (0.0, 0.9, 0.5),
}
# Greys of one picture each, and what shows that a stage was applied whatever the others did.
RAMP = np.add.outer(np.arange(SIDE), 2 * np.arange(SIDE)) + 40  # dark: never solarised; blur keeps its mean and slope
CHECKERS = 60 + 20 * (np.indices((SIDE, SIDE)).sum(0) % 2)  # blur of sigma 1 and above makes it even
WHITE = np.full((SIDE, SIDE), 255)  # no contrast changes it, brightness leaves at least 153
SEEN = {
    "flip": (RAMP, lambda x: x[:, 4, 0] > x[:, 4, 8]),
    "jitter": (RAMP, lambda x: np.abs(x.mean((1, 2)) - RAMP.mean() / 255) > 1e-5),
    "blur": (CHECKERS, lambda x: x[:, 4].std(1) < 0.3 * CHECKERS[4].std() / 255),
    "solarise": (WHITE, lambda x: x.mean((1, 2)) < 0.5),
}


@pytest.mark.parametrize("blur_probs", PROBABILITIES)
def test_stages_happen_with_their_probabilities(blur_probs, capsys):
    """Through `random_crops` with all stages on, on whole pictures at their own size."""
    recipes = multi_crop_recipes(
        global_size=SIDE,
        local_size=SIDE,
        num_local=1,
        global_scale=(1.0, 1.0),
        local_scale=(1.0, 1.0),
        aspect=(1.0, 1.0),
        blur_probs=blur_probs,
        blur_sigma=(1.0, 2.0),
    )
    crops = jax.jit(lambda key, images, sizes: [denormalise(x) for x in random_crops(key, images, sizes, recipes)])
    expected = {"flip": (0.5,) * 3, "jitter": (0.8,) * 3, "solarise": (0.0, 0.2, 0.0)}
    expected["blur"] = PROBABILITIES[blur_probs]
    sizes = np.full((DRAWS, 2), SIDE, np.int32)
    for seed, (name, (picture, seen)) in enumerate(SEEN.items()):
        images = np.stack([picture.astype(np.uint8)] * DRAWS)
        counts = [int(seen(np.asarray(x, np.float64)).sum()) for x in crops(jax.random.key(seed), images, sizes)]
        with capsys.disabled():
            print(f"\n{blur_probs}: {name} {[count / DRAWS for count in counts]} of {expected[name]}", end=" ")
        for count, probability in zip(counts, expected[name], strict=True):
            assert scipy.stats.binomtest(count, DRAWS, probability).pvalue > P


ROWS = 8
MIXED = (
    CropRecipe(size=16, scale=GLOBAL, blur_prob=0.5, solarise_prob=0.5, extra={"gamma": 0.2, "rotate_deg": 5.0}),
    CropRecipe(size=8, scale=LOCAL),
)


@pytest.fixture(scope="module")
def crops():
    return jax.jit(lambda key, images, sizes: random_crops(key, images, sizes, MIXED))


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 32, 40)).astype(np.uint8)
    return images, np.array([(32 - row, 25 + row) for row in range(ROWS)], np.int32)


def test_a_batch_is_its_rows_taken_alone(crops, batch):
    """Row r from its own key, image and size, recipe by recipe."""

    @jax.jit
    def alone(key, row, image, size):
        row_key = jax.random.fold_in(key, row)
        keys = [jax.random.fold_in(row_key, number) for number in range(len(MIXED))]
        return [random_crop(key, image, size, recipe, "float32") for key, recipe in zip(keys, MIXED, strict=True)]

    key = jax.random.key(3)
    whole = crops(key, *batch)
    for row in range(ROWS):
        for a, b in zip(whole, alone(key, row, batch[0][row], batch[1][row]), strict=True):
            np.testing.assert_allclose(a[row], b, atol=1e-5)


def test_other_neighbours_change_nothing_another_row_or_key_does(crops, batch):
    (images, sizes), key = batch, jax.random.key(3)
    whole, other = crops(key, images, sizes), images[::-1].copy()
    other[2] = images[2]
    for a, b in zip(whole, crops(key, other, sizes), strict=True):
        np.testing.assert_array_equal(a[2], b[2])
    alike = np.repeat(images[:1], ROWS, axis=0), np.repeat(sizes[:1], ROWS, axis=0)
    rows = np.asarray(crops(key, *alike)[0])
    assert all(np.abs(rows[0] - row).max() > 0.01 for row in rows[1:])
    assert np.abs(np.asarray(crops(jax.random.key(4), *alike)[0]) - rows).max() > 0.01


def test_rows_on_eight_devices_are_those_on_one(crops, batch):
    """And no device asks another for anything."""
    key = jax.random.key(3)
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    spread = tuple(jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp"))) for x in batch)
    everywhere = jax.device_put(key, NamedSharding(mesh, PartitionSpec()))
    program = crops.lower(everywhere, *spread).compile()
    for a, b in zip(crops(key, *batch), program(everywhere, *spread), strict=True):
        assert len({shard.device for shard in b.addressable_shards}) == 8 and b.addressable_shards[0].data.shape[0] == 1
        np.testing.assert_allclose(a, b, atol=1e-5)
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not any(word in program.as_text() for word in collectives)
