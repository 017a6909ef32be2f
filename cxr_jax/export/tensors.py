"""Weight files: read one tensor at a time, and written one tensor at a time.

In: a `.safetensors` file (or the index of several), or a `.pth`, `.pt`, `.bin` that PyTorch saved. Out: `Tensors` by
name, in float32, each read from the disk when it is asked for. And back: `.safetensors` alone is written.

Only data is ever read. A pickle is opened with `weights_only=True`, where nothing it names is called; PyTorch is needed
for that and for nothing else here.
"""

import json
import os
import struct
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from cxr_jax.export.mapping import Lazy
from cxr_jax.export.rules import LayoutError

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
INDEX = ".safetensors.index.json"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
# What a training checkpoint holds beside tensors, and what it is wrapped in.
_WRAPPERS = ("model", "state_dict", "teacher", "student")
_NETWORKS = ("teacher", "student")
_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def is_weights(path: Path) -> bool:
    """Whether `path` is named as a file that `read_tensors` opens."""
    return path.suffix in SUFFIXES or path.name.endswith(INDEX)


def read_tensors(path: Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    """The tensors of a file, and the metadata that a safetensors file carries.

    Raises LayoutError in one line when the file cannot be read as data alone.
    """
    if path.suffix in PICKLES:
        return _read_pickle(path), {}
    if path.name.endswith(INDEX):
        return _read_shards(path), {}
    return _read_safetensors(path)


def find_weights(folder: Path) -> Path:
    """The weights of a Hugging Face folder. Raises LayoutError when there are none."""
    names = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise LayoutError(f"{folder / names[0]}: not a readable safetensors file (no such file)")


def _read_safetensors(path: Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    try:
        # The library checks the header: lengths, offsets, names.
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        raise LayoutError(f"{path}: not a readable safetensors file ({error})") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise LayoutError(f"{path}: {name} has dtype {entry['dtype']}; legal are {', '.join(_DTYPES)}")
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        make = partial(_read_part, path, 8 + length + entry["data_offsets"][0], dtype, shape)
        tensors[name] = Lazy(shape, np.dtype(np.float32), make)
    return tensors, metadata


def _read_part(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    try:
        array = np.fromfile(path, dtype, count, offset=offset)
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({error.strerror})") from None
    if array.size != count:
        raise LayoutError(f"{path}: ends too early")
    return array.reshape(shape).astype(np.float32, copy=False)


def _read_shards(path: Path) -> dict[str, Lazy]:
    try:
        parts = json.loads(path.read_text())["weight_map"]
        files = {name: _read_safetensors(path.parent / Path(name).name)[0] for name in set(parts.values())}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LayoutError(f"{path}: not a readable index of safetensors files ({error})") from None
    absent = [name for name, file in parts.items() if name not in files[file]]
    if absent:
        raise LayoutError(f"{path}: {absent[0]} is not in {parts[absent[0]]}")
    return {name: files[file][name] for name, file in parts.items()}


def _read_pickle(path: Path) -> dict[str, Lazy]:
    try:
        import torch
    except ImportError:
        raise LayoutError(
            f"{path}: reading {path.suffix} needs torch, which is not installed; pip install -r requirements-test.txt, "
            "or give a .safetensors file, which needs nothing"
        ) from None
    from argparse import Namespace

    # MAE's and DINO's checkpoints hold their command line, which is a plain record of values.
    safe = torch.serialization.safe_globals([Namespace])
    try:
        with safe, warnings.catch_warnings():
            # PyTorch warns of what it is about to refuse.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # whatever a damaged or hostile file makes of it
        raise LayoutError(f"{path}: {_why_not(error)}") from None
    return {name: _from_torch(path, name, tensor) for name, tensor in _unwrap(path, content).items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _why_not(error: Exception) -> str:
    """One line for what `torch.load` raised; its own messages are a page of advice to load unsafely."""
    text = " ".join(str(error).split())
    for sign in (
        "Unsupported global: GLOBAL ",
        "Trying to call reduce for unrecognized function ",
        "Unsupported class ",
    ):
        if sign in text:
            name = text.split(sign)[1].split(" ")[0]
            return f"refused: its pickle calls {name}, which is code and not weights; nothing of it was run"
    if "Weights only load failed" in text or "weights_only" in text:
        return "refused: it is more than weights; nothing of it was run"
    return f"not a readable PyTorch file ({text[:200] or type(error).__name__})"


def _unwrap(path: Path, content: Any) -> dict[str, Any]:
    """The state dict inside a checkpoint, teacher and student under prefixes where there are both."""
    torch_tensor = _tensor_type()

    def tensors(part):
        return {name: value for name, value in part.items() if isinstance(value, torch_tensor)}

    found = {}
    if isinstance(content, Mapping):
        inner = {key: content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)}
        networks = {key: inner[key] for key in _NETWORKS if key in inner}
        if networks:
            found = {f"{key}.{name}": t for key, part in networks.items() for name, t in tensors(part).items()}
        elif inner:
            found = tensors(next(iter(inner.values())))
        else:
            found = tensors(content)
    if not found:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise LayoutError(f"{path}: holds no state dict ({held})")
    return {_plain(name): tensor for name, tensor in found.items()}


def _plain(name: str) -> str:
    """A name without the wrappers of distributed training, and with weight norm's older names."""
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    for index, old in enumerate(("weight_g", "weight_v")):
        name = name.replace(f"parametrizations.weight.original{index}", old)
    return name


def _tensor_type() -> type:
    import torch

    return torch.Tensor


def _from_torch(path: Path, name: str, tensor: Any) -> Lazy:
    if not tensor.is_floating_point():
        raise LayoutError(f"{path}: {name} has dtype {tensor.dtype}; legal are floating-point numbers")
    return Lazy(tuple(tensor.shape), np.dtype(np.float32), lambda: tensor.detach().float().contiguous().numpy())


def write_safetensors(path: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str] | None = None) -> None:
    """Write float32 tensors, each made, written and dropped before the next. Readable as the folder's other files."""
    header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.make(), "<f4").data)
        file.flush()
        os.fsync(file.fileno())
