"""Masks on the way from records to the model: the canvas, the same geometry as the image, rows that have none."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.augment import CropRecipe, random_crops, random_mask_crops
from cxr_jax.data.geometry import denormalise, fit_images, fit_masks, unfit, visible
from cxr_jax.data.pipeline import eval_batches, train_batches
from cxr_jax.data.records import DataError
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import StepSource, load_rows
from cxr_jax.sharding import batch_sharding, make_mesh


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


@pytest.fixture
def some_without(split, monkeypatch):
    """The same split, of whose records every third has no mask."""
    real = type(split.records).brief
    strip = lambda record, row: record | {"mask": b""} if row % 3 == 0 else record
    monkeypatch.setattr(type(split.records), "brief", lambda self, row, *names: strip(real(self, row, *names), row))
    return split


def png(mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def test_masks_lie_on_the_canvas_of_their_images_and_are_told_apart_from_none(some_without):
    loaded = load_rows(some_without, range(7), masks=True)
    assert loaded["mask"].shape == loaded["image"].shape and loaded["mask"].dtype == np.uint8
    assert loaded["has_mask"].tolist() == [i % 3 != 0 for i in range(7)]
    for i in range(7):
        height, width = loaded["size"][i]
        if i % 3 == 0:
            assert not loaded["mask"][i].any()
            continue
        expected = np.asarray(Image.open(io.BytesIO(some_without[i]["mask"])))
        np.testing.assert_array_equal(loaded["mask"][i, :height, :width], expected)
        assert expected.any() and not loaded["mask"][i, height:].any() and not loaded["mask"][i, :, width:].any()


@pytest.mark.parametrize("threads", [1, 3])
def test_kept_rows_and_threads_give_the_same_masks(some_without, threads):
    options = {"batch_size": 8, "local_rows": np.arange(8), "total_steps": 100, "seed": 0, "masks": True}
    plain = StepSource(some_without, **options)
    kept = StepSource(some_without, **options, cache_bytes=40 * 80 * 80, threads=threads)
    for step in range(10):
        one, other = kept[step], plain[step]
        assert one.keys() == other.keys() >= {"mask", "has_mask"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_have_masks_when_asked_and_only_then(split):
    options = {"batch_size": 16, "sharding": batch_sharding(make_mesh())}
    stream = {"seed": 0, "total_steps": 1, "prefetch_to_device": 0}
    with_masks = next(train_batches(split, **options, **stream, masks=True))
    without = next(train_batches(split, **options, **stream))
    assert with_masks.keys() - without.keys() == {"mask", "has_mask"}
    for name in without:
        np.testing.assert_array_equal(with_masks[name], without[name])
    *_, last = eval_batches(split, **options, masks=True)
    expected = load_rows(split, np.asarray(last["index"]).tolist(), masks=True)
    np.testing.assert_array_equal(last["mask"], expected["mask"])
    assert np.asarray(last["has_mask"]).all() and not np.asarray(last["valid"]).all()


@pytest.mark.parametrize(
    ("mask", "message"), [(b"\x89PNG torn", "damaged mask"), (png(np.zeros((9, 7), np.uint8)), "its mask is 9x7 px")]
)
def test_a_mask_that_does_not_fit_its_image_is_refused_by_name(split, monkeypatch, mask, message):
    real = type(split.records).brief
    monkeypatch.setattr(
        type(split.records), "brief", lambda self, row, *names: real(self, row, *names) | {"mask": mask}
    )
    with pytest.raises(DataError, match=message) as error:
        load_rows(split, [0], masks=True)
    assert str(error.value).startswith(split.text(0, "image_id"))
    load_rows(split, [0])  # who does not ask for masks does not open them


def test_rows_with_masks_can_be_chosen(phantom_dataset, some_without, monkeypatch):
    chosen = open_split(str(phantom_dataset), "train", masks=True)
    assert [int(row) for row in chosen.rows] == [row for row in range(len(some_without)) if row % 3]
    real = type(some_without.records).brief
    monkeypatch.setattr(
        type(some_without.records), "brief", lambda self, row, *names: real(self, row, *names) | {"mask": b""}
    )
    with pytest.raises(DataError, match="no record of split 'train' has a mask"):
        open_split(str(phantom_dataset), "train", masks=True)


SIZES = np.array([[60, 80], [80, 50], [80, 80], [33, 71]], np.int32)


def ramps(axis):
    """Canvases whose grey level is the pixel's place on an axis, times 3, and where that is at least 90."""
    place = np.indices((80, 80))[axis][None] * 3
    inside = np.indices((80, 80))[0] < SIZES[:, :1, None], np.indices((80, 80))[1] < SIZES[:, 1:, None]
    image = np.where(inside[0] & inside[1], place, 0)
    return image.astype(np.uint8), (255 * (image >= 90)).astype(np.uint8)


def test_the_mask_of_a_crop_is_the_crop_of_the_mask():
    """A ramp tells where every pixel of a crop came from: its mask must be there where the ramp is above the edge.

    Without and with a turn, on either axis; compiling both takes some seconds.
    """
    plain = CropRecipe(size=40, scale=(0.3, 1.0), jitter_prob=0.0, extra={"rotate_deg": 0.0, "gamma": 0.0})
    turned = dataclasses.replace(plain, extra={"rotate_deg": 20.0, "gamma": 0.0})
    image, mask = (jnp.concatenate([jnp.asarray(ramps(axis)[i]) for axis in (0, 1)]) for i in (0, 1))
    key, sizes = jax.random.key(3), jnp.tile(jnp.asarray(SIZES), (2, 1))

    @jax.jit
    def crop(image, mask):
        recipes = (plain, turned)
        return random_crops(key, image, sizes, recipes), random_mask_crops(key, mask, sizes, recipes)

    crops, masks = crop(image, mask)
    white, _ = crop(jnp.full_like(image, 255), mask)
    for j in range(2):
        grey = np.asarray(denormalise(crops[j])) * 255
        # Between the grey levels 87 and 90 of two pixels, a pixel of either side for the turn and the antialiasing;
        # a turn's black corners, which blend into the picture, are left out.
        decided = (np.abs(grey - 88.5) > 6) & (np.asarray(denormalise(white[j])) > 0.999)
        found = np.asarray(masks[j])
        assert decided.mean() > 0.6 and found.dtype == bool
        np.testing.assert_array_equal(found[decided], (grey > 88.5)[decided])
        assert 0.05 < found.mean() < 0.95


def area_share(mask, box, out):
    """The mean of 0..1 over `out` cells of a box, by hand: every pixel cut into 60 x 60 equal points."""
    top, left, height, width = box
    points = 60
    fine = np.kron(mask[top : top + height, left : left + width] / 255, np.ones((points, points)))
    rows = np.arange(height * points) * out[0] // (height * points)
    columns = np.arange(width * points) * out[1] // (width * points)
    by_row = np.stack([fine[rows == r].mean(0) for r in range(out[0])])
    return np.stack([by_row[:, columns == c].mean(1) for c in range(out[1])], axis=1)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_mask_in_the_evaluation_geometry_is_at_least_half_covered(fit):
    """Sides chosen so that points of a pixel divide evenly into cells."""
    rng = np.random.default_rng(0)
    height, width, side = 12, 9, 6
    mask = np.zeros((1, 14, 14), np.uint8)
    mask[0, :height, :width] = 255 * (rng.random((height, width)) < 0.5)
    ours = np.asarray(fit_masks(jnp.asarray(mask), jnp.array([[height, width]]), side, fit))[0]
    shown = np.asarray(visible(jnp.array([[height, width]]), side, fit))[0]
    box = (1, 0, 9, 9) if fit == "crop" else (0, 0, 12, 9)
    # 9 of 12 is 4.5 of 6 px, which rounds to the even 4; they begin at the second.
    out, first = ((6, 4), 1) if fit == "pad" else ((6, 6), 0)
    expected = np.zeros((side, side), bool)
    expected[:, first : first + out[1]] = area_share(mask[0], box, out) >= 0.5
    np.testing.assert_array_equal(ours, expected)
    assert shown.sum() == out[0] * out[1] and shown[:, first : first + out[1]].all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_way_back_to_the_stored_size_ends_where_it_began(fit, axis):
    image, sizes = ramps(axis)[0], jnp.asarray(SIZES)
    back = 255 * np.asarray(unfit(fit_images(jnp.asarray(image), sizes, 64, fit), sizes, (80, 80), fit))
    for i, (height, width) in enumerate(SIZES):
        short = min(height, width)
        cut = [(0, height), (0, width)]
        if fit == "crop":
            cut = [((length - short) // 2, (length - short) // 2 + short) for length in (height, width)]
        (top, bottom), (left, right) = cut
        outside = np.ones((80, 80), bool)
        outside[top:bottom, left:right] = False
        assert not back[i][outside].any()
        # Near the border the ramp bends (the border repeats itself).
        inner = slice(top + 4, bottom - 4), slice(left + 4, right - 4)
        np.testing.assert_allclose(back[i][inner], image[i][inner], atol=0.6)


def test_the_way_back_is_torchs_bilinear_interpolation():
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(2, 14, 14)).astype(np.float32)
    sizes = np.array([[37, 29], [40, 40]], np.int32)
    ours = np.asarray(unfit(jnp.asarray(x), jnp.asarray(sizes), (40, 40), "stretch"))
    for i, (height, width) in enumerate(sizes.tolist()):
        theirs = functional.interpolate(torch.tensor(x[i])[None, None], size=(height, width), mode="bilinear")
        np.testing.assert_allclose(ours[i, :height, :width], theirs[0, 0].numpy(), atol=1e-5)
