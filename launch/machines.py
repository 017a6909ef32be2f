"""What cloud launchers must know of a machine by its name: hosts, chips a host, and what the cloud calls it.

In: the names that `cxr_jax.plan` takes, `v5e:16x16`, `2xv5e:16x16` (slices), `h100:4x8` (hosts x GPUs). Out: `Machine`.
Chips a host, accelerator labels and runtime versions are those of Google Cloud's documentation of its machine types.
The shapes of slices are those of `cxr_jax/planning/chips.toml`, once more because launchers run where `cxr_jax` may not
be; a test compares the two.
"""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

NAME = re.compile(r"(?:([1-9]\d*)x)?([a-z]\w*):([1-9]\d*(?:x[1-9]\d*)+)")
EXAMPLES = "v5e:16x16, 2xv5e:16x16 (slices), v6e:8x16, v5p:4x4x8, h100:4x8 (hosts x GPUs), a100:1x8, h200:4x8"
CHIPS_PER_HOST = 4  # of a TPU slice of several hosts
# Name -> GKE's accelerator label, TPU VM type (of the number of chips), TPU VM runtime.
TPUS = {
    "v5e": ("tpu-v5-lite-podslice", lambda chips: f"v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
    "v6e": ("tpu-v6e-slice", lambda chips: f"v6e-{chips}", "v2-alpha-tpuv6e"),
    "v5p": ("tpu-v5p-slice", lambda chips: f"v5p-{2 * chips}", "v2-alpha-tpuv5"),
}
SHAPES = {
    "v5e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "v6e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "v5p": [
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        *("8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    ],
}
# Name -> GKE's accelerator label, GPUs that a host can have.
GPUS = {
    "h100": ("nvidia-h100-80gb", (1, 2, 4, 8)),
    "h200": ("nvidia-h200-141gb", (8,)),
    "a100": ("nvidia-a100-80gb", (1, 2, 4, 8)),
}
ONE_HOST_2D = {"1x1": 1, "2x2": 4, "2x4": 8}


@dataclass(frozen=True)
class Machine:
    """`slices` times `hosts` machines of `chips` TPU chips or GPUs each."""

    kind: str
    slices: int
    hosts: int
    chips: int
    accelerator: str
    topology: str = ""
    tpu_vm_type: str = ""
    runtime: str = ""

    @property
    def num_devices(self) -> int:
        """Chips or GPUs in all."""
        return self.slices * self.hosts * self.chips


def parse_machine(name: str) -> Machine:
    """The machine called `name`; raises ArgumentTypeError with the legal names."""
    match = NAME.fullmatch(name)
    slices, chip, shape = match.groups() if match else (None, "", "")
    sides = [int(side) for side in shape.split("x")] if shape else []
    if chip in TPUS:
        if shape not in SHAPES[chip]:
            legal = ", ".join(SHAPES[chip])
            raise argparse.ArgumentTypeError(f"{name!r}: {chip} has no slices of shape {shape}; legal are {legal}")
        accelerator, vm_type, runtime = TPUS[chip]
        chips = math.prod(sides)
        hosts = 1 if shape in ONE_HOST_2D or chips <= CHIPS_PER_HOST else chips // CHIPS_PER_HOST
        return Machine("tpu", int(slices or 1), hosts, chips // hosts, accelerator, shape, vm_type(chips), runtime)
    if chip in GPUS:
        accelerator, sizes = GPUS[chip]
        if slices or len(sides) != 2 or sides[1] not in sizes:
            legal = ", ".join(f"{chip}:HOSTSx{size}" for size in sizes)
            raise argparse.ArgumentTypeError(f"{name!r} is not hosts x GPUs of a host; legal are {legal}")
        return Machine("gpu", 1, sides[0], sides[1], accelerator)
    raise argparse.ArgumentTypeError(f"{name!r} is unknown; legal are such as {EXAMPLES}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every cloud launcher."""
    parser.add_argument("--name", type=_name, required=True, help="of the job: lower-case letters, digits, dashes")
    parser.add_argument("--machine", type=parse_machine, required=True, help=f"such as {EXAMPLES}")
    described = "NAME=VALUE, a variable of the training's environment; may be repeated"
    parser.add_argument("--env", type=_variable, action="append", default=[], help=described)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the training's command")


def training(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> list[str]:
    """The command after `--`, told to find its peers by itself and how many devices there must be."""
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not command:
        parser.error("no command; write -- python -m cxr_jax.train ... after the launcher's flags")
    names = [name for name, _ in flags.env]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"--env: {', '.join(twice)} is set twice")
    return [*command, f"--num_devices={flags.machine.num_devices}"]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be up to 40 lower-case letters, digits and dashes")
    return text


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag: an integer that is not less."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {least}")
        return int(text)

    return parse


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or "\0" in value:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, such as XLA_FLAGS=--xla_dump_to=/shared/dump")
    return name, value
