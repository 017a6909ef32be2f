"""CheXFound's file of classifiers: one fine-tuned head per learning rate, each under a name that says what it reads.

    classifiers_dict.linear:blocks=<n>:avgpool=<True|False>:lr=<0_0010000000>.<tensor>

In: the tensors of such a file, and its metadata where it is ours. Out: our heads with a leading axis of learning rates,
their arguments and facts, and what was assumed. What a name says is believed: with `avgpool=True` a linear classifier
reads the CLS tokens of n blocks and then the mean patch token of the last, which shapes cannot tell from n + 1 CLS
tokens. Metadata, where there is any, must agree with names and shapes.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.export import checked
from cxr_jax.export.contents import Contents
from cxr_jax.export.heads import read_head
from cxr_jax.export.mapping import Flat, Tensors, unflatten
from cxr_jax.export.rules import LayoutError
from cxr_jax.export.tensors import read_tensors

GRID = "classifiers_dict."
GLORI_HEADS = 8  # of CheXFound's GLoRI, which no file of its own says
_NAME = re.compile(r"blocks=(\d+):avgpool=(True|False):lr=(\d+)_(\d+)$")


@dataclass(frozen=True)
class Named:
    """What the name of a classifier says: blocks read, whether the mean patch is read too, learning rate."""

    blocks: int
    mean_patch: bool
    rate: float

    @property
    def reads(self) -> tuple[int, bool]:
        return self.blocks, self.mean_patch


@dataclass(frozen=True)
class Grid:
    """Heads `head/...` with a leading axis of learning rates, their arguments, `targets` and `learning_rates`."""

    heads: Flat
    options: dict[str, Any]
    facts: dict[str, Any]
    assumed: tuple[str, ...]


def grid_name(blocks: int, mean_patch: bool, rate: float) -> str:
    """CheXFound's name of the classifier of one learning rate."""
    return GRID + f"linear:blocks={blocks}:avgpool={mean_patch}:lr={rate:.10f}".replace(".", "_")


def grid_names(tensors: Tensors) -> dict[str, Named]:
    """`{prefix: what it says}` of a classifier file, in the file's order. Raises LayoutError for any other name."""
    found = {}
    for name in tensors:
        key = name.removeprefix(GRID).split(".")[0]
        said = _NAME.search(key)
        if not name.startswith(GRID) or not said:
            legal = f"{GRID}linear:blocks=N:avgpool=True|False:lr=X_Y"
            raise LayoutError(f"{name}: is no classifier of CheXFound ({legal}. ...)")
        found[f"{GRID}{key}."] = Named(int(said[1]), said[2] == "True", float(f"{said[3]}.{said[4]}"))
    if not found:
        raise LayoutError("the file is empty; it is no classifier of CheXFound")
    return found


def metadata_of(metadata: dict[str, str]) -> dict[str, Any]:
    """What we noted in a file's header: `options`, `targets`, `learning_rates`; empty where it is not ours."""
    try:
        noted = json.loads(metadata.get("cxr_jax", "{}"))
    except ValueError as error:
        raise LayoutError(f"its metadata cxr_jax is not JSON ({error})") from None
    checked.remarks("its metadata", noted)
    return noted


def _options(tensors: Tensors, prefix: str, named: Named, width: int) -> dict[str, Any]:
    """Arguments of the head under `prefix`, from its name and its tensors; `width` is that of the backbone."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if f"{prefix}{name}" not in tensors:
            raise LayoutError(f"tensors of the weights file do not match the name table; 1 missing: {prefix}{name}")
        found = tuple(tensors[f"{prefix}{name}"].shape)
        if len(found) != ndim:
            raise LayoutError(f"{prefix}{name}: found shape {found}; legal have {ndim} axes")
        return found

    common = {"width": width, "blocks": named.blocks}
    if f"{prefix}linear.weight" in tensors:
        classes, inputs = shape("linear.weight", 2)
        _check_inputs(f"{prefix}linear.weight", inputs, named.blocks + named.mean_patch, width)
        return common | {"name": "linear", "num_classes": classes, "mean_patch": named.mean_patch}
    decoder_width, inputs = shape("decoder.embed_standart.weight", 2)
    _check_inputs(f"{prefix}decoder.embed_standart.weight", inputs, named.blocks, width)
    classes, classified, _ = shape("decoder.duplicate_pooling", 3)
    return common | {
        "name": "glori",
        "num_classes": classes,
        "decoder_width": decoder_width,
        "num_heads": GLORI_HEADS,
        "ffn_width": shape("decoder.layers.0.linear1.weight", 2)[0],
        "concat_cls": classified > decoder_width,
    }


def _check_inputs(name: str, inputs: int, tokens: int, width: int) -> None:
    if inputs != tokens * width:
        raise LayoutError(
            f"{name}: reads {inputs} numbers, but its name says {tokens} tokens of this backbone's width {width}"
        )


def _agree(noted: dict[str, Any], said: dict[str, Any]) -> None:
    """Raise LayoutError where what was noted of a head is not what names and shapes say."""
    for key, value in said.items():
        if key == "num_heads":
            continue
        found = noted.get(key, False if key == "mean_patch" else value)
        if found != value:
            raise LayoutError(f"noted is {key}={found!r}, but names and shapes of its tensors say {value!r}")


def read_grid(tensors: Tensors, noted: dict[str, Any], width: int) -> Grid:
    """The heads of a classifier file; `noted` is what its metadata, or the folder's config.json, says of them."""
    names = grid_names(tensors)
    (first, named), *_ = names.items()
    for prefix, other in names.items():
        if other.reads != named.reads:
            raise LayoutError(
                f"{prefix[:-1]} and {first[:-1]} read different tokens; legal are classifiers that differ in the "
                "learning rate alone: give a file of one kind"
            )
    said, assumed = _options(tensors, first, named, width), []
    options = (noted.get("options") or {}).get("head")
    if options is None:
        options = said
        assumed += [f"num_heads={GLORI_HEADS} of GLoRI"] if said["name"] == "glori" else []
    _agree(options, said)
    checked.head("the classifiers", options)
    facts = {"learning_rates": _rates([other.rate for other in names.values()], noted.get("learning_rates"))}
    classes = said["num_classes"]
    facts["targets"] = noted.get("targets")
    if facts["targets"] is None:
        facts["targets"] = [f"class_{i}" for i in range(classes)]
        assumed.append(f"classes called class_0 to class_{classes - 1}")
    if len(facts["targets"]) != classes:
        raise LayoutError(f"noted are {len(facts['targets'])} class names for {classes} classes")
    heads = [read_head(tensors, options, prefix) for prefix in names]
    return Grid({p: np.stack([head[p] for head in heads]) for p in heads[0]}, options, facts, tuple(assumed))


def _rates(said: list[float], noted: list[float] | None) -> list[float]:
    """The learning rates as they were noted, which names round to ten decimals; else as named."""
    if noted is None:
        return said
    if len(noted) != len(said) or not all(
        math.isclose(*pair, rel_tol=1e-6, abs_tol=1e-10) for pair in zip(noted, said, strict=True)
    ):
        raise LayoutError(f"noted are the learning rates {noted}, but names say {said}")
    return list(noted)


def add_classifiers(contents: Contents, file: Path) -> tuple[Contents, tuple[str, ...]]:
    """A file of classifiers as the fine-tuned heads of the teacher in `contents`, and what was assumed.

    Nothing that was known of an earlier head stays: the file's own classes and learning rates are the head's.
    """
    try:
        tensors, metadata = read_tensors(file)
        grid = read_grid(tensors, metadata_of(metadata), contents.model["width"])
    except LayoutError as error:
        raise LayoutError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from None
    name = "teacher" if "teacher" in contents.networks else next(iter(contents.networks))
    network = {"backbone": contents.networks[name]["backbone"], **unflatten(grid.heads)}
    options = {part: value for part, value in contents.options.items() if part != "decoder"} | {"head": grid.options}
    facts = contents.facts | grid.facts | {"objective": "supervised"}
    return replace(contents, networks={"teacher": network}, options=options, facts=facts), grid.assumed
