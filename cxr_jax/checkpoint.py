"""Reading checkpoints: what a run directory holds, what it says of itself, one item of it.

In: a run directory. Out: `meta`, or an item as NumPy arrays, without devices and whatever topology wrote it. A
checkpoint `checkpoints/<step>/` has separate items, so that a laptop or an evaluation reads only its part:

    params      the student        targets   EMA teacher or frozen backbone
    opt_state   {"optimizer", "health"}      meta      JSON: config, model, geometry, fingerprint, data_skip, ...

`teachers/<step>/` holds `meta` and the backbone that evaluations read. `saving` writes both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from cxr_jax.config import ConfigError
from cxr_jax.data.records import MANIFEST_NAME, DataError
from cxr_jax.digest import digests
from cxr_jax.sharding import path_name

ARRAYS = ("params", "targets", "opt_state")
FOLDER, TEACHERS = "checkpoints", "teachers"
META_FILE = "metadata"  # as Orbax's JSON handler reads it
META_FIELDS = {"config": dict, "items": list, "step": int}
FORMAT = 3  # of what is written; 1 had no digests, 2 had some that let flipped signs through


@contextmanager
def reading(run_dir: str | Path, step: int, what: str) -> Iterator[None]:
    """Turn whatever a damaged checkpoint raises into a DataError that names the run, the step and what to do."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        others = [str(other) for other in steps_of(run_dir) if other != step]
        remedy = f"remove {FOLDER}/{step} to use step {others[-1]}" if others else "it is the only one"
        raise DataError(f"{run_dir}: checkpoint {step} is damaged ({what}: {why}); {remedy}") from None


def steps_of(run_dir: str | Path, folder: str = FOLDER) -> list[int]:
    """Steps of a run's complete checkpoints, rising."""
    folder = Path(run_dir).absolute() / folder
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """`{"backbone/cls_token": (192,)}` of a tree of arrays, shapes or saved metadata."""
    return {path_name(at): tuple(leaf.shape) for at, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def check_same_tree(found: dict[str, tuple[int, ...]], wanted_tree: Any, what: str) -> None:
    """Raise ConfigError naming up to three arrays that are missing, unexpected or of another shape in `found`."""
    wanted = shapes_by_path(wanted_tree)
    problems = [
        f"{name} is {found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in this config"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"the checkpoint is of another architecture ({what}): {'; '.join(problems[:3])}{more}")


def find_step(run_dir: str | Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint, the newest by default; of a step that has gone, its teacher's alone.

    Raises ConfigError when there is none.
    """
    run = Path(run_dir).absolute()
    steps = {step: TEACHERS for step in steps_of(run_dir, TEACHERS)} | {step: FOLDER for step in steps_of(run_dir)}
    if not steps:
        raise ConfigError(f"{run_dir}: {_why_no_run(run)}")
    step = max(steps) if step is None else step
    if step not in steps:
        raise ConfigError(f"{run_dir}: has no checkpoint of step {step}; it has {', '.join(map(str, sorted(steps)))}")
    return run / steps[step] / str(step)


def _why_no_run(path: Path) -> str:
    """What a folder without checkpoints is instead."""
    if not path.exists():
        return "no such folder; name a run directory"
    if (path / MANIFEST_NAME).is_file():
        return "is a dataset; name a run directory"
    if path.is_file() or (path / "config.json").is_file():
        return (
            "is no run directory; of PyTorch's weights make one first: "
            f"python -m cxr_jax.convert --input={path} --output=RUN_DIR --format=cxr_jax"
        )
    if path.parent.name == FOLDER:
        return (
            f"is one checkpoint; name its run directory, {path.parent.parent}, and the step {path.name} by its own key"
        )
    if path.name == FOLDER:
        return f"is the checkpoints of a run; name its run directory, {path.parent}"
    return f"holds no checkpoints; expected a run directory with {FOLDER}/<step>"


def handlers(*, compress: bool = False) -> dict[str, Any]:
    """Who reads and writes each item."""
    # Arrays of NumPy are those of imported weights, which nobody changes while they are written: no copy of a model.
    kinds = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    arrays = {
        item: ocp.PyTreeCheckpointHandler(use_compression=compress, type_handler_registry=kinds) for item in ARRAYS
    }
    return arrays | {"meta": ocp.JsonCheckpointHandler(META_FILE)}


def _reader(folder: Path) -> ocp.CheckpointManager:
    verbosity = logging.get_verbosity()
    # Orbax warns twice that what is opened read-only is read-only.
    logging.set_verbosity(logging.ERROR)
    try:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers())
    finally:
        logging.set_verbosity(verbosity)


def read_meta(run_dir: str | Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself. Raises DataError when it is damaged or an item of it is gone."""
    path = find_step(run_dir, step)
    step = int(path.name)
    with reading(run_dir, step, "meta"), _reader(path.parent) as reader:
        meta = reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        check_format(meta, f"{run_dir}, step {step}")
        gone = [item for item in meta["items"] if not (path / item).is_dir()]
        if gone:
            raise FileNotFoundError(f"the item {gone[0]} is gone")
        return meta


def check_format(meta: Any, what: str) -> None:
    """Refuse what a newer version wrote, what lacks a field that all versions write, and items that none writes.

    Raises ConfigError for a newer one, else ValueError.
    """
    for name, kind in META_FIELDS.items():
        if not isinstance(meta, dict) or not isinstance(meta.get(name), kind):
            raise ValueError(f"meta has no {name}, or one that is no {kind.__name__}")
    found = meta.get("format", 1)
    if found > FORMAT:
        raise ConfigError(
            f"{what}: was written by a newer version (format {found}; this one reads up to {FORMAT}); update this one"
        )
    unknown = [item for item in meta["items"] if item not in ARRAYS]
    if unknown:
        raise ConfigError(f"{what}: holds an item {unknown[0]!r}; legal are {', '.join(ARRAYS)}")


def check_digests(tree: Any, meta: dict[str, Any], item: str, everywhere: Any = None) -> None:
    """Raise ValueError naming an array of `item` that is not what was saved; older formats have nothing to compare."""
    saved = meta.get("digests", {}).get(item) if meta.get("format") == FORMAT else None
    if saved is None:
        return
    wrong = [name for name, digest in digests(tree, everywhere).items() if saved.get(name) != digest]
    if wrong:
        raise ValueError(f"{item}/{wrong[0]} is not what was saved, nor are {len(wrong) - 1} other arrays")


def network_of(meta: dict[str, Any], network: str) -> str:
    """The `network` asked for, or `student` where a run trained without a teacher (masked autoencoding)."""
    return "student" if network == "teacher" and "targets" not in meta["items"] else network


def read_item(run_dir: str | Path, item: str, step: int | None = None) -> dict[str, Any]:
    """One item, `params` or `targets`, as nested dicts of NumPy arrays; no device and no topology needed.

    Raises ConfigError when the run keeps no such item, DataError when it is damaged.
    """
    path = find_step(run_dir, step)
    step, meta = int(path.name), read_meta(run_dir, step)
    if not (path / item).is_dir():
        raise ConfigError(f"{run_dir}: its checkpoint {step} holds no {item}")
    with reading(run_dir, step, item), _reader(path.parent) as reader:
        tree = reader.item_metadata(step)[item].tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = {item: ocp.args.PyTreeRestore(restore_args=arguments)}
        found = reader.restore(step, args=ocp.args.Composite(**wanted))[item]
        check_digests(found, meta, item)
        return found
