"""Dice and IoU against scikit-learn pixel by pixel, at both sizes; what is undefined; patient-level intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from cxr_jax.data.geometry import fit_images, fit_masks, unfit, visible
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import load_rows
from cxr_jax.evals import per_image, segmentation
from cxr_jax.evals.features import Geometry
from cxr_jax.sharding import batch_sharding, make_mesh

BATCH = 16
SHARDING = batch_sharding(make_mesh())
GEOMETRY = Geometry("pad", 48)


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


def dark(params, images):
    """Two candidates: what is darker than a threshold, and nothing at all."""
    return jnp.stack([params - images, jnp.full_like(images, -1.0)], axis=1)


@pytest.fixture(scope="module")
def scored(split):
    score = segmentation.make_scorer(dark, geometry=GEOMETRY, batch_size=BATCH, sharding=SHARDING)
    return score, score(split, jnp.asarray(-0.3))


@pytest.fixture(scope="module")
def loaded(split):
    """All rows, and the same in the geometry of the model input."""
    rows = load_rows(split, range(len(split)), masks=True)

    @jax.jit
    def fitted(image, mask, size):
        z = -0.3 - (fit_images(image, size, 48, "pad") - 0.5) / 0.25
        shapes = image.shape[1:]
        return z, unfit(z, size, shapes, "pad"), fit_masks(mask, size, 48, "pad"), visible(size, 48, "pad")

    return rows, [np.asarray(x) for x in fitted(*(jnp.asarray(rows[name]) for name in ("image", "mask", "size")))]


def test_scores_are_scikit_learns(split, scored, loaded):
    overlaps, (rows, (z, back, small, shown)) = scored[1], loaded
    assert overlaps.rows.tolist() == list(range(len(split)))
    found = overlaps.scores(0)
    for i, (height, width) in enumerate(rows["size"][:12]):
        cut = slice(height), slice(width)
        pairs = (rows["mask"][i][cut] > 0, back[i][cut] > 0), (small[i][shown[i]], z[i][shown[i]] > 0)
        expected = [
            metric(true.ravel(), guess.ravel()) for true, guess in pairs for metric in (f1_score, jaccard_score)
        ]
        np.testing.assert_allclose(found[i], expected, atol=1e-6)
    assert 0.05 < found[:, 0].mean() < 0.98
    assert (overlaps.scores(1) == 0).all()
    np.testing.assert_allclose(overlaps.mean_dice(), [found[:, 0].mean(), 0], atol=1e-12)


def test_areas_at_the_stored_size_are_those_of_the_stored_masks(scored, loaded):
    np.testing.assert_array_equal(scored[1].stored["true"][:, 0], (loaded[0]["mask"] > 0).sum((1, 2)))


def test_rows_without_a_mask_are_not_scored(split, scored, monkeypatch):
    real = type(split.records).brief
    strip = lambda record, row: record | {"mask": b""} if row % 4 == 1 else record
    monkeypatch.setattr(type(split.records), "brief", lambda self, row, *names: strip(real(self, row, *names), row))
    fewer = scored[0](split, jnp.asarray(-0.3))
    left = [row for row in range(len(split)) if row % 4 != 1]
    assert fewer.rows.tolist() == left
    for name in segmentation.AREAS:
        np.testing.assert_array_equal(fewer.stored[name], scored[1].stored[name][left])


def test_an_empty_true_mask_is_undefined_whatever_is_predicted():
    shared, predicted, true = np.array([0, 0, 0, 3]), np.array([0, 5, 0, 4]), np.array([0, 0, 6, 6])
    np.testing.assert_array_equal(segmentation.dice(shared, predicted, true), [np.nan, np.nan, 0, 0.6])
    np.testing.assert_array_equal(segmentation.iou(shared, predicted, true), [np.nan, np.nan, 0, 3 / 7])


def test_the_mean_mask_is_the_share_of_images(split, loaded):
    mean = segmentation.mean_mask(split, geometry=GEOMETRY, batch_size=BATCH, sharding=SHARDING)
    np.testing.assert_allclose(mean, loaded[1][2].mean(0), atol=1e-6)


def test_the_hand_made_floor_is_the_mean_mask_and_darkness():
    rng = np.random.default_rng(0)
    mean, images = rng.uniform(0.0, 1.0, (20, 20)), rng.normal(size=(3, 20, 20)).astype(np.float32)
    z = np.asarray(segmentation.floor_function(jnp.asarray(mean), jnp.asarray(images)))
    names = segmentation.floor_candidates()
    assert z.shape == (3, len(names), 20, 20)
    prior = np.log(np.clip(mean, 0.01, 0.99) / (1 - np.clip(mean, 0.01, 0.99)))
    for c in (-1.0, 0.5):
        alone = z[:, names.index(f"darkness 0, bias {c:g}")]
        np.testing.assert_allclose(alone, np.broadcast_to(prior + c, alone.shape), atol=1e-5)
    step = z[:, names.index("darkness 2, bias 0")] - z[:, names.index("darkness 1, bias 0")]
    # The blur is augmentation's and tested there.
    assert np.corrcoef(step.ravel(), -images.ravel())[0, 1] > 0.2
    brighter = np.asarray(segmentation.floor_function(jnp.asarray(mean), jnp.asarray(images * 0.5 + 0.3)))
    np.testing.assert_allclose(brighter, z, atol=1e-4)  # exposure changes nothing


def test_pictures_are_those_that_are_scored(split, scored):
    pictures = segmentation.show(dark, jnp.asarray(-0.3), split, [5, 2], 0, GEOMETRY)
    for row, picture in zip((5, 2), pictures, strict=True):
        areas = {name: scored[1].stored[name][row, 0] for name in segmentation.AREAS}
        assert picture["image"].shape == picture["true"].shape == picture["predicted"].shape
        assert (picture["true"] & picture["predicted"]).sum() == areas["shared"]
        assert picture["predicted"].sum() == areas["predicted"] and picture["true"].sum() == areas["true"]


def test_intervals_draw_patients_and_leave_out_undefined_values():
    """Against a plain loop over the same draws of patients."""
    rng = np.random.default_rng(0)
    patients = np.array(["a", "a", "a", "b", "c", "c", "d", "e"])
    values = rng.random((8, 2))
    values[[1, 4], 0] = np.nan
    found = per_image.means(values, patients, ["x", "y"], resamples=50, seed=3)
    names = np.unique(patients)
    draws = np.random.default_rng(3).integers(len(names), size=(50, len(names)))
    for j, name in enumerate("xy"):
        means = []
        for draw in draws:
            rows = np.concatenate([np.flatnonzero(patients == names[i]) for i in draw])
            means.append(np.nanmean(values[rows, j]) if (~np.isnan(values[rows, j])).any() else np.nan)
        assert found[name]["mean"] == pytest.approx(np.nanmean(values[:, j]))
        np.testing.assert_allclose(found[name]["interval"], np.nanquantile(means, [0.025, 0.975]), atol=1e-12)
    assert found["x"]["images"] == 6 and found["x"]["undefined_images"] == 2 and found["y"]["patients"] == 5


def test_differences_are_paired_and_refuse_other_images():
    rng = np.random.default_rng(1)
    patients, values = np.arange(30).astype(str), rng.random((30, 1))
    shifted = per_image.differences(values, values - 0.1, patients, ["x"], resamples=100)["x"]
    assert shifted["mean"] == pytest.approx(0.1)
    np.testing.assert_allclose(shifted["interval"], 0.1, atol=1e-12)
    holes = values.copy()
    holes[3] = np.nan
    with pytest.raises(ValueError, match="same images"):
        per_image.differences(values, holes, patients, ["x"])


def test_no_value_at_all_is_null():
    found = per_image.means(np.full((4, 1), np.nan), np.arange(4), ["x"], resamples=20)["x"]
    assert found["mean"] is None and found["interval"] is None and found["undefined_images"] == 4
