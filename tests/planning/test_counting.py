"""Products that a program needs: equal ones once, what is recomputed by wish again. Bytes that scans keep."""

import jax
import jax.numpy as jnp

from cxr_jax.planning.flops import distinct_flops, flops, kept_bytes, trace

X, W = jax.ShapeDtypeStruct((3, 4), "float32"), jax.ShapeDtypeStruct((4, 4), "float32")
ONCE = 2 * 3 * 4 * 4


def test_equal_products_of_equal_operands_count_once():
    def program(x, w):
        scaled = 2.0 * w
        first = jnp.sin(x @ scaled)
        again = jax.jit(lambda a, b: a @ (2.0 * b))(x, w)
        other = x @ (3.0 * w)
        return first + again + other

    assert flops(trace(program, X, W)) == 3 * ONCE
    assert distinct_flops(trace(program, X, W)) == 2 * ONCE


def test_what_a_checkpoint_computes_again_counts_again():
    def loss(x, w):
        return jnp.sin(jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x)).sum()

    plain = lambda x, w: jnp.sin(jnp.sin(x @ w) @ w).sum()
    gradient = lambda f: distinct_flops(trace(jax.grad(f, argnums=(0, 1)), X, W))
    assert gradient(plain) == (2 + 4) * ONCE
    assert gradient(loss) == (2 + 4 + 2) * ONCE - ONCE  # the second product's value is needed by nobody again


def test_iterations_of_a_loop_are_never_equal():
    def program(x, w):
        return jax.lax.scan(lambda c, _: (c + x @ w, None), x, None, length=5)[0]

    assert distinct_flops(trace(program, X, W)) == 5 * ONCE


def test_kept_bytes_are_what_a_scans_forward_pass_stacks():
    """Five layers `sin(x W)`: kept are x and cos(x W) of each; the gradient of the stack of W is not among them."""
    stack = jax.ShapeDtypeStruct((5, 4, 4), "float32")

    def loss(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, stack)[0].sum()

    kept = kept_bytes(trace(jax.grad(loss, argnums=1), X, stack), {stack.shape})
    assert kept == 2 * 5 * 3 * 4 * 4
