"""A bfloat16 teacher rounded by chance follows a student whose steps are below half a unit; to nearest it would not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cxr_jax.objectives.ema import follow, round_by_chance, start_teacher
from tests.objectives.test_self_distillation import OBJECTIVE

BELOW, ABOVE = 1.0, 1.0078125  # two bfloat16 next to each other


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_what_is_rounded_is_the_number(share, sign):
    draws, x = 20_000, BELOW + share * (ABOVE - BELOW)
    rounded = np.asarray(round_by_chance(jnp.full((draws,), sign * x), jax.random.key(3)), np.float64) * sign
    assert set(np.unique(rounded)) <= {BELOW, ABOVE}
    error = 5 * np.sqrt(share * (1 - share) / draws) + 1e-4
    assert np.mean(rounded == ABOVE) == pytest.approx(share, abs=error)


def test_numbers_that_bfloat16_has_stay_as_they_are():
    numbers = jnp.asarray([0.0, 1.0, -2.5, 3e38, jnp.inf, -jnp.inf], jnp.bfloat16)
    rounded = round_by_chance(numbers.astype(jnp.float32), jax.random.key(0))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, numbers)


def after(teacher, student, momentum, steps):
    step = jax.jit(follow)
    for i in range(steps):
        teacher = step(teacher, student, momentum, jnp.asarray(i))
    return teacher


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_bfloat16_teacher_follows_where_rounding_to_nearest_stands_still(param_dtype):
    """Each step moves it by at most 0.0005, an eighth of the half unit at 1; 2,000 steps close 86 % of the gap."""
    momentum, steps = jnp.float32(0.999), 2_000
    start, student = {"w": jnp.ones((512,))}, {"w": jnp.full((512,), 1.5, param_dtype)}
    exact = after(start, student, momentum, steps)["w"].astype(jnp.float32)
    by_chance = after(start_teacher(start, "bfloat16"), student, momentum, steps)["w"].astype(jnp.float32)
    nearest = jnp.bfloat16(1.0)
    for _ in range(steps):
        nearest = (momentum * nearest.astype(jnp.float32) + (1 - momentum) * 1.5).astype(jnp.bfloat16)
    assert exact[0] == pytest.approx(1.4324, abs=1e-3)
    assert float(by_chance.mean()) == pytest.approx(float(exact[0]), abs=0.005)
    assert float(by_chance.std()) < 0.05
    assert float(nearest) == 1.0


def test_on_eight_devices_it_is_the_same_to_the_bit():
    keys = jax.random.split(jax.random.key(0))
    teacher = start_teacher({"w": jax.random.normal(keys[0], (64, 24))}, "bfloat16")
    student = {"w": jax.random.normal(keys[1], (64, 24))}
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.device_put((teacher, student), NamedSharding(mesh, PartitionSpec("fsdp")))
    alone, shared = (after(*trees, jnp.float32(0.9), 3)["w"] for trees in ((teacher, student), shards))
    assert len(shared.sharding.device_set) == 8
    np.testing.assert_array_equal(alone, shared)


def test_teacher_and_gram_teacher_are_kept_in_bfloat16_and_the_student_is_not():
    objective = dataclasses.replace(OBJECTIVE, teacher_dtype="bfloat16", gram_weight=1.0, gram_refresh_every_steps=1)
    params = jax.jit(objective.init)(jax.random.key(0))
    targets = objective.init_targets(params)
    updated = jax.jit(objective.update_targets)(targets, params, {}, jnp.asarray(0))
    for tree in (targets, updated):
        assert {x.dtype.name for x in jax.tree.leaves(tree)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    with pytest.raises(ValueError, match="teacher_dtype='float16': legal are param, bfloat16"):
        dataclasses.replace(OBJECTIVE, teacher_dtype="float16")
