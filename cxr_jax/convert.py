"""Entry: a run's checkpoint as a folder that PyTorch users open, with a report of how equal the two are.

    python -m cxr_jax.convert --input=RUN_DIR --output=DIR --format=hf [--network=teacher|student] [--step=N]
        [--image_size=PX] [--num_channels=3|1] [--image=FILE] [--overwrite]

In: a run directory. Out: `config.json`, `preprocessor_config.json`, `model.safetensors`, `README.md` (model card) and
`conversion.json` (what was mapped, what was left out, and the largest and mean difference of features between our
model and transformers'). The folder is built beside its place and renamed, so it is whole or not there. Features that
differ by more than 1e-4 are an error (exit code 1) and leave nothing.
"""

import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError

from cxr_jax import checkpoint
from cxr_jax.config import ConfigError, run_entry
from cxr_jax.data.geometry import fit_images
from cxr_jax.data.records import DataError
from cxr_jax.export import parity
from cxr_jax.export.huggingface import Geometry, architecture, position_difference, write_folder
from cxr_jax.export.model_card import model_card
from cxr_jax.export.names import flatten
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.vit import ViT

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")

FLAGS = flags.FLAGS
flags.DEFINE_string("input", None, "Run directory.", required=True)
flags.DEFINE_string("output", None, "Folder to make.", required=True)
flags.DEFINE_enum("format", "hf", ["hf"], "Layout to write: hf = Hugging Face transformers.")
flags.DEFINE_enum("network", None, ["teacher", "student"], "Default: the teacher if the run has one, else the student.")
flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the latest.")
flags.DEFINE_integer("image_size", None, "Side in px to bake position embeddings for; default: as trained.")
flags.DEFINE_enum("num_channels", "3", ["1", "3"], "Channels of the exported patch embedding.")
flags.DEFINE_string("image", None, "Picture to compare features on, beside the fixed random input.")
flags.DEFINE_bool("overwrite", False, "Replace --output if it is an earlier conversion.")


class ParityError(Exception):
    """Our features and transformers' differ by more than the tolerance."""


def read_backbone(run_dir: Path, network: str | None, step: int | None) -> tuple[dict, dict, str]:
    """`(backbone, {other part: number of its tensors}, network)` of a checkpoint.

    `network` None takes the teacher where there is one. Raises ConfigError when the run has no such network.
    """
    items = {"teacher": "targets", "student": "params"}
    found = {}
    for name in [network] if network else list(items):
        # Objectives without targets (MAE) leave no such item.
        saved = (checkpoint.find_step(run_dir, step) / items[name]).is_dir()
        tree = checkpoint.read_item(run_dir, items[name], step) if saved else {}
        if "backbone" in tree:
            others = {part: len(flatten({part: leaves})) for part, leaves in tree.items() if part != "backbone"}
            return tree["backbone"], others, name
        found[name] = ", ".join(sorted(tree)) or "nothing"
    described = "; ".join(f"{name} holds {parts}" for name, parts in found.items())
    raise ConfigError(f"--network={network or 'teacher'}: {run_dir} has no backbone there ({described})")


def model_arguments(meta: dict) -> dict:
    """The arguments of `ViT` that the checkpoint was trained with, defaults filled in."""
    parameters = inspect.signature(ViT.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **{name: value for name, value in meta["model"].items() if name in parameters}}


def read_picture(file: Path) -> np.ndarray:
    """An 8-bit picture as grey `[H, W]` uint8. Raises DataError naming the file."""
    try:
        with Image.open(file) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"--image={file}: found mode {image.mode}; legal are 8-bit pictures (PNG, JPEG)")
            return np.array(image.convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"--image={file}: not a readable picture ({error})") from error


def measure(folder: Path, model: dict, backbone: dict, geometry: Geometry, image: Path | None) -> dict:
    """The parity part of the report. Raises ParityError above the tolerance, on random input or on the picture."""
    reason = parity.unavailable()
    if reason:
        return {"checked": False, "reason": reason}
    size = geometry.image_size
    report = {"checked": True, "tolerance": parity.TOLERANCE}
    report["random"] = parity.compare(folder, model, backbone, parity.random_images(model, size))
    if image is not None:
        picture = read_picture(image)
        fitted = fit_images(jnp.asarray(picture[None]), jnp.array([picture.shape]), size, geometry.fit)
        pixels = (np.asarray(fitted) - np.float32(geometry.mean)) / np.float32(geometry.std)
        report["image"] = parity.compare(folder, model, backbone, pixels)
        theirs = parity.transformers_pixels(folder, picture)
        report["image_through_preprocessor"] = parity.compare(folder, model, backbone, pixels, theirs)
    for name in ("random", "image"):
        if name in report and not parity.largest(report[name]) <= parity.TOLERANCE:
            raise ParityError(
                f"features on the {name} input differ by {parity.largest(report[name]):.1e} from transformers'; "
                f"at most {parity.TOLERANCE:.0e} is accepted ({_describe(report[name])}); nothing was written"
            )
    return report


def convert(
    run_dir: Path,
    output: Path,
    *,
    network: str | None = None,
    step: int | None = None,
    image_size: int | None = None,
    num_channels: int = 3,
    image: Path | None = None,
    overwrite: bool = False,
) -> dict:
    """Write the Hugging Face folder `output` from `run_dir`; returns the report that is saved as conversion.json.

    Raises ConfigError (sizes, networks, an output that exists), DataError (weights or picture), ParityError.
    """
    _check_output(output, overwrite)
    meta = checkpoint.read_meta(run_dir, step)
    model = model_arguments(meta)
    if model["positions"] != "learned":
        raise ConfigError(
            f"--input={run_dir}: model.positions={model['positions']!r} cannot be written as --format=hf, a Dinov2 "
            "layout of learned positions; legal are runs with model.positions='learned'"
        )
    backbone, others, network = read_backbone(run_dir, network, step)
    image_size = model["image_size"] if image_size is None else image_size
    if image_size <= 0 or image_size % model["patch_size"]:
        raise ConfigError(f"--image_size={image_size}: must be a positive multiple of the patch, {model['patch_size']}")
    stored = meta["geometry"]
    geometry = Geometry(stored["fit"], image_size, stored["mean"], stored["std"])
    run = run_dir.resolve().name

    def build(folder: Path) -> dict:
        try:
            tensors = write_folder(
                folder, backbone, model, image_size=image_size, num_channels=num_channels, geometry=geometry
            )
        except LayoutError as error:
            raise DataError(f"--input={run_dir}: {error}") from error
        card = {"run": run, "network": network, "image_size": image_size, "num_channels": num_channels}
        (folder / "README.md").write_text(model_card(meta, model, geometry, **card))
        other = 2 * image_size
        report = {
            "format": "hf",
            "architecture": architecture(model),
            **card,
            "step": meta["step"],
            "fingerprint": meta.get("fingerprint"),
            "tensors": {"ours": len(flatten(backbone)), "theirs": len(tensors)},
            "parameters": int(sum(tensor.size for tensor in tensors.values())),
            "unmapped": {"ours": [], "theirs": []},
            "left_out": others,
            "positions": {
                "trained_px": model["image_size"],
                "pos_resize": model["pos_resize"],
                "other_px": other,
                "rms_difference_at_other_px": position_difference(backbone["pos_embed"], model, image_size, other),
            },
            "parity": measure(folder, model, backbone, geometry, image),
        }
        (folder / "conversion.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    return _whole_or_nothing(output, build)


def _check_output(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise ConfigError(f"--output={output} exists; choose another folder or pass --overwrite")
    if not (output / "conversion.json").is_file():
        raise ConfigError(f"--output={output} is not an earlier conversion (no conversion.json), so it is not replaced")


def _whole_or_nothing(output: Path, build: Callable[[Path], dict]) -> dict:
    """Run `build` on a new folder beside `output` and rename it into place; on any error nothing is left."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (output.parent / f".{output.name}.{kind}.{os.getpid()}" for kind in ("new", "old"))
    fresh.mkdir()
    try:
        report = build(fresh)
        if output.exists():
            output.rename(old)
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return report


def _describe(differences: dict) -> str:
    return ", ".join(f"{name} max {d['max']:.1e} mean {d['mean']:.1e}" for name, d in differences.items())


def describe(report: dict, output: Path) -> str:
    """The report as the lines that `convert` prints."""
    tensors, positions, checked = report["tensors"], report["positions"], report["parity"]
    lines = [
        f"input: {report['run']}, step {report['step']}, {report['network']}",
        f"mapped: {tensors['ours']} tensors of ours to {tensors['theirs']} of {report['architecture']} "
        f"({report['parameters']:,} parameters, {report['num_channels']} channels)",
        "unmapped: none of ours, none of theirs",
    ]
    if report["left_out"]:
        parts = ", ".join(f"{name} ({count} tensors)" for name, count in report["left_out"].items())
        lines.append(f"left out: {parts}; this layout holds the backbone only")
    lines.append(
        f"positions: trained for {positions['trained_px']} px, written for {report['image_size']} px; "
        f"at {positions['other_px']} px transformers' own resize differs by "
        f"{100 * positions['rms_difference_at_other_px']:.1f} % rms"
    )
    if not checked["checked"]:
        lines.append(f"parity: {checked['reason']}")
    for name, words in (
        ("random", "fixed random input"),
        ("image", "image, same pixels"),
        ("image_through_preprocessor", "image through preprocessor_config.json"),
    ):
        if name in checked:
            lines.append(f"parity: {words}: {_describe(checked[name])}")
    return "\n".join([*lines, f"written: {output}"])


def main() -> None:
    output = Path(FLAGS.output)
    try:
        report = convert(
            Path(FLAGS.input),
            output,
            network=FLAGS.network,
            step=FLAGS.step,
            image_size=FLAGS.image_size,
            num_channels=int(FLAGS.num_channels),
            image=Path(FLAGS.image) if FLAGS.image else None,
            overwrite=FLAGS.overwrite,
        )
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(describe(report, output))


if __name__ == "__main__":
    run_entry(main)
