"""Attention with padding, the linear map's own gradient, drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.models.layers import Dtypes, attend, kept_rows, linear, make_ffn, residual


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (8, 8), (3, 9)])
def test_padded_attention_is_plain_attention_with_its_gradients(queries, keys):
    """Odd lengths padded to multiples of 8 through the kernel interface, against einsum and softmax in NumPy."""
    q, k, v = (normal(i, 2, n, 2, 4) for i, n in enumerate((queries, keys, keys)))
    g = normal(3, 2, queries, 2, 4)

    def run(implementation, pad_to):
        def loss(q, k, v):
            out = attend(q, k, v, reduce_dtype="float32", implementation=implementation, pad_to=pad_to)
            return (out * g).sum(), out

        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    scores = np.einsum("bqhe,bthe->bhqt", q, k).astype(np.float64) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhqt,bthe->bqhe", weights, v)
    plain, padded = run("plain", 1), run("xla", 8)
    np.testing.assert_allclose(plain[0], expected, atol=1e-5)
    for a, b in zip(plain, padded, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5)


CASES = {
    "qkv": ((3, 4, 6), (6, 3, 2, 5), 1, "abd,dxyz->abxyz"),
    "proj": ((3, 4, 2, 5), (2, 5, 6), 2, "abhe,hed->abd"),
    "rows": ((7, 6), (6, 4), 1, "ad,dk->ak"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_linear_maps_gradient_is_that_of_the_plain_product(name, with_bias):
    x_shape, kernel_shape, num_axes, formula = CASES[name]
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    bias = normal(2, *kernel_shape[num_axes:]) if with_bias else None

    def plain(x, kernel, bias):
        y = jnp.einsum(formula, x, kernel)
        return y if bias is None else y + bias

    g = normal(3, *jax.eval_shape(plain, x, kernel, bias).shape)
    ours, pullback = jax.vjp(lambda *args: linear(*args, num_axes, "float32"), x, kernel, bias)
    theirs, reference = jax.vjp(plain, x, kernel, bias)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(pullback(g)), jax.tree.leaves(reference(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_weight_gradients_of_bfloat16_operands_accumulate_in_float32():
    """4,096 rows: a bfloat16 sum would stall near 256; ours equals the float64 sum of the bfloat16 operands."""
    rows, d, k = 4096, 4, 3
    x = jnp.abs(normal(0, rows, d, dtype=jnp.bfloat16))
    g = jnp.abs(normal(1, rows, k, dtype=jnp.bfloat16))
    kernel, bias = normal(2, d, k), jnp.zeros(k)
    y, pullback = jax.vjp(lambda *args: linear(*args, 1, "float32"), x, kernel, bias)
    dx, dkernel, dbias = pullback(g)
    assert (y.dtype, dx.dtype, dkernel.dtype, dbias.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32)
    wide_x, wide_g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    np.testing.assert_allclose(dkernel, wide_x.T @ wide_g, rtol=1e-5)
    np.testing.assert_allclose(dbias, wide_g.sum(0), rtol=1e-5)


def test_the_result_can_be_wider_than_the_operands():
    y = linear(normal(0, 3, 4, dtype=jnp.bfloat16), normal(1, 4, 5), None, 1, "float32", "float32")
    assert y.dtype == jnp.float32


@pytest.mark.parametrize(("width", "inner"), [(1024, 2736), (192, 512), (64, 176)])
def test_the_swiglu_width_is_two_thirds_of_four_widths_rounded_up_to_eight(width, inner):
    ffn = nnx.eval_shape(lambda: make_ffn("swiglu", width, dtypes=Dtypes(), rngs=nnx.Rngs(0)))
    assert ffn.w_in.kernel.shape == (width, 2, inner)


@pytest.mark.parametrize(
    ("rows", "rate", "kept"), [(16, 0.4, 10), (64, 0.4, 38), (76, 0.4, 46), (4, 0.0, 4), (2, 0.9, 1)]
)
def test_how_many_rows_drop_path_keeps(rows, rate, kept):
    assert kept_rows(rows, rate) == kept


ROWS, GROUPS, RATE = 12, 3, 0.3  # 4 rows a group, 3 kept


def dropped(x, key):
    return residual(x, lambda y, _: 2.0 * y + 1.0, rate=RATE, num_groups=GROUPS, key=key)


def test_drop_path_keeps_exact_subsets_per_group_and_scales_them():
    x = normal(0, ROWS, 2, 3)
    out = np.asarray(dropped(x, jax.random.key(0))) - np.asarray(x)
    branch = (2 * np.asarray(x) + 1) * 4 / 3
    kept = np.array([np.allclose(row, full, atol=1e-5) for row, full in zip(out, branch, strict=True)])
    untouched = np.array([not row.any() for row in out])
    assert (kept ^ untouched).all()
    np.testing.assert_array_equal(kept.reshape(GROUPS, -1).sum(1), [3, 3, 3])


def test_drop_path_computes_only_the_rows_it_keeps():
    seen = []
    residual(
        normal(0, ROWS, 2, 3), lambda y, _: (seen.append(y.shape), y)[1], rate=RATE, num_groups=3, key=jax.random.key(0)
    )
    assert seen == [(9, 2, 3)]


def test_drop_path_is_right_in_expectation_and_draws_every_row_alike():
    x = normal(0, ROWS, 1, 1)
    outs = jax.jit(jax.vmap(lambda key: dropped(x, key)))(jax.random.split(jax.random.key(0), 4000))
    # A row's standard deviation is |branch| * sqrt(1/3); five of them over sqrt(4000) draws.
    bound = 5 * np.abs(2 * np.asarray(x) + 1) * np.sqrt(1 / 3 / 4000) + 1e-4
    assert (np.abs(np.asarray(outs).mean(0) - np.asarray(3 * x + 1)) < bound).all()


def test_without_a_key_or_a_rate_nothing_is_dropped():
    x = normal(0, ROWS, 2, 3)
    np.testing.assert_allclose(dropped(x, None), 3 * x + 1, rtol=1e-5)
    kept = residual(x, lambda y, _: 2.0 * y + 1.0, rate=0.0, num_groups=GROUPS, key=jax.random.key(0))
    np.testing.assert_allclose(kept, 3 * x + 1, rtol=1e-5)


def test_what_stands_beside_the_rows_loses_the_same_ones():
    """Row numbers beside rows that hold them; an array for all rows stays whole."""
    x, shared = jnp.arange(ROWS, dtype=jnp.float32)[:, None, None], jnp.zeros((1, 2, 2))
    seen = []

    def branch(y, beside):
        seen.append((y[:, 0, 0], beside[0][:, 0, 0], beside[1].shape))
        return y

    beside = (x + 100, shared)
    residual(x, branch, rate=RATE, num_groups=GROUPS, key=jax.random.key(0), beside=beside)
    rows, numbers, shape = seen[0]
    np.testing.assert_array_equal(rows + 100, numbers)
    assert len(rows) == 9 and shape == (1, 2, 2)
