"""Maps against boxes: scores worked out by hand, boxes in the image's geometry, rivals that know only places."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.geometry import fit_masks
from cxr_jax.data.source import open_split
from cxr_jax.evals import localisation
from cxr_jax.evals.features import Geometry
from cxr_jax.evals.localisation import SCORES, Boxed

SIDE = 8


def boxed(inside, shown=None):
    return Boxed(0, "Nodule", inside, np.ones((SIDE, SIDE), bool) if shown is None else shown)


def corner(rows, columns):
    inside = np.zeros((SIDE, SIDE), bool)
    inside[:rows, :columns] = True
    return inside


def scores(weights, one):
    return dict(zip(SCORES, localisation.score_map(weights, one), strict=True))


def test_scores_by_hand():
    weights = np.zeros((SIDE, SIDE))
    weights[1, 1], weights[6, 6], weights[0, 0], weights[2, 2] = 4.0, 3.0, 2.0, 1.0
    found = scores(weights, boxed(corner(2, 4)))
    assert found == {
        "hit": 1.0,
        "mass": pytest.approx(6 / 10),
        "iou_0.25": pytest.approx(2 / 10),  # 4 pixels, 2 of them among the 8 of the box
        "iou_0.5": pytest.approx(2 / 9),
        "iou_0.75": pytest.approx(1 / 9),
        "chance": pytest.approx(8 / 64),
    }
    assert scores(weights, boxed(corner(1, 1)))["hit"] == 0.0


def test_padding_is_neither_looked_at_nor_counted():
    shown = np.zeros((SIDE, SIDE), bool)
    shown[:, 2:6] = True
    weights = np.ones((SIDE, SIDE))
    weights[0, 0] = 9.0  # in the padding
    inside = corner(4, 8) & shown
    found = scores(weights, boxed(inside, shown))
    assert found["chance"] == found["mass"] == found["hit"] == 0.5 and found["iou_0.75"] == 0.5


def test_a_map_that_knows_nothing_is_at_chance():
    rng = np.random.default_rng(0)
    one = boxed(corner(3, 5))
    found = np.array([localisation.score_map(rng.random((SIDE, SIDE)), one) for _ in range(3000)]).mean(0)
    chance = 15 / 64
    np.testing.assert_allclose(found[:2], chance, atol=0.02)
    flat = scores(np.ones((SIDE, SIDE)), one)
    assert flat["hit"] == flat["mass"] == flat["chance"] == chance
    nothing = scores(np.zeros((SIDE, SIDE)), one)
    assert nothing["mass"] == chance


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_boxes_take_the_geometry_of_the_image(fit):
    """Against the mask that the box fills: pixels at its edge may fall on either side."""
    size, canvas, side = np.array([60, 90], np.int32), 100, 40
    boxes = np.array([[30.0, 6.0, 24.0, 36.0], [50.0, 30.0, 12.0, 24.0]])
    mask = np.zeros((1, canvas, canvas), np.uint8)
    for x, y, w, h in boxes.astype(int):
        mask[0, y : y + h, x : x + w] = 255
    expected = np.asarray(fit_masks(jnp.asarray(mask), jnp.asarray(size[None]), side, fit))[0]
    inside, shown = localisation.at_input(boxes, size, Geometry(fit, side))
    assert (inside & expected).sum() / (inside | expected).sum() > 0.93
    assert inside.sum() > 50 and not (inside & ~shown).any()
    assert shown.sum() == {"pad": 27 * 40, "crop": 1600, "stretch": 1600}[fit]
    outside, _ = localisation.at_input(np.array([[0.0, 0.0, 10.0, 60.0]]), size, Geometry(fit, side))
    assert outside.any() == (fit != "crop")


def test_boxes_come_from_the_records_by_finding(phantom_dataset):
    split = open_split(str(phantom_dataset), "train")
    names = [
        str(label, "utf8") if isinstance(label, bytes) else label
        for i in range(len(split))
        for label in split[i]["boxes"]["label"]
    ]
    wanted = max(set(names), key=names.count)
    found, others = localisation.boxed_images(split, [wanted], Geometry("pad", 40))
    assert sum(others.values()) == len(names) - names.count(wanted) and wanted not in others
    assert 0 < len(found) <= names.count(wanted)
    for one in found:
        assert one.finding == wanted and 0 < one.inside.mean() < 0.9 and not (one.inside & ~one.shown).any()


def test_rivals_know_only_where_findings_lie():
    inside = [corner(4, 4), corner(2, 2)]
    prior = localisation.mean_boxes([boxed(one) for one in inside], "Nodule")
    assert prior[0, 0] == 1.0 and prior[3, 3] == 0.5 and prior[5, 5] == 0.0
    assert localisation.mean_boxes([], "Nodule") is None
    shown = np.zeros((SIDE, SIDE), bool)
    shown[:, 1:5] = True
    centre = localisation.centre_map(boxed(corner(1, 1), shown))
    assert np.unravel_index(centre.argmax(), centre.shape)[1] in (2, 3)
    np.testing.assert_allclose(centre, centre[::-1])
    np.testing.assert_allclose(centre[:, 1:5], centre[:, 4:0:-1])


def test_a_grid_is_enlarged_between_patch_centres():
    grid = np.arange(4.0).reshape(2, 2)
    big = localisation.enlarge(grid, SIDE)
    assert big[0, 0] == 0.0 and big[-1, -1] == 3.0 and big.mean() == pytest.approx(1.5)
    assert (np.diff(big, axis=0) >= 0).all() and (np.diff(big, axis=1) >= 0).all()
