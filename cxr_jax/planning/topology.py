"""Machines by name, as devices to compile for: none of them has to be there.

In: `v5e:16x16` (one slice), `4xv5e:16x16` (four slices), `h100:4x8` (hosts x GPUs), `cpu:8` (fake devices). Out: a
`Topology`, and its devices from the real compiler: libtpu for TPUs, JAX's CUDA plugin for GPUs.
"""

import math
import os
import re
from dataclasses import dataclass
from importlib import util

import jax
from jax.experimental import topologies

from cxr_jax.planning.chips import Chip, chips

NAME = re.compile(r"(?:(?P<slices>[1-9]\d*)x)?(?P<chip>[a-z]\w*):(?P<shape>[1-9]\d*(?:x[1-9]\d*)*)")
EXAMPLES = "v5e:16x16, 4xv5e:16x16 (slices), v6e:8x16, v5p:4x4x8, h100:4x8 (hosts x GPUs), a100:1x8, h200:4x8, cpu:8"
MOST_FAKE = 1024
GPUS_PER_HOST = 8
# Otherwise libtpu asks a metadata server which TPU this is, and complains at length that there is none.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
PACKAGES = {
    "tpu": ("libtpu", "requirements-tpu.txt", "libtpu, the TPU compiler"),
    "cuda": ("jax_cuda13_plugin", "requirements-cuda.txt", "JAX's CUDA plugin, the GPU compiler"),
}


class MissingCompiler(Exception):
    """The compiler of a platform is not installed; the message says what to install."""


@dataclass(frozen=True)
class Topology:
    """`slices` (of TPUs) or 1, times `shape` chips; for GPUs the shape is hosts x GPUs."""

    name: str
    chip: Chip
    slices: int
    shape: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        return self.slices * math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """The topology called `name`. Raises ValueError with the legal names."""
    match = NAME.fullmatch(name)
    chip = chips().get(match["chip"]) if match else None
    if not match or not chip:
        raise ValueError(
            f"--topology={name}: unknown; chips are {', '.join(chips())}, and legal topologies such as {EXAMPLES}"
        )
    shape, slices = tuple(int(n) for n in match["shape"].split("x")), int(match["slices"] or 1)
    legal = f"legal for {chip.name} are {', '.join(chip.shapes)}"
    if chip.platform == "tpu" and match["shape"] not in chip.shapes:
        raise ValueError(f"--topology={name}: no slice of shape {match['shape']}; {legal}")
    if chip.platform != "tpu" and match["slices"]:
        raise ValueError(f"--topology={name}: {chip.name} has no slices; {legal}")
    if chip.platform == "cuda" and (len(shape) != 2 or shape[1] > GPUS_PER_HOST):
        raise ValueError(f"--topology={name}: {match['shape']} is not hosts x GPUs; {legal}")
    if chip.platform == "cpu" and (len(shape) != 1 or shape[0] > MOST_FAKE):
        raise ValueError(f"--topology={name}: {match['shape']} is not a number up to {MOST_FAKE}; {legal}")
    return Topology(name, chip, slices, shape)


def prepare(topology: Topology) -> None:
    """Settings that must be made before JAX touches a device: a plan computes nothing, so the host's CPU will do."""
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def check_compiler(topology: Topology) -> None:
    """Raises MissingCompiler, with the package to install, unless the platform's compiler is there."""
    if topology.chip.platform in PACKAGES:
        module, file, what = PACKAGES[topology.chip.platform]
        if util.find_spec(module) is None:
            raise MissingCompiler(f"--topology={topology.name} needs {what}: python -m pip install -r {file}")


def devices_of(topology: Topology) -> list:
    """The devices of a topology, to compile for and never to run on."""
    if topology.chip.platform == "cpu":
        return jax.devices("cpu")
    if topology.chip.platform == "cuda":
        hosts, gpus = topology.shape
        options = {"topology": f"1x{hosts}x{gpus}", "target_config": gpu_description(topology.chip)}
        return list(topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices)
    shape = "x".join(map(str, topology.shape))
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{topology.chip.name}:{shape}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


def gpu_description(chip: Chip) -> str:
    """What the GPU compiler wants to know of a device, as the text of its `GpuTargetConfigProto`."""
    model = chip.model
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": model["shared_core"],
        "threads_per_core_limit": 2048,
        "core_count": model["cores"],
        "fpus_per_core": model["fpus"],
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "l2_cache_size": model["cache"],
        "clock_rate_ghz": model["clock"],
        "device_memory_size": int(chip.memory),
        "shared_memory_per_block_optin": model["shared_block"],
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    lines = [f"  {name}: {value}" for name, value in facts.items()]
    capability = f"  cuda_compute_capability {{ major: {model['major']} minor: {model['minor']} }}"
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            capability,
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            "runtime_version { major: 13 }",
            f'device_description_str: "{model["name"]}"',
        ]
    )


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """Options under which collectives are what the program asked for, and no device is needed.

    Windowed einsum turns gathers into many permutes that overlap with a product: as many bytes, but uncountable. Tile
    search of the GPU compiler wants a device. On fake CPU devices, machine code is not optimised: nothing runs.
    """
    if platform == "tpu":
        return {
            "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
            "xla_tpu_enable_windowed_einsum_for_reduce_scatter": False,
        }
    if platform == "cuda":
        return {"xla_gpu_enable_triton_gemm": False}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
