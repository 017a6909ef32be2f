"""Samples and tasks as text and back: to tell whether two listings are the same, and to send work to other machines.

In: a dataclass of plain values, paths, arrays and further dataclasses. Out: one line of JSON, the same for equal
values. Text is read back into dataclasses of `data_prep` and the contract only, so that a file that someone else wrote
can make nothing else; no pickle is involved.
"""

import base64
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

_TRUSTED = ("data_prep.", "cxr_jax.data.records.")


def to_text(sample: Any) -> str:
    """One line of JSON; raises TypeError for a value that is none of the above."""
    return json.dumps(_plain(sample), separators=(",", ":"))


def from_text(text: str) -> Any:
    """What `to_text` was given; raises ValueError for a class that is none of ours."""
    return _rich(json.loads(text))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple | list):
        return {"tuple": [_plain(item) for item in value]}
    if dataclasses.is_dataclass(value):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": kind, "fields": [_plain(getattr(value, f.name)) for f in dataclasses.fields(value)]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, np.ndarray):
        return {"array": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str, "shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent; plain values, tuples, paths, arrays, dataclasses can")


def _rich(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_rich(item) for item in value["tuple"])
    if "path" in value:
        return Path(value["path"])
    if "array" in value:
        content = np.frombuffer(base64.b64decode(value["array"]), np.dtype(value["dtype"]))
        return content.reshape(value["shape"]).copy()
    module, name = value["class"].split(":")
    if not f"{module}.".startswith(_TRUSTED):
        raise ValueError(f"{module}:{name} is no dataclass of ours")
    kind = getattr(importlib.import_module(module), name)
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{module}:{name} is no dataclass of ours")
    return kind(*(_rich(item) for item in value["fields"]))
