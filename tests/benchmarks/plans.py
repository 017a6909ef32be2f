"""The plans that launch/PLANS.md shows, made again by the compilers; each takes a minute or several of two cores.

    python tests/benchmarks/plans.py --output=DIR [--only=NAME,NAME] [--quick]

In: nothing but a Python with requirements-tpu.txt (and requirements-cuda.txt for h100). Out: DIR/NAME.json, and the
rows of the tables on stdout. A plan that stands in DIR already is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
POD = "configs/pretrain/chexfound_vitl16_pod.py"
FOUR_BY_64 = ("--config.mesh.replica=4", "--config.mesh.fsdp=64")
PX_512 = (
    *("--config.model.image_size=512", "--config.crops.global_size=512", "--config.crops.local_size=144"),
    "--config.objective.group_size=8",
)
# Quicker to compile, and shaped alike.
SMALL = (
    "--config.model.variant=vit_s16",
    *(f"--config.heads.{head}_head.num_prototypes=8192" for head in ("dino", "ibot")),
)
TENSOR = ("--config.mesh.tensor=2",)
SEVEN = ("--config.model.variant=vit_7b16", "--config.objective.group_size=2")


def sized(per_device: int, devices: int) -> str:
    return f"--config.batch_size={per_device * devices}"


# name: (topology, arguments)
CASES = {
    "vitl_224_v5e": ("v5e:16x16", (sized(96, 256), *FOUR_BY_64)),
    "vitl_512_v5e": ("v5e:16x16", (sized(16, 256), *PX_512)),
    "vitl_224_h100": ("h100:4x8", (sized(96, 32), "--config.mesh.fsdp=8")),
    "vit7b_v5e": ("v5e:16x16", (sized(2, 256), "--config.mesh.replica=1", "--config.mesh.fsdp=256", *SEVEN)),
    "vit7b_v5p": ("v5p:2x2x1", (sized(2, 4), "--config.mesh.replica=1", "--config.mesh.fsdp=4", *SEVEN)),
    "flat_v5p_16": ("v5p:2x2x4", (sized(32, 16), "--config.mesh.fsdp=8", *SMALL)),
    "flat_v5p_1024": ("v5p:8x8x16", (sized(32, 1024), "--config.mesh.fsdp=8", *SMALL)),
    "flat_v5e_1_slice": ("v5e:4x4", (sized(32, 16), "--config.mesh.fsdp=16", *SMALL)),
    "flat_v5e_4_slices": ("4xv5e:4x4", (sized(32, 64), "--config.mesh.fsdp=16", *SMALL)),
    "tensor_v5e": ("v5e:2x4", (sized(16, 4), "--config.mesh.replica=1", "--config.mesh.fsdp=4", *TENSOR, *SMALL)),
}


def row(name: str, plan: dict) -> str:
    """One line of the table."""
    sizes, gb = plan["bytes_per_device"], 1e9
    cells = [name, plan["topology"], " x ".join(map(str, plan["mesh"].values())), f"{plan['images_per_device']:g}"]
    if not plan["fits"]:
        return " | ".join([*cells, f"does not fit, {sizes['total'] / gb:.1f} GB of {sizes['capacity'] / gb:.1f}"])
    sent, bounds = plan["collective_bytes"], plan["bounds_secs"]
    cells += [f"{sizes['total'] / gb:.1f}", f"{(sizes['activations'] + sizes['temporaries']) / gb:.1f}"]
    cells += [f"{sent['total'] / gb:.2f}", f"{sent['total'] / sent['least']:.2f}", f"{bounds['step'] * 1e3:,.0f}"]
    cells += [
        bounds["by"],
        f"{bounds['mfu']:.0%}",
        f"{plan['run']['images_per_sec']:,.0f}",
        f"{plan['compile_secs']:.0f}",
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of plans, comma-separated; default all")
    parser.add_argument("--quick", action="store_true", help="as `cxr_jax.plan --quick`")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(",") if options.only else CASES:
        topology, arguments = CASES[name]
        file = options.output / f"{name}.json"
        if not file.exists():
            command = [
                "-m",
                "cxr_jax.plan",
                f"--config={POD}",
                f"--topology={topology}",
                *arguments,
                f"--output={file}",
                *(["--quick"] if options.quick else []),
            ]
            subprocess.run([sys.executable, *command], cwd=ROOT, check=False, stdout=sys.stderr)
        print(row(name, json.loads(file.read_text())) if file.exists() else f"{name}: no plan", flush=True)


if __name__ == "__main__":
    main()
