"""What configuration files say, checked before anything is built of it.

In: values that somebody else wrote: a config.json of transformers, what we noted in ours, a file's metadata. Out:
nothing, or one LayoutError that names the file, the key, what was found, and what is legal.
"""

import math
from collections.abc import Collection
from typing import Any

from cxr_jax.data.geometry import FITS
from cxr_jax.export.layouts import FORMATS
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.positions import POS_RESIZE
from cxr_jax.models.vit import POSITIONS

LARGEST_PX = 8192
_LARGEST = 1_000_000  # of any other count
_COUNTS = {"patch_size": 1, "width": 1, "depth": 1, "num_heads": 1, "num_registers": 0}
_WORDS = {"ffn": ("swiglu", "mlp"), "positions": POSITIONS, "pos_resize": POS_RESIZE}
_HEAD_COUNTS = {
    "linear": ("width", "num_classes", "blocks"),
    "glori": ("width", "num_classes", "blocks", "decoder_width", "num_heads", "ffn_width"),
}
_DECODER_COUNTS = ("encoder_width", "patch_size", "width", "depth", "num_heads")


def _refuse(where: Any, key: str, value: Any, legal: str) -> None:
    found = repr(value)
    raise LayoutError(f"{where}: {key}={found if len(found) < 100 else found[:97] + '...'}; legal are {legal}")


def whole(where: Any, key: str, value: Any, least: int = 1, most: int = _LARGEST) -> None:
    """A whole number; `14.0` and `"14"` are none."""
    if type(value) is not int or not least <= value <= most:
        _refuse(where, key, value, f"whole numbers from {least} to {most}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def finite(where: Any, key: str, value: Any, positive: bool = True) -> None:
    """A finite number."""
    if not _is_number(value) or (positive and value <= 0):
        _refuse(where, key, value, "finite numbers" + (" above 0" if positive else ""))


def one_of(where: Any, key: str, value: Any, legal: Collection[Any]) -> None:
    """One of a few values."""
    if not any(type(value) is type(other) and value == other for other in legal):
        _refuse(where, key, value, ", ".join(map(str, legal)))


def numbers(where: Any, key: str, value: Any, count: int | None = None, least: float | None = None) -> None:
    """A list of finite numbers, `count` of them, all above `least`."""
    good = isinstance(value, list | tuple) and all(map(_is_number, value))
    if not good or (least is not None and any(number <= least for number in value)):
        _refuse(where, key, value, "lists of finite numbers" + ("" if least is None else f" above {least:g}"))
    if count is not None and len(value) != count:
        _refuse(where, key, value, f"lists of {count} numbers, one per channel")


def mapping(where: Any, key: str, value: Any) -> None:
    """A JSON object."""
    if not isinstance(value, dict):
        _refuse(where, key, value, "JSON objects")


def model(where: Any, found: dict[str, Any], names: dict[str, str] | None = None, prefix: str = "") -> None:
    """The arguments of `ViT`; `names` says what the file calls ours."""

    def called(key: str) -> str:
        return (names or {}).get(key, prefix + key)

    needed = ("image_size", *_COUNTS, *_WORDS, "layer_scale", "norm_epsilon")
    for key in needed:
        if key not in found:
            raise LayoutError(f"{where}: {called(key)} is missing")
    whole(where, called("image_size"), found["image_size"], 1, LARGEST_PX)
    for key, least in _COUNTS.items():
        whole(where, called(key), found[key], least)
    for key, legal in _WORDS.items():
        one_of(where, called(key), found[key], legal)
    finite(where, called("norm_epsilon"), found["norm_epsilon"])
    if found["layer_scale"] is not None:
        finite(where, called("layer_scale"), found["layer_scale"], positive=False)
    for key in set(found) - set(needed):
        if not isinstance(found[key], int | float | str | None):
            _refuse(where, called(key), found[key], "numbers and words")
    _divides(where, called("image_size"), found["image_size"], called("patch_size"), found["patch_size"])
    _divides(where, called("width"), found["width"], called("num_heads"), found["num_heads"])
    turned = found["width"] // found["num_heads"] if found["positions"] == "rope" else found["width"]
    if found["positions"] != "learned" and turned % 4:
        which = " / ".join(map(called, ("width", "num_heads"))) if found["positions"] == "rope" else called("width")
        _refuse(where, which, turned, f"multiples of 4, with positions={found['positions']!r}")


def _divides(where: Any, key: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        _refuse(where, key, value, f"multiples of {by}={divisor}")


def decoder(where: Any, found: dict[str, Any], names: dict[str, str] | None = None) -> None:
    """The arguments of a MAE decoder."""

    def called(key: str) -> str:
        return (names or {}).get(key, f"decoder.{key}")

    for key in _DECODER_COUNTS:
        whole(where, called(key), found.get(key))
    finite(where, called("norm_epsilon"), found.get("norm_epsilon"))
    _divides(where, called("width"), found["width"], called("num_heads"), found["num_heads"])
    _divides(where, called("width"), found["width"], "the sines and cosines of its positions,", 4)


def head(where: Any, found: dict[str, Any]) -> None:
    """The arguments of a fine-tuned head; kinds that no layout has names for are left to `heads.head_table`."""
    mapping(where, "head", found)
    if not isinstance(found.get("name"), str):
        _refuse(where, "head.name", found.get("name"), ", ".join(_HEAD_COUNTS))
    for key in _HEAD_COUNTS.get(found["name"], ()):
        whole(where, f"head.{key}", found.get(key))
    for key, value in found.items():
        if not isinstance(value, int | float | str | None):
            _refuse(where, f"head.{key}", value, "numbers and words")
    if found["name"] == "glori":
        _divides(where, "head.decoder_width", found["decoder_width"], "head.num_heads", found["num_heads"])


def remarks(where: Any, found: Any, key: str = "cxr_jax") -> None:
    """What we noted beside weights, in a config.json or in a file's metadata; every part may be absent."""
    mapping(where, key, found)
    for name, legal in (("fit", FITS), ("format", FORMATS)):
        if name in found:
            one_of(where, f"{key}.{name}", found[name], legal)
    for name in ("step", "block_chunks"):
        if found.get(name) is not None:
            whole(where, f"{key}.{name}", found[name], 0, 10**12)
    for name in ("objective", "fingerprint", "run", "network"):
        if not isinstance(found.get(name), str | None):
            _refuse(where, f"{key}.{name}", found[name], "words")
    if found.get("learning_rates") is not None:
        numbers(where, f"{key}.learning_rates", found["learning_rates"])
    targets = found.get("targets")
    if targets is not None and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        _refuse(where, f"{key}.targets", targets, "lists of class names")
    options = found.get("options", {})
    mapping(where, f"{key}.options", options)
    for part, value in options.items():
        mapping(where, f"{key}.options.{part}", value)
    if "head" in options:
        head(where, options["head"])
    if "decoder" in options:
        decoder(where, options["decoder"])
