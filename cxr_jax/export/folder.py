"""Folders of weights: written from `Contents`, and read back into them, whatever the layout.

In: networks of ours and a `Target`. Out: a folder that holds

    model.safetensors                            the weights, under the layout's names
    config.json                                  the layout's own configuration; the key `cxr_jax` holds what it lacks
    preprocessor_config.json                     Hugging Face alone
    heads.safetensors, classifiers.safetensors   what the layout cannot hold; CheXFound's grid of classifiers

and the same way back, or from a file that somebody else wrote (`foreign`). Weights go from one side to the other a
tensor at a time.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.export import channels, checked, names, timm_config
from cxr_jax.export.classifiers import Grid, grid_name, metadata_of, read_grid
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.foreign import Hints, Recognised, recognise, split_networks, strip_backbone
from cxr_jax.export.heads import (
    beside_tables,
    member,
    projection_options,
    projection_tables,
    read_head,
    write_head,
)
from cxr_jax.export.huggingface import (
    PREPROCESSOR,
    config_json,
    model_from_config,
    normalisation,
    preprocessor_json,
    read_json,
    write_json,
)
from cxr_jax.export.layouts import (
    FORMATS,
    HOLDS,
    Target,
    check_model,
    dress,
    expected_shapes,
    tables,
    undress,
)
from cxr_jax.export.mapping import Flat, Lazy, Tensors, check_depth, flatten, from_layout, to_layout, unflatten
from cxr_jax.export.ours import parameter_shapes
from cxr_jax.export.rules import LayoutError
from cxr_jax.export.tensors import find_weights, is_weights, read_tensors, write_safetensors

HEADS_FILE, GRID_FILE, CONFIG = "heads.safetensors", "classifiers.safetensors", "config.json"
FACTS = ("step", "objective", "fingerprint", "targets", "learning_rates")  # that come back with weights of ours
BOTH = ("dinov2", "chexfound")  # layouts that hold teacher and student in one file


@dataclass(frozen=True)
class Written:
    """How many tensors and numbers went where: `{file: count}`, and which of ours went beside the layout's weights."""

    files: dict[str, int]
    ours: int
    parameters: int
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """What was read: the networks, the layout they lay in, how many tensors, and what was assumed or left out."""

    contents: Contents
    target: Target
    tensors: int
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    source_tensors: Tensors = field(default_factory=dict)  # of a file without a folder


def write_folder(folder: Path, contents: Contents, target: Target, allow: tuple[str, ...] = ()) -> Written:
    """Write weights and configuration into `folder`.

    A fine-tuned head has a leading axis of learning rates (`facts["learning_rates"]`). Raises LayoutError for a
    parameter that no table holds and `allow` does not name, ValueError for an illegal size.
    """
    model, geometry = contents.model, contents.geometry
    check_model(model, target.format)
    if len(contents.networks) > 1 and target.format not in BOTH:
        raise LayoutError(
            f"--network=both: legal with --format={', '.join(BOTH)}, cxr_jax; this layout holds one network"
        )
    files: dict[str, dict[str, Lazy]] = {"model.safetensors": {}, HEADS_FILE: {}, GRID_FILE: {}}
    ours, aside = 0, set()
    for network in contents.networks:
        flat = contents.flat(network)
        ours += len(flat)
        prefix = f"{network}." if len(contents.networks) > 1 else ""
        grid = unflatten({path: flat.pop(path) for path in list(flat) if path.startswith("head/")})
        normalisation = {"our_mean": geometry.mean, "our_std": geometry.std}
        held, beside = dress(flat, model, contents.options, target, **normalisation)
        parts = list(dict.fromkeys(path.split("/")[0] for path in held))
        found = [table.under(theirs=prefix) for table in tables(parts, model, contents.options, target)]
        files["model.safetensors"] |= to_layout(held, *found, allow=allow)
        files[HEADS_FILE] |= _beside(beside, contents, prefix, allow)
        if grid:
            file, tensors = _heads(grid["head"], contents, target)
            files[file] |= tensors
        aside |= set(beside) | ({"head/"} if grid and target.format != "chexfound" else set())
    files = {name: tensors for name, tensors in files.items() if tensors}
    for name, tensors in files.items():
        write_safetensors(folder / name, tensors, None if name == "model.safetensors" else _metadata(contents))
    _write_configs(folder, contents, target)
    return Written(
        {name: len(tensors) for name, tensors in files.items()},
        ours,
        sum(int(np.prod(t.shape, dtype=np.int64)) for tensors in files.values() for t in tensors.values()),
        tuple(sorted({path if path.startswith("backbone/") else path.split("/")[0] for path in aside})),
    )


def _beside(flat: Flat, contents: Contents, prefix: str, allow: tuple[str, ...]) -> dict[str, Lazy]:
    flat = {path: np.asarray(leaf) for path, leaf in flat.items() if path not in allow}
    for path in names.PIXELS:
        if path in flat:
            flat[path] = channels.split_pixels(flat[path], 1)
    return to_layout(flat, *(table.under(theirs=prefix) for table in beside_tables(list(flat), contents.options)))


def _heads(grid: dict[str, Any], contents: Contents, target: Target) -> tuple[str, dict[str, Lazy]]:
    """The fine-tuned heads: CheXFound's layout holds one per learning rate, the others one beside their weights."""
    options, rates = contents.options["head"], contents.facts["learning_rates"]
    heads = [flatten(member(grid, i), "head") for i in range(len(rates))]
    if target.format == "chexfound":
        mean_patch = bool(options.get("mean_patch", False))
        prefixes = [f"{grid_name(options['blocks'], mean_patch, rate)}." for rate in rates]
        pairs = zip(heads, prefixes, strict=True)
        return GRID_FILE, {name: t for head, at in pairs for name, t in write_head(head, options, at).items()}
    if len(heads) > 1:
        words = ", ".join(f"{rate:g}" for rate in rates)
        raise LayoutError(f"this run has a head for each of the learning rates {words}; choose one by --learning_rate")
    return HEADS_FILE, dict(write_head(heads[0], options, "head."))


def _metadata(contents: Contents) -> dict[str, str]:
    known = {
        "options": contents.options,
        **{k: contents.facts[k] for k in ("targets", "learning_rates") if k in contents.facts},
    }
    return {"cxr_jax": json.dumps(known)}


def _write_configs(folder: Path, contents: Contents, target: Target) -> None:
    model, geometry = contents.model, replace(contents.geometry, image_size=target.image_size)
    remarks = {
        "format": target.format,
        "model": model | {"image_size": target.image_size},
        "options": contents.options,
        "fit": geometry.fit,
        "mean": list(target.mean),
        "std": list(target.std),
        "block_chunks": target.block_chunks,
        "networks": list(contents.networks),
        **{k: contents.facts[k] for k in ("run", "network", *FACTS) if k in contents.facts},
    }
    if target.format == "hf":
        (network,) = contents.networks.values()
        decoder = contents.options["decoder"] if "decoder" in network else None
        sizes = {"image_size": target.image_size, "num_channels": target.num_channels, "geometry": geometry}
        config = config_json(model, **sizes, decoder=decoder)
        config["cxr_jax"] |= {
            key: remarks[key] for key in remarks if key not in ("model", "mean", "std", "block_chunks")
        }
        constants = {"mean": target.mean, "std": target.std}
        preprocessor = preprocessor_json(geometry, image_size=target.image_size, **constants)
        write_json(folder / PREPROCESSOR, preprocessor)
    else:
        config = {"cxr_jax": remarks}
        if target.format == "timm":
            config = timm_config.config_json(model, target) | config
    write_json(folder / CONFIG, config)


def is_foreign(source: str | Path) -> bool:
    """Whether `source` is weights to import, a file or a folder with config.json, and not a run."""
    return is_weights(Path(source)) or (Path(source) / CONFIG).is_file()


def read_weights(path: Path, hints: Hints | None = None, allow: tuple[str, ...] = ()) -> Read:
    """A folder or a file of PyTorch weights as networks of ours, on one grey channel.

    Raises LayoutError in one line, naming the file or the tensor.
    """
    hints = hints or Hints()
    if not path.exists():
        raise LayoutError(f"{path}: no such file or folder")
    folder = _folder_of(path)
    if folder is None:
        return _read_bare(path, hints, allow)
    config = read_json(folder / CONFIG)
    remarks = config.get("cxr_jax", {})
    checked.remarks(folder / CONFIG, remarks)
    if "model_type" in config:
        return _read_hugging_face(folder, config, remarks, hints, allow)
    if remarks.get("format") in FORMATS:
        return _read_own(folder, remarks, allow)
    if "pretrained_cfg" in config or "architecture" in config:
        said = timm_config.hints(config, hints, folder / CONFIG)
        return _read_bare(find_weights(folder), said, allow)
    raise LayoutError(
        f"{folder / CONFIG}: model_type is missing; legal are folders of transformers and timm, and our own"
    )


def _folder_of(path: Path) -> Path | None:
    """The folder whose configuration speaks for `path`: itself, or that of its weights; None for a file alone.

    Raises LayoutError for a file of weights which the readers of its folder pass over for another.
    """
    if path.is_dir():
        return path
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not (path.parent / CONFIG).is_file():
        return None
    preferred = find_weights(path.parent)
    if preferred.name != path.name:
        raise LayoutError(
            f"{path}: {preferred.name} lies beside it, which everything that opens this folder reads instead; "
            "name that, or take it away"
        )
    return path.parent


def answered(path: Path, hints: Hints) -> str | None:
    """Where the first of `hints` is answered already, as `image_mean: FILE`; None where all can be followed."""
    folder = _folder_of(path)
    if folder is None:
        return None
    config = read_json(folder / CONFIG)
    own = isinstance(config.get("cxr_jax"), dict) and config["cxr_jax"].get("format") in FORMATS
    if "model_type" not in config and not own:
        return None
    flags = {"layout": hints.format, "num_heads": hints.num_heads, "decoder_heads": hints.decoder_heads}
    flags |= {"pos_resize": hints.pos_resize}
    for name, value in flags.items():
        if value is not None:
            return f"--{name}={value}: {folder / CONFIG}"
    said = folder / (PREPROCESSOR if "model_type" in config else CONFIG)
    if said.is_file() and (hints.mean or hints.std):
        return f"--image_mean and --image_std: {said}"
    return None


def _read_hugging_face(folder: Path, config: dict[str, Any], remarks: dict[str, Any], hints: Hints, allow) -> Read:
    model, options = model_from_config(config, folder / CONFIG)
    mean, std = normalisation(folder, config, hints)
    tensors = names.old_spelling(read_tensors(find_weights(folder))[0])
    if not any(name.startswith("decoder.") for name in tensors):
        options.pop("decoder", None)
    empty = tensors.get("embeddings.register_tokens")
    if model["positions"] == "rope" and not model["num_registers"] and empty is None:
        tensors["embeddings.register_tokens"] = np.zeros((1, 0, model["width"]), np.float32)
    target = Target("hf", model["image_size"], mean, std)
    seen = Recognised(target, model, options | _stored(remarks, "options"))
    return _assemble({"teacher": tensors}, seen, folder, remarks, allow, [])


def _read_own(folder: Path, remarks: dict[str, Any], allow) -> Read:
    try:
        model, options = dict(remarks["model"]), dict(remarks["options"])
        constants = tuple(map(float, remarks["mean"])), tuple(map(float, remarks["std"]))
        target = Target(remarks["format"], model["image_size"], *constants, remarks.get("block_chunks") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(f"{folder / CONFIG}: cxr_jax is not what was written ({error})") from None
    checked.model(folder / CONFIG, model, prefix="cxr_jax.model.")
    for key, least in (("mean", None), ("std", 0.0)):
        checked.numbers(folder / CONFIG, f"cxr_jax.{key}", remarks[key], len(remarks["mean"]), least)
    networks, left = split_networks(read_tensors(find_weights(folder))[0])
    return _assemble(networks, Recognised(target, model, options), folder, remarks, allow, left)


def _read_bare(path: Path, hints: Hints, allow) -> Read:
    tensors, _ = read_tensors(path)
    networks, left = split_networks(tensors)
    seen = [recognise(network, hints, str(path)) for network in networks.values()]
    if any(other != seen[0] for other in seen[1:]):
        raise LayoutError(f"{path}: teacher and student are of different architectures")
    return replace(_assemble(networks, seen[0], path, {}, allow, left), source_tensors=tensors)


def _stored(remarks: dict[str, Any], key: str) -> dict[str, Any]:
    found = remarks.get(key, {})
    return {} if not isinstance(found, dict) else {part: value for part, value in found.items() if part != "decoder"}


def _assemble(
    networks: dict[str, Tensors], seen: Recognised, path: Path, remarks: dict, allow, left: list[str]
) -> Read:
    """The networks of a file in our geometry, with the heads that lie beside it."""
    target, options, trees = seen.target, dict(seen.options), {}
    folder = path if path.is_dir() else None
    count, model = 0, seen.model
    facts = {key: remarks[key] for key in FACTS if key in remarks}
    beside = _read_beside(folder, len(networks) > 1)
    try:
        check_model(model, target.format)
        for network, tensors in networks.items():
            flat, model = _network(tensors, seen, str(path), allow)
            extra = _read_heads(beside.get(network, {}), options)
            flat |= extra
            trees[network] = flat
            count += len(tensors) + len(beside.get(network, {}))
        grid = _read_grid(folder, options, facts, model)
        if grid:
            trees["teacher"] |= grid.heads
            count += len(grid.heads)
            options["head"], facts = grid.options, facts | grid.facts
    except ValueError as error:  # of ours, or of a module that refuses its arguments
        message = str(error)
        raise LayoutError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    geometry = Geometry(remarks.get("fit", "pad"), model["image_size"])
    trees = {network: unflatten(flat) for network, flat in trees.items()}
    contents = Contents(trees, model, geometry, options, facts)
    assumed = (*seen.assumed, *(grid.assumed if grid else ()))
    return Read(contents, target, count, assumed, (*left, *(name for name in allow if _holds(networks, name))))


def _holds(networks: dict[str, Tensors], name: str) -> bool:
    return any(name in (*tensors, *strip_backbone(tensors)) for tensors in networks.values())


def _network(tensors: Tensors, seen: Recognised, source: str, allow) -> tuple[Flat, dict[str, Any]]:
    """One network that a layout holds."""
    target = seen.target
    heads = projection_options(tensors) if target.format in BOTH else {}
    held = ["backbone", *(part for part in ("decoder",) if part in seen.options and part in HOLDS[target.format])]
    # A backbone is called so only where heads are beside it; a file may hold it under either name.
    plain = strip_backbone(tensors) if target.format in BOTH else tensors
    found = (*tables(held, seen.model, seen.options, target), *projection_tables(list(heads)))
    check_depth(plain, *found)
    expected = expected_shapes((*held, *heads), seen.model, seen.options | heads, target)
    flat = from_layout(plain, *found, expected=expected, allow=allow)
    return undress(flat, seen.model, seen.options, target, source)


def _read_beside(folder: Path | None, both: bool) -> dict[str, Tensors]:
    """The tensors of heads.safetensors by network."""
    if folder is None or not (folder / HEADS_FILE).is_file():
        return {}
    tensors, _ = read_tensors(folder / HEADS_FILE)
    return split_networks(tensors)[0] if both else {"teacher": tensors}


def _read_heads(tensors: Tensors, options: dict[str, Any]) -> Flat:
    """What lay beside a network: projection heads, a decoder, a mask token, a fine-tuned head with a grid of one."""
    if not tensors:
        return {}
    flat: Flat = {}
    if any(name.startswith("head.") for name in tensors):
        head = read_head(tensors, options["head"], "head.")
        flat |= {path: leaf[None] for path, leaf in head.items()}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    modules = projection_options(rest)
    if any(name.startswith("decoder.") for name in rest):
        modules["decoder"] = options["decoder"]
    expected = parameter_shapes(modules)
    if "decoder" in modules:
        sizes, pixels = modules["decoder"], modules["decoder"]["patch_size"] ** 2
        expected |= dict(zip(names.PIXELS, ((sizes["width"], 1, pixels), (1, pixels)), strict=True))
    if "mask_token" in rest:
        expected["backbone/mask_token"] = tuple(rest["mask_token"].shape)
    flat |= from_layout(rest, *beside_tables(list(expected), options), expected=expected)
    for path in names.PIXELS:
        if path in flat:
            flat[path] = channels.fold_pixels(flat[path])
    return flat


def _read_grid(folder: Path | None, options: dict, facts: dict, model: dict) -> Grid | None:
    """CheXFound's classifiers beside a backbone, stacked over their learning rates."""
    if folder is None or not (folder / GRID_FILE).is_file():
        return None
    tensors, metadata = read_tensors(folder / GRID_FILE)
    return read_grid(tensors, metadata_of(metadata) or {"options": options, **facts}, model["width"])
