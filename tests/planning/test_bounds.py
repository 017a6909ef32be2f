"""Bounds by hand, on a chip with round numbers."""

import pytest

from cxr_jax.planning.bounds import Work, bounds_of, run_of
from cxr_jax.planning.chips import Chip

CHIP = Chip("toy", "tpu", (), (), "", flops=100.0, memory=10.0, memory_bandwidth=10.0, network=4.0, far_network=1.0)


def test_the_slowest_part_bounds_the_step():
    work = Work(flops=400.0, model_flops=300.0, memory=20.0, near=4.0, far=0.5)
    bounds = bounds_of(work, CHIP)
    assert (bounds.compute, bounds.memory, bounds.network) == (4.0, 2.0, 1.0)
    assert (bounds.step, bounds.by, bounds.mfu) == (4.0, "compute", 0.75)


def test_the_way_between_slices_can_be_the_slowest():
    bounds = bounds_of(Work(flops=100.0, model_flops=100.0, memory=0.0, near=4.0, far=8.0), CHIP)
    assert (bounds.step, bounds.by, bounds.mfu) == (8.0, "network", 0.125)


def test_without_peaks_there_are_no_bounds():
    assert bounds_of(Work(1.0, 1.0, 1.0, 1.0, 1.0), Chip("cpu", "cpu", (), (), "")) is None


def test_a_run():
    run = run_of(0.5, steps=7200, batch_size=64, devices=8, price_per_chip_hour=2.0)
    assert run == {"images_per_sec": 128.0, "steps": 7200, "hours": 1.0, "chip_hours": 8.0, "cost": pytest.approx(16.0)}
    assert "cost" not in run_of(0.5, steps=1, batch_size=1, devices=1, price_per_chip_hour=0.0)
