"""Topologies by name: what is legal, what is said of the rest, and what is missing."""

import math

import pytest

from configs.pretrain import chexfound_vitl16_pod
from cxr_jax import plan
from cxr_jax.config import ConfigError
from cxr_jax.planning import topology as topologies
from cxr_jax.planning.chips import chip_of_device, chips
from cxr_jax.planning.topology import gpu_description, parse_topology


@pytest.mark.parametrize(
    ("name", "slices", "shape", "devices"),
    [
        ("v5e:16x16", 1, (16, 16), 256),
        ("4xv5e:16x16", 4, (16, 16), 1024),
        ("v5p:4x4x8", 1, (4, 4, 8), 128),
        ("h100:4x8", 1, (4, 8), 32),
        ("cpu:8", 1, (8,), 8),
    ],
)
def test_names(name, slices, shape, devices):
    found = parse_topology(name)
    assert (found.slices, found.shape, found.num_devices) == (slices, shape, devices)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu", ("--topology=tpu", "v5e:16x16", "cpu:8")),
        ("v4:2x2x2", ("v5e, v6e, v5p", "h100")),
        ("v5e:3x5", ("3x5", "16x16", "2x4")),
        ("v5e:16x32", ("legal for v5e",)),
        ("2xh100:4x8", ("no slices", "HOSTSxGPUS")),
        ("h100:32", ("hosts x GPUs",)),
        ("a100:4x16", ("up to 8 GPUs",)),
        ("cpu:2x4", ("number of fake devices",)),
        ("v5e:0x4", ("unknown",)),
    ],
)
def test_what_is_not_legal_is_told_with_what_is(name, words):
    with pytest.raises(ValueError) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:16x16", "requirements-tpu.txt"), ("h100:4x8", "requirements-cuda.txt")]
)
def test_without_its_compiler_fake_devices_stand_in(monkeypatch, name, package):
    monkeypatch.setattr(topologies.util, "find_spec", lambda module: None)
    topology, warning = plan.machine(name)
    assert topology.name == "cpu:8"
    assert f"pip install -r {package}" in warning and "planning for cpu:8 instead" in warning


def test_what_stands_in_keeps_the_images_of_a_device():
    """4,096 images on 256 chips are 16 each, and so 128 on eight devices."""
    config = chexfound_vitl16_pod.get_config()
    said = plan.stand_in(config, parse_topology("v5e:16x16"), parse_topology("cpu:8"))
    assert said.startswith("batch 4096 becomes 128, the same 16 images a device")
    assert config.batch_size == 128
    assert dict(config.mesh) == {"replica": 1, "fsdp": 8, "tensor": 1}


def test_what_stands_in_keeps_the_tensor_axis():
    config = chexfound_vitl16_pod.get_config()
    config.mesh.update(replica=1, fsdp=64, tensor=-1)
    plan.stand_in(config, parse_topology("v5e:16x16"), parse_topology("cpu:8"))
    assert config.batch_size == 128 and dict(config.mesh) == {"replica": 1, "fsdp": 2, "tensor": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 100}, "config.batch_size=100 must be a multiple of 256"),
        ({"objective.group_size": 3}, "config.objective.group_size=3 must divide the 16 images"),
        ({"mesh.fsdp": 7}, "does not cover 256 devices"),
        ({"mesh.tensor": 16}, "config.mesh.tensor=16 does not divide the 8 devices of cpu:8"),
    ],
)
def test_what_the_asked_machine_could_not_run_is_refused_by_what_was_typed(changes, message):
    config = chexfound_vitl16_pod.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        plan.stand_in(config, parse_topology("v5e:16x16"), parse_topology("cpu:8"))


def test_an_unknown_topology_is_a_matter_of_the_config():
    with pytest.raises(ConfigError, match="legal topologies"):
        plan.machine("v9:1")


def test_every_chip_has_what_a_bound_needs_and_names_its_source():
    for chip in chips().values():
        assert chip.source
        if chip.platform != "cpu":
            peaks = (chip.flops, chip.memory, chip.memory_bandwidth, chip.network, chip.far_network)
            assert all(peak > 0 for peak in peaks) and 0 < chip.usable <= 1
            assert chip.far_network < chip.network < chip.memory_bandwidth
            # Between 50 and 600 FLOPs per byte: a slip of a unit would not lie there.
            assert 50 < chip.flops / chip.memory_bandwidth < 600
    assert chip_of_device("TPU v5 lite").name == "v5e"
    assert chip_of_device("abacus") is None


def test_all_slices_of_the_table_can_be_named():
    for chip in (chip for chip in chips().values() if chip.platform == "tpu"):
        for shape in chip.shapes:
            assert parse_topology(f"{chip.name}:{shape}").num_devices == math.prod(map(int, shape.split("x")))


def test_the_gpu_compiler_is_told_numbers_of_the_table():
    text = gpu_description(chips()["h100"])
    for line in ("core_count: 132", "device_memory_size: 84942979072", "major: 9 minor: 0"):
        assert line in text
    assert text.count("{") == text.count("}")
