"""Fixed positions against their formula; the three rules of resizing against torch.nn.functional.interpolate."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.models.positions import resize_positions, sincos_positions

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

GRID, WIDTH = 6, 5
POSITIONS = np.random.default_rng(0).standard_normal((1 + GRID**2, WIDTH)).astype(np.float32)


def interpolate(grid_out, rule):
    grid = torch.tensor(POSITIONS[1:]).reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    if rule == "offset":
        factor = (grid_out + 0.1) / GRID
        out = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    else:
        out = torch.nn.functional.interpolate(grid, size=(grid_out,) * 2, mode="bicubic", antialias=rule == "antialias")
    return out.permute(0, 2, 3, 1).reshape(-1, WIDTH).numpy()


@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
@pytest.mark.parametrize("grid_out", [2, 3, 5, 7, 13])
def test_resized_positions_are_torchs(rule, grid_out):
    ours = resize_positions(jnp.asarray(POSITIONS), GRID, grid_out, rule)
    np.testing.assert_allclose(ours[1:], interpolate(grid_out, rule), atol=1e-5)
    np.testing.assert_array_equal(ours[0], POSITIONS[0])


@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
def test_the_learned_grid_is_left_as_it_is(rule):
    np.testing.assert_array_equal(resize_positions(jnp.asarray(POSITIONS), GRID, GRID, rule), POSITIONS)


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="offset, size, antialias"):
        resize_positions(jnp.asarray(POSITIONS), GRID, 3, "bilinear")


def published_sincos(grid, width):
    """MAE's table, patch by patch: sine and cosine of the column, then of the row; CLS has zeros."""
    periods = 10000 ** (np.arange(width // 4) / (width / 4))
    table = [np.zeros(width)]
    for row in range(grid):
        for column in range(grid):
            parts = [f(at / periods) for at in (column, row) for f in (np.sin, np.cos)]
            table.append(np.concatenate(parts))
    return np.array(table)


@pytest.mark.parametrize(("grid", "width"), [(1, 4), (3, 8), (14, 64)])
def test_fixed_positions_are_the_published_ones(grid, width):
    np.testing.assert_allclose(sincos_positions(grid, width), published_sincos(grid, width), atol=1e-12)


def test_fixed_positions_need_four_parts():
    with pytest.raises(ValueError, match="width=6"):
        sincos_positions(2, 6)
