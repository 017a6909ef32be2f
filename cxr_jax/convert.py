"""Entry: a run's checkpoint as a folder that PyTorch users open, or PyTorch's weights as a run, with a parity report.

    python -m cxr_jax.convert --input=RUN_DIR --output=DIR --format=hf|dinov2|chexfound|timm|mae
        [--network=teacher|student|both] [--step=N] [--parts=networks|backbone] [--learning_rate=X]
        [--image_size=PX] [--num_channels=3|1] [--normalisation=ours|imagenet] [--block_chunks=N]
    python -m cxr_jax.convert --input=FILE_OR_FOLDER --output=RUN_DIR --format=cxr_jax
        [--layout=dinov2|chexfound|timm|mae] [--num_heads=N] [--decoder_heads=N] [--pos_resize=RULE]
        [--image_mean=R,G,B --image_std=R,G,B] [--classifiers=FILE]
    both: [--allow=NAME,...] [--image=FILE] [--overwrite]

In: a run directory, or weights of transformers, DINOv2, CheXFound, timm or MAE (.safetensors, .pth, a folder). Out:
weights, configuration, model card, `cxr_torch.py`, and `conversion.json`: what was mapped, what was not, and the
largest and mean difference of features between the two sides. Everything is built beside its place and renamed, so it
is whole or not there. Features that differ by more than 1e-4 are an error (exit code 1) and leave nothing.
"""

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError

from cxr_jax import imported
from cxr_jax.config import ConfigError, run_entry
from cxr_jax.data.geometry import fit_images
from cxr_jax.data.records import DataError
from cxr_jax.export import parity
from cxr_jax.export.asked import check_hints, check_source
from cxr_jax.export.channels import IMAGENET
from cxr_jax.export.checked import LARGEST_PX
from cxr_jax.export.classifiers import add_classifiers
from cxr_jax.export.contents import Contents
from cxr_jax.export.folder import BOTH, answered, is_foreign, read_weights, write_folder
from cxr_jax.export.foreign import Hints
from cxr_jax.export.huggingface import write_json
from cxr_jax.export.layouts import FORMATS, Target, architecture
from cxr_jax.export.mapping import flatten
from cxr_jax.export.model_card import model_card
from cxr_jax.export.place import check_output, whole_or_nothing
from cxr_jax.export.report import CLASSES, describe, positions_report, worst
from cxr_jax.export.rules import LayoutError
from cxr_jax.export.run import read_run

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
REPORT = "conversion.json"

FLAGS = flags.FLAGS
flags.DEFINE_string("input", None, "Run directory; or a file or folder of PyTorch weights.", required=True)
flags.DEFINE_string("output", None, "Folder to make.", required=True)
flags.DEFINE_enum("format", "hf", [*FORMATS, "cxr_jax"], "What to write: hf = Hugging Face transformers.")
flags.DEFINE_enum("network", None, ["teacher", "student", "both"], "Default: the teacher if there is one.")
flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the latest.")
flags.DEFINE_enum("parts", "networks", ["networks", "backbone"], "Backbone and heads, or the backbone alone.")
flags.DEFINE_float("learning_rate", None, "Which of a fine-tuned run's heads; the evaluation's report names the best.")
flags.DEFINE_integer("image_size", None, "Side in px to bake position embeddings for; default: as trained.")
flags.DEFINE_enum("num_channels", "3", ["1", "3"], "Channels of the exported patch embedding.")
flags.DEFINE_enum("normalisation", "ours", ["ours", "imagenet"], "What exported weights expect of their pixels.")
flags.DEFINE_integer("block_chunks", 0, "DINOv2, CheXFound: chunks that blocks are named in; 0 for none.")
flags.DEFINE_enum("layout", None, [f for f in FORMATS if f != "hf"], "Names of the input file; default: by its names.")
flags.DEFINE_integer("num_heads", None, "Attention heads of the input file; default: width / 64.")
flags.DEFINE_integer("decoder_heads", None, "Attention heads of the input file's MAE decoder; default: 16.")
flags.DEFINE_enum("pos_resize", None, ["offset", "size", "antialias"], "How the input's positions are resized.")
flags.DEFINE_list("image_mean", None, "Mean per channel that the input file expects; default: ImageNet's for 3.")
flags.DEFINE_list("image_std", None, "Standard deviation per channel, likewise.")
flags.DEFINE_string("classifiers", None, "CheXFound's file of GLoRI or linear classifiers for the input's backbone.")
flags.DEFINE_list("allow", [], "Tensors that may stay unmapped, by name.")
flags.DEFINE_string("image", None, "Picture to compare features on, beside the fixed random input.")
flags.DEFINE_bool("overwrite", False, "Replace --output if it is an earlier conversion.")


class ParityError(Exception):
    """Our features and PyTorch's differ by more than the tolerance."""


@dataclass
class Loaded:
    """What was read, from a run or from PyTorch's weights: `target` is the layout that the latter lay in."""

    contents: Contents
    left_out: list[str]
    assumed: tuple[str, ...] = ()
    target: Target | None = None
    tensors: int = 0
    source_tensors: dict[str, Any] = field(default_factory=dict)


def load(source: Path, *, network: str | None, step: int | None, learning_rate: float | None, hints: Hints, allow):
    """A run's checkpoint or PyTorch's weights. Raises ConfigError and DataError naming what is wrong."""
    if not is_foreign(source):
        given = [name for name, value in vars(hints).items() if value is not None]
        if given:
            flag = {"format": "layout", "mean": "image_mean", "std": "image_std"}.get(given[0], given[0])
            raise ConfigError(f"--{flag}: {source} is a run, which says so itself; drop the flag")
        contents, left_out = read_run(source, network, step, learning_rate)
        return Loaded(contents, left_out)
    if step is not None:
        raise ConfigError(f"--step={step}: {source} holds weights and no steps; drop the flag")
    try:
        said = answered(source, hints)
        if said:
            raise ConfigError(f"{said} says so itself; drop the flag")
        read = read_weights(source, hints, allow)
    except LayoutError as error:
        raise DataError(f"--input={error}") from None
    contents = read.contents
    if network in ("teacher", "student"):
        if network not in contents.networks:
            raise ConfigError(f"--network={network}: {source} holds {', '.join(contents.networks)}")
        contents = contents.of(network)
    name = source.resolve().name
    network = " and ".join(contents.networks) if len(contents.networks) > 1 else "its only network"
    facts = {"run": name, "step": None, "network": network, "objective": "imported", "fingerprint": None}
    contents = replace(contents, facts=facts | contents.facts)
    return Loaded(contents, list(read.left_out), read.assumed, read.target, read.tensors, read.source_tensors)


def read_picture(file: Path) -> np.ndarray:
    """An 8-bit picture as grey `[H, W]` uint8. Raises DataError naming the file."""
    try:
        with Image.open(file) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"--image={file}: found mode {image.mode}; legal are 8-bit pictures (PNG, JPEG)")
            return np.array(image.convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"--image={file}: not a readable picture ({error})") from error


class Parity:
    """Both sides of one conversion on the same inputs: first ours, whose arrays may then go, then PyTorch's."""

    def __init__(self, contents: Contents, target: Target, picture: np.ndarray | None):
        self.reason = parity.unavailable(target.format)
        self.target, self.picture = target, picture
        self.geometry = replace(contents.geometry, image_size=target.image_size)
        self.inputs, self.ours = {}, {}
        if self.reason:
            return
        self.inputs = {"random": parity.random_images(target.image_size)}
        if picture is not None:
            sizes = jnp.array([picture.shape])
            fitted = fit_images(jnp.asarray(picture[None]), sizes, target.image_size, self.geometry.fit)
            self.inputs["image"] = (np.asarray(fitted) - np.float32(self.geometry.mean)) / np.float32(self.geometry.std)
        self.blocks = contents.options["head"]["blocks"] if "head" in contents.options else 1
        for network in contents.networks:
            one = contents.of(network)
            self.ours[network] = {name: parity.our_outputs(one, images) for name, images in self.inputs.items()}

    def measure(self, source: Path, noted: dict[str, Any], tensors: dict[str, Any] | None = None) -> dict[str, Any]:
        """The parity part of the report. Raises ParityError above the tolerance, on random input or on the picture."""
        if self.reason:
            return {"checked": False, "reason": self.reason}
        report: dict[str, Any] = {"checked": True, "tolerance": parity.TOLERANCE}
        for name, images in self.inputs.items():
            pixels = parity.pixels_for(images, self.geometry, self.target)
            report[name] = self._compare(source, noted, tensors, name, pixels)
        if self.picture is not None and self.target.format == "hf":
            theirs = parity.transformers_pixels(source, self.picture)
            report["image_through_preprocessor"] = self._compare(source, noted, tensors, "image", theirs)
        for name in self.inputs:
            largest, words = worst(report, name)
            if not largest <= parity.TOLERANCE:
                raise ParityError(
                    f"features on the {name} input differ by {largest:.1e} from PyTorch's; at most "
                    f"{parity.TOLERANCE:.0e} is accepted ({words}); nothing was written"
                )
        return report

    def _compare(self, source, noted, tensors, name, pixels) -> dict[str, Any]:
        found = {}
        for network, ours in self.ours.items():
            theirs = parity.their_outputs(source, self.target, noted, tensors, pixels, self.blocks, network)
            found[network] = parity.differences(ours[name], theirs)
        return found


def convert(
    source: Path,
    output: Path,
    *,
    format: str = "hf",
    network: str | None = None,
    step: int | None = None,
    parts: str = "networks",
    learning_rate: float | None = None,
    image_size: int | None = None,
    num_channels: int = 3,
    normalisation: str = "ours",
    block_chunks: int = 0,
    hints: Hints | None = None,
    classifiers: Path | None = None,
    allow: tuple[str, ...] = (),
    image: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `output` from `source`; returns the report that is saved as conversion.json.

    Raises ConfigError (sizes, networks, an output that exists), DataError (weights or picture), ParityError.
    """
    hints = hints or Hints()
    check_output(output, overwrite, REPORT)
    check_source("input", source)
    for name, file in (("classifiers", classifiers), ("image", image)):
        if file is not None:
            check_source(name, file)
    check_hints(hints)
    if image_size is not None and image_size > LARGEST_PX:
        raise ConfigError(f"--image_size={image_size}: legal are at most {LARGEST_PX} px")
    if format == "cxr_jax" and not is_foreign(source):
        raise ConfigError(
            f"--format=cxr_jax: {source} is no weights to import; legal are .safetensors, .pth, and folders with "
            "config.json"
        )
    if network == "both" and format not in (*BOTH, "cxr_jax"):
        raise ConfigError(f"--network=both: legal with --format={', '.join((*BOTH, 'cxr_jax'))}")
    picture = None if image is None else read_picture(image)

    def build(folder: Path) -> dict[str, Any]:
        loaded = load(source, network=network, step=step, learning_rate=learning_rate, hints=hints, allow=allow)
        if classifiers is not None:
            _with_classifiers(loaded, classifiers)
        if parts == "backbone":
            loaded.contents = replace(loaded.contents.with_parts(("backbone",)), options={})
        _check_allowed(loaded, allow)
        if format == "cxr_jax":
            return _import(folder, source, loaded, picture)
        target = _target(loaded.contents, format, image_size, num_channels, normalisation, block_chunks)
        return _export(folder, source, loaded, target, picture, allow)

    return whole_or_nothing(output, build)


def _check_allowed(loaded: Loaded, allow: tuple[str, ...]) -> None:
    """Raise ConfigError for an allowed name that neither side has: it is misspelt."""
    known = {path for network in loaded.contents.networks.values() for path in flatten(network)}
    for name in allow:
        if name not in known and name not in loaded.left_out:
            raise ConfigError(f"--allow={name}: no tensor has this name")


def _target(contents: Contents, format, image_size, num_channels, normalisation, block_chunks) -> Target:
    """The layout to write. Raises ConfigError for a size or a normalisation that it cannot have."""
    model, geometry = contents.model, contents.geometry
    image_size = model["image_size"] if image_size is None else image_size
    if image_size <= 0 or image_size % model["patch_size"]:
        raise ConfigError(f"--image_size={image_size}: must be a positive multiple of the patch, {model['patch_size']}")
    means, stds = (geometry.mean,) * num_channels, (geometry.std,) * num_channels
    if normalisation == "imagenet":
        if num_channels != 3:
            raise ConfigError(f"--normalisation=imagenet: is for 3 channels, found --num_channels={num_channels}")
        means, stds = IMAGENET
    return Target(format, image_size, means, stds, block_chunks)


def _with_classifiers(loaded: Loaded, file: Path) -> None:
    try:
        loaded.contents, assumed = add_classifiers(loaded.contents, file)
    except LayoutError as error:
        raise DataError(f"--classifiers={error}") from None
    loaded.assumed = (*loaded.assumed, *assumed)


def _facts(loaded: Loaded, contents: Contents) -> dict[str, Any]:
    facts = contents.facts
    return {name: facts.get(name) for name in ("run", "step", "network", "fingerprint")} | {
        "assumed": list(loaded.assumed),
        "left_out": loaded.left_out,
    }


def _export(folder: Path, source: Path, loaded: Loaded, target: Target, picture, allow) -> dict[str, Any]:
    """Weights of `loaded` in a layout; lets go of our arrays before PyTorch reads what was written."""
    contents, model = loaded.contents, loaded.contents.model
    try:
        written = write_folder(folder, contents, target, allow)
    except LayoutError as error:
        kind = ConfigError if str(error).startswith(("model.", "--", "this run has a head")) else DataError
        raise kind(f"--input={source}: {error}") from None
    decoder = any("decoder" in tree for tree in contents.networks.values())
    kind = architecture(model, decoder) if target.format == "hf" else CLASSES[target.format]
    (folder / "README.md").write_text(model_card(contents, target, kind, written))
    shutil.copyfile(Path(parity.__file__).parent / "cxr_torch.py", folder / "cxr_torch.py")
    check = Parity(contents, target, picture)
    any_network = next(iter(contents.networks))
    report = {
        "format": target.format,
        "architecture": kind,
        **_facts(loaded, contents),
        "image_size": target.image_size,
        "num_channels": target.num_channels,
        "mean": list(target.mean),
        "std": list(target.std),
        "tensors": {"ours": written.ours, "theirs": sum(written.files.values())},
        "files": written.files,
        "parameters": written.parameters,
        "unmapped": {"ours": list(allow), "theirs": []},
        "beside": list(written.beside),
        "positions": positions_report(contents.flat(any_network), model, target),
    }
    noted = {"options": contents.options, "learning_rates": contents.facts.get("learning_rates")}
    contents.networks.clear()
    report["parity"] = check.measure(folder, noted)
    write_json(folder / REPORT, report)
    return report


def _import(folder: Path, source: Path, loaded: Loaded, picture) -> dict[str, Any]:
    """PyTorch's weights as a run directory."""
    contents, target = loaded.contents, loaded.target
    check = Parity(contents, target, picture)
    ours = sum(len(flatten(tree)) for tree in contents.networks.values())
    imported.write_run(folder, contents, source.resolve().name)
    decoder = any("decoder" in tree for tree in contents.networks.values())
    kind = architecture(contents.model, decoder) if target.format == "hf" else CLASSES[target.format]
    noted = {"networks": list(contents.networks), "format": target.format, "model": contents.model}
    noted |= {"mean": target.mean, "options": {}}
    contents.networks.clear()
    report = {
        "format": "cxr_jax",
        "architecture": kind,
        **_facts(loaded, contents),
        "model": contents.model,
        "tensors": {"ours": ours, "theirs": loaded.tensors},
        "unmapped": {"ours": [], "theirs": loaded.left_out},
        "parity": check.measure(source if source.is_dir() else source.parent, noted, loaded.source_tensors or None),
    }
    report["left_out"] = []
    write_json(folder / REPORT, report)
    return report


def _numbers(name: str) -> tuple[float, ...] | None:
    values = FLAGS[name].value
    try:
        return None if values is None else tuple(float(value) for value in values)
    except ValueError:
        raise ConfigError(f"--{name}={','.join(values)}: legal are numbers, one per channel") from None


def main() -> None:
    output = Path(FLAGS.output)
    hints = Hints(
        FLAGS.layout,
        FLAGS.num_heads,
        FLAGS.decoder_heads,
        FLAGS.pos_resize,
        _numbers("image_mean"),
        _numbers("image_std"),
    )
    names = ("network", "step", "parts", "learning_rate", "image_size", "normalisation", "block_chunks", "overwrite")
    files = {name: Path(FLAGS[name].value) if FLAGS[name].value else None for name in ("classifiers", "image")}
    try:
        report = convert(
            Path(FLAGS.input),
            output,
            format=FLAGS.format,
            num_channels=int(FLAGS.num_channels),
            hints=hints,
            allow=tuple(FLAGS.allow),
            **files,
            **{name: FLAGS[name].value for name in names},
        )
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(describe(report, output))


if __name__ == "__main__":
    run_entry(main)
