"""Schedules against the released formulas in float64 NumPy, and timelines: restarted, continued, extended."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.pretrain import small_cxr
from cxr_jax import schedules
from cxr_jax.config import ConfigError
from cxr_jax.experiments import build
from cxr_jax.schedules import Timeline


def values(schedule, steps):
    """A schedule at `range(steps)` or at the steps given."""
    at = range(steps) if isinstance(steps, int) else steps
    return np.array([float(schedule(jnp.asarray(t))) for t in at])


def released_cosine(base, final, total, warmup=0, start=0.0):
    """DINOv2's CosineScheduler: linspace warm-up with its end, then a cosine over the steps that remain."""
    rise = np.linspace(start, base, warmup)
    t = np.arange(total - warmup)
    return np.concatenate([rise, final + 0.5 * (base - final) * (1 + np.cos(np.pi * t / len(t)))])


def trapezoid(peak, end, total, warmup, cooldown):
    """The same warm-up, a plateau, and a line whose end is the first step after the run."""
    line = np.linspace(peak, end, cooldown + 1)[:-1] if cooldown else np.zeros(0)
    return np.concatenate([np.linspace(0, peak, warmup), np.full(total - warmup - cooldown, peak), line])


def test_learning_rate_is_the_released_schedule():
    ours = values(schedules.warmup_cosine_schedule(2e-3, 1e-6, 5, 30), 30)
    np.testing.assert_allclose(ours, released_cosine(2e-3, 1e-6, 30, warmup=5), rtol=1e-5, atol=1e-9)
    assert ours[0] == 0 and ours[4] == pytest.approx(2e-3) and ours[5] == pytest.approx(2e-3)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    np.testing.assert_allclose(
        values(schedules.warmup_cosine_schedule(1.0, 0.0, 0, 8), 8), released_cosine(1.0, 0.0, 8), atol=1e-6
    )


@pytest.mark.parametrize(("start", "end"), [(0.04, 0.2), (0.994, 1.0)])
def test_weight_decay_and_ema_are_cosines_that_reach_their_end_after_the_run(start, end):
    ours = values(schedules.cosine_schedule(start, end, 20), 22)
    np.testing.assert_allclose(ours[:20], released_cosine(start, end, 20), rtol=1e-5)
    np.testing.assert_allclose(ours[20:], end, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_teacher_temperature_rises_linearly_including_its_end_and_stays(steps):
    expected = np.concatenate([np.linspace(0.04, 0.07, steps), np.full(4, 0.07)])
    np.testing.assert_allclose(values(schedules.linear_schedule(0.04, 0.07, steps), steps + 4), expected, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "cooldown"), [(5, 8), (0, 8), (5, 0), (0, 0), (12, 18), (1, 1)])
def test_constant_rate_then_cool_down(warmup, cooldown):
    ours = values(schedules.constant_cooldown_schedule(2e-3, 1e-6, warmup, cooldown, 30), 31)
    np.testing.assert_allclose(ours[:30], trapezoid(2e-3, 1e-6, 30, warmup, cooldown), rtol=1e-5, atol=1e-10)
    assert ours[30] == pytest.approx(1e-6 if cooldown else 2e-3)


def test_the_rate_scales_with_the_root_of_the_batch():
    assert schedules.sqrt_scaled(2e-4, 1024) == 2e-4
    assert schedules.sqrt_scaled(2e-4, 256) == pytest.approx(1e-4)
    assert schedules.sqrt_scaled(2e-4, 304) == pytest.approx(1.0897e-4, rel=1e-4)


SOURCE, MORE = 40, 25
RATE = {"peak": 2e-3, "end": 1e-6}


def rate(timeline, name, cooldown_frac=0.0):
    return timeline.learning_rate(name, *RATE.values(), warmup_frac=0.1, cooldown_frac=cooldown_frac)


def test_a_fresh_timeline_is_the_schedule_itself():
    fresh = Timeline.fresh(SOURCE)
    np.testing.assert_allclose(values(rate(fresh, "cosine"), 40), released_cosine(*RATE.values(), 40, 4), rtol=1e-5)
    flat = values(rate(fresh, "constant_cooldown", 0.25), 40)
    np.testing.assert_allclose(flat, trapezoid(*RATE.values(), 40, 4, 10), rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(values(fresh.linear(0.04, 0.07, 0.3), 12), np.linspace(0.04, 0.07, 12), rtol=1e-6)


def test_a_continued_timeline_goes_on_where_the_source_stood_towards_its_own_end():
    """Position 40 + t, end 65, warm-ups of the source (4 and 12 positions), never repeated."""
    further = Timeline.fresh(SOURCE).after(SOURCE, MORE)
    assert (further.offset, further.end) == (40, 65)
    at = np.arange(SOURCE, SOURCE + MORE)
    np.testing.assert_allclose(
        values(rate(further, "cosine"), MORE), released_cosine(*RATE.values(), 65, 4)[at], rtol=1e-4
    )
    np.testing.assert_allclose(values(further.cosine(0.994, 1.0), MORE), released_cosine(0.994, 1.0, 65)[at], rtol=1e-6)
    np.testing.assert_allclose(values(further.linear(0.04, 0.07, 0.3), MORE), 0.07, rtol=1e-6)
    cooled = values(rate(further, "constant_cooldown", 0.2), MORE)
    np.testing.assert_allclose(cooled, trapezoid(*RATE.values(), 65, 4, 5)[at], rtol=1e-5, atol=1e-10)


def test_a_source_left_early_and_a_third_run():
    """From step 7 of 40: warm-up of 12 positions is still going on. The third run adds up."""
    second = Timeline.fresh(SOURCE).after(7, MORE)
    np.testing.assert_allclose(values(second.linear(0.0, 1.1, 0.3), 8), [0.7, 0.8, 0.9, 1.0, *[1.1] * 4], rtol=1e-6)
    assert second.first_steps(0.3) == 5 and second.first_steps(0.1) == 0
    third = second.after(MORE, 10)
    assert third == Timeline(offset=32, opening_steps=SOURCE, total_steps=10) and third.end == 42


def test_a_branch_that_counts_the_source_s_steps_keeps_its_warm_up():
    longer = Timeline.fresh(SOURCE).after(0, 4 * SOURCE)
    ours = values(rate(longer, "constant_cooldown", 0.1), 160)
    np.testing.assert_allclose(ours, trapezoid(*RATE.values(), 160, 4, 16), rtol=1e-5, atol=1e-10)


def test_errors_of_the_rate():
    with pytest.raises(ValueError, match=r"optim\.schedule='linear': legal are cosine, constant_cooldown"):
        rate(Timeline.fresh(10), "linear")
    with pytest.raises(ValueError, match=r"optim\.cooldown_frac=0\.95.*warm-up"):
        rate(Timeline.fresh(100), "constant_cooldown", 0.95)


def small(**changes):
    config = small_cxr.get_config()
    config.total_steps, config.init_from = 100, "/nowhere"
    config.update(changes)
    config.objective.update(teacher_temperature=(0.04, 0.07))
    return config


def logged(config, saved=None):
    """Everything of the config that changes with the step, at the run's first step."""
    experiment = build(config, saved)
    objective = experiment.objective
    all_of_them = {"ema": objective.ema, "temperature": objective.teacher_temperature, **experiment.schedules}
    return {name: float(schedule(jnp.asarray(0))) for name, schedule in all_of_them.items()}


def test_every_schedule_of_a_run_restarts_or_continues():
    """A resumed run reads its timeline from its own checkpoint: the source of this config does not exist."""
    peak = 3e-3 * (32 / 1024) ** 0.5
    restarted = {"learning_rate": 0.0, "weight_decay": 0.04, "ema": 0.98, "temperature": 0.04}
    assert logged(small()) == pytest.approx(restarted)
    saved = {"timeline": {"offset": 100, "opening_steps": 100, "total_steps": 100}}
    # Half-way of the 200 positions, and 90 after the 10 of the warm-up.
    share = 0.5 * (1 + np.cos(np.pi * 90 / 190))
    continued = {"weight_decay": 0.12, "ema": 0.99, "temperature": 0.07}
    continued["learning_rate"] = 1e-6 + (peak - 1e-6) * share
    assert logged(small(schedules_from="continue"), saved) == pytest.approx(continued)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedules_from": "resume"}, "config.schedules_from='resume': legal are restart, continue"),
        ({"init_network": "student"}, "config.init_network='student': legal are teacher, both"),
        ({"init_parts": "heads"}, "config.init_parts='heads': legal are networks, backbone, everything"),
        ({"optim": {"schedule": "linear"}}, "config.optim.schedule='linear': legal are cosine, constant_cooldown"),
    ],
)
def test_names_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(small(**changes))
