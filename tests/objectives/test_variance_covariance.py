"""Variance and covariance terms against their equations in float64 NumPy, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.objectives.variance_covariance import variance_covariance_loss
from cxr_jax.sharding import make_mesh

DEPTHS, ROWS, WIDTH = 3, 24, 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def features(seed=0):
    """Correlated features of standard deviations from below 1 to above it."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((DEPTHS, ROWS, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))
    return x * np.linspace(0.2, 1.5, WIDTH) + 10


def variance_covariance_numpy(x):
    """Feature by feature and pair by pair, with NumPy's own unbiased variance and covariance."""
    variance, covariance = [], []
    for depth in x:
        variance.append(np.mean([max(0, 1 - np.sqrt(np.var(column, ddof=1) + 1e-4)) for column in depth.T]))
        c = np.cov(depth.T)
        covariance.append(sum(c[j, k] ** 2 for j in range(len(c)) for k in range(len(c)) if j != k) / len(c))
    return np.mean(variance), np.mean(covariance)


def test_the_terms_are_vicregs_averaged_over_depths():
    x = features()
    ours = variance_covariance_loss(jnp.asarray(x))
    expected = variance_covariance_numpy(x)
    assert min(expected) > 0.01
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_features_that_vary_enough_cost_nothing_and_collapsed_ones_the_whole_hinge():
    wide = 100 * features()
    assert float(variance_covariance_loss(jnp.asarray(wide))[0]) == 0
    collapsed = np.broadcast_to(features()[:, :1], (DEPTHS, ROWS, WIDTH))
    variance, covariance = variance_covariance_loss(jnp.asarray(collapsed))
    assert float(variance) == pytest.approx(1 - 1e-2) and float(covariance) < 1e-30


def test_independent_features_have_no_covariance_and_copies_have_all():
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    assert float(variance_covariance_loss(jnp.asarray(signs[None]))[1]) == 0
    copies = np.repeat(signs[:, :1], 2, axis=1)
    # Cov = 4/3 for both ordered pairs, divided by d = 2.
    assert float(variance_covariance_loss(jnp.asarray(copies[None]))[1]) == pytest.approx((4 / 3) ** 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_finite_at_zero_and_the_dtype_is_kept(dtype):
    run = jax.jit(jax.value_and_grad(lambda x: sum(variance_covariance_loss(x))))
    loss, gradient = run(jnp.zeros((2, 4, 3), dtype))
    assert loss.dtype == dtype and np.isfinite(gradient).all()


def test_statistics_are_those_of_the_global_batch():
    """Rows split over eight devices give the value and gradient of one; shares of a device would give another value."""
    x = features()
    mesh = make_mesh(fsdp=8)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("replica", "fsdp")))
    run = jax.jit(jax.value_and_grad(lambda x: sum(variance_covariance_loss(x))))
    (one, one_grad), (many, many_grad) = run(jnp.asarray(x)), run(jax.device_put(x, rows))
    assert float(many) == pytest.approx(float(one), rel=1e-12)
    np.testing.assert_allclose(many_grad, one_grad, atol=1e-13)
    apart = [sum(variance_covariance_numpy(share)) for share in np.split(x, 8, axis=1)]
    assert np.mean(apart) != pytest.approx(float(one), rel=0.1)


def test_a_single_row_has_no_statistics():
    with pytest.raises(ValueError, match="at least 2 rows, found 1"):
        variance_covariance_loss(jnp.zeros((2, 1, 3)))
