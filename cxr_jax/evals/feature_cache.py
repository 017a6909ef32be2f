"""Tokens of a frozen backbone over whole splits: computed once, kept in memory and, on request, on disk.

In: a split, a backbone, the geometry, how many of its last blocks. Out: arrays with one row an image,

    cls [n, blocks, d]    registers [n, blocks, r, d]    patches [n, blocks, p, d]

of which `as_features` makes what heads read. On disk they lie as `.npy` without pickles in a folder named after
everything that they depend on: the weights' digests, the model, the dataset's fingerprint, the very rows, geometry,
blocks, tokens. A folder that is damaged, or of something else, is told and made again.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxr_jax.data.source import Split
from cxr_jax.digest import digests
from cxr_jax.evals.features import Geometry, ImageFunction
from cxr_jax.evals.task import Task
from cxr_jax.models.vit import Features, ViT

TOKENS = ("registers", "patches", "mean_patch")  # CLS tokens are always kept
FORMAT = 2
GB = 1e9
DRAFT = ".writing-"
STALE_SECS = 24 * 3600.0  # a draft as old as this was left by a process that was killed

Arrays = dict[str, np.ndarray]


def tokens_function(model: Mapping[str, Any], *, blocks: int, tokens: Sequence[str]) -> ImageFunction:
    """Images to the tokens of the last `blocks` blocks, image axis first.

    `tokens` names what is kept besides CLS. With `mean_patch` the only patch token is the mean of all, which is what a
    linear head reads. What is not kept is an axis of length 0.
    """
    check_tokens(model, blocks, tokens)
    return _tokens_function(json.dumps(dict(model), sort_keys=True), blocks, tuple(sorted(tokens)))


@functools.cache
def _tokens_function(described: str, blocks: int, tokens: tuple[str, ...]) -> ImageFunction:
    """One function for equal arguments, so that all splits and backbones share its compiled program (`Task.runner`)."""
    model = json.loads(described)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))
    reduce_dtype = model.get("reduce_dtype", "float32")

    def function(params, images):
        found = nnx.merge(graphdef, params).features(images, blocks=blocks)
        patches = found.patches if "patches" in tokens else found.patches[:, :, :0]
        if "mean_patch" in tokens:
            patches = found.patches.astype(reduce_dtype).mean(2, keepdims=True)
        registers = found.registers if "registers" in tokens else found.registers[:, :, :0]
        kept = {"cls": found.cls, "registers": registers, "patches": patches}
        # NumPy's files know no bfloat16.
        kept = {name: x.astype("float32") if x.dtype == jnp.bfloat16 else x for name, x in kept.items()}
        return {name: x.swapaxes(0, 1) for name, x in kept.items()}

    return function


def check_tokens(model: Mapping[str, Any], blocks: int, tokens: Sequence[str]) -> None:
    """Raises ValueError for tokens that there are not, two kinds of patches at once, and more blocks than the model."""
    unknown = [name for name in tokens if name not in TOKENS]
    if unknown or {"patches", "mean_patch"} <= set(tokens):
        raise ValueError(f"features.tokens={tuple(tokens)}: legal are {', '.join(TOKENS)}, one kind of patches at most")
    if not 1 <= blocks <= model["depth"]:
        raise ValueError(f"head.blocks={blocks}: the backbone has {model['depth']} blocks, so legal are 1 to that")


def size_gb(model: Mapping[str, Any], images: int, *, blocks: int, tokens: Sequence[str]) -> float:
    """What the tokens of so many images take in memory, in GB, at 4 bytes a number."""
    patches = (model["image_size"] // model["patch_size"]) ** 2
    counts = {"registers": model.get("num_registers", 0), "patches": patches, "mean_patch": 1}
    return 4 * images * blocks * model["width"] * (1 + sum(counts[name] for name in tokens)) / GB


def features_of(
    task: Task,
    split: Split,
    backbone: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    geometry: Geometry,
    blocks: int,
    tokens: Sequence[str],
    folder: str = "",
    max_gb: float,
    mirrored: bool = False,
) -> Arrays:
    """The tokens of every row of `split`, from `folder` where they are there and whole, else computed and kept there.

    Args:
      folder: where they are kept on disk; "" keeps them in memory alone.
      max_gb: refuse to hold more than this.
      mirrored: of the images' mirror pictures.

    Raises:
      ValueError: tokens or blocks that there are not, more than `max_gb`, or a folder that cannot be written.
    """
    function = tokens_function(model, blocks=blocks, tokens=tokens)
    need = size_gb(model, len(split), blocks=blocks, tokens=tokens)
    if need > max_gb:
        raise ValueError(
            f"features.max_gb={max_gb:g}: the tokens of {len(split)} images take {need:.1f} GB; allow more, keep "
            "fewer tokens or blocks, or train the head with cxr_jax.train, which keeps none"
        )
    key = cache_key(split, backbone, model=model, geometry=geometry, blocks=blocks, tokens=tokens, mirrored=mirrored)
    place = Path(folder) / _name(key) if folder else None
    arrays = load(place, key) if place else None
    if arrays is None:
        arrays = task.runner(function, geometry, mirrored=mirrored)(split, backbone)
        if place:
            save(place, key, arrays)
    return arrays


def as_features(arrays: Arrays) -> Features:
    """What heads read: the block axis first."""
    return Features(*(arrays[name].swapaxes(0, 1) for name in Features._fields))


def cache_key(
    split: Split,
    backbone: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    geometry: Geometry,
    blocks: int,
    tokens: Sequence[str],
    mirrored: bool,
) -> dict[str, Any]:
    """Everything that the tokens depend on, as JSON holds it."""
    weights = json.dumps(digests(backbone), sort_keys=True)
    rows = np.asarray(split.rows, np.int64)
    key = {
        "format": FORMAT,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "model": dict(model),
        "geometry": asdict(geometry),
        "dataset": split.manifest.fingerprint,
        "split": split.name,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "images": len(rows),
        "blocks": blocks,
        "tokens": sorted(tokens),
        "mirrored": mirrored,
    }
    return json.loads(json.dumps(key))


def _name(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def save(place: Path, key: Mapping[str, Any], arrays: Arrays) -> None:
    """Write all of it beside `place`, then rename: a folder is whole or not there.

    Where another process was quicker, what it wrote is the same and stays. Raises ValueError if it cannot be written.
    """
    draft = place.parent / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place.parent)
        draft.mkdir()  # with the modes of the umask, so that colleagues can share a cache
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array, allow_pickle=False)
        facts = {name: _facts(array) for name, array in arrays.items()}
        (draft / "about.json").write_text(json.dumps({"key": dict(key), "arrays": facts}, indent=1) + "\n")
        _put(draft, place, key)
    except OSError as error:
        raise ValueError(f"features.cache={place.parent}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, place: Path, key: Mapping[str, Any]) -> None:
    """Rename a draft to its place; a folder there that is damaged makes way, one that is whole stays."""
    try:
        os.rename(draft, place)
        return
    except OSError:
        if not place.exists():
            raise
    if load(place, key) is not None:
        return
    # Moved away first: two that find the same damaged folder cannot both remove what the other has just put there.
    away = place.parent / f"{DRAFT}{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, away)
        shutil.rmtree(away, ignore_errors=True)
    try:
        os.rename(draft, place)
    except OSError:
        if load(place, key) is None:
            raise


def _sweep(folder: Path) -> None:
    """Remove drafts that a killed process left."""
    for draft in folder.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_SECS:
                shutil.rmtree(draft, ignore_errors=True)


def check_folder(folder: str) -> None:
    """Raise ValueError where features cannot be kept, before any are computed; "" keeps none."""
    if not folder:
        return
    probe = Path(folder) / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        raise ValueError(f"features.cache={folder}: cannot be written ({error.strerror or error})") from None


def load(place: Path, key: Mapping[str, Any]) -> Arrays | None:
    """What `save` wrote under this very key, or None: where there is nothing, and, said aloud, where it is damaged."""
    if not place.is_dir():
        return None
    try:
        about = json.loads((place / "about.json").read_text())
        if about["key"] != key:
            raise ValueError("it was made of something else")
        arrays = {name: np.load(place / f"{name}.npy", allow_pickle=False) for name in Features._fields}
        for name, array in arrays.items():
            if about["arrays"][name] != _facts(array):
                raise ValueError(f"{name}.npy is not what was saved")
        return arrays
    except Exception as error:  # whatever a cut or overwritten file raises
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        print(f"features.cache: {place} cannot be used ({why}); its features are computed again", flush=True)
        return None


def _facts(array: np.ndarray) -> dict[str, Any]:
    """What has to be the same when it is read: the header's dtype and shape, and the bytes."""
    return {"dtype": array.dtype.str, "shape": list(array.shape), "crc32": _crc(array)}


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1)) if array.size else 0
