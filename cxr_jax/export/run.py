"""A run's checkpoint as what a conversion carries.

In: a run directory. Out: `Contents`. Only the items that are asked for are read.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxr_jax import checkpoint
from cxr_jax.config import ConfigError, require
from cxr_jax.export.contents import NETWORKS, Contents, Geometry
from cxr_jax.export.ours import arguments_of
from cxr_jax.models.lora import merge_lora
from cxr_jax.models.mae_decoder import MAEDecoder
from cxr_jax.models.vit import ViT

ITEMS = {"teacher": "targets", "student": "params"}
# What training alone needs of a checkpoint; no layout holds it.
TRAINING_ONLY = ("gram", "centres")
_COMPUTE = {"scan": True, "remat": "none", "drop_path": 0.0, "init": None}
_DTYPES = ("param_dtype", "compute_dtype", "reduce_dtype")


def read_run(run_dir: Path, network: str | None = None, step: int | None = None, rate: float | None = None):
    """`(contents, parts left out)` of a checkpoint.

    `network` None takes the teacher where there is one; `both` takes both. `rate` chooses one of a fine-tuning's heads
    by its learning rate. Raises ConfigError when the run has no such network or head.
    """
    meta = checkpoint.read_meta(run_dir, step)
    networks = {}
    for name in {"both": NETWORKS, None: ("first",)}.get(network, (network,)):
        found, tree = _network(run_dir, name, step)
        networks[found] = tree
    left_out = sorted({part for tree in networks.values() for part in TRAINING_ONLY if part in tree})
    for tree in networks.values():
        for part in TRAINING_ONLY:
            tree.pop(part, None)
    facts = {"run": run_dir.resolve().name, "step": meta["step"], "network": " and ".join(networks)}
    facts |= {key: meta.get(key) for key in ("objective", "fingerprint", "config")}
    model, options = model_arguments(meta), {}
    mode = meta.get("backbone", {"mode": "frozen"})
    (first, *_) = networks
    if meta.get("objective") == "supervised" and (first == "teacher" or mode["mode"] == "full"):
        options["head"] = {key: value for key, value in meta["head"].items() if key not in _DTYPES}
        trained, tree = checkpoint.read_item(run_dir, "params", step), networks[first]
        if mode["mode"] == "lora":
            tree["backbone"] = merge_lora(tree["backbone"], trained["lora"], rank=mode["rank"], alpha=mode["alpha"])
        tree["head"] = trained["head"]
        facts |= {"targets": meta["targets"], "learning_rates": meta["learning_rates"]}
        if rate is not None:
            index = _index_of(rate, meta["learning_rates"])
            tree["head"] = jax.tree.map(lambda leaf: leaf[index : index + 1], tree["head"])
            facts["learning_rates"] = [meta["learning_rates"][index]]
    else:
        require(rate is None, f"--learning_rate={rate}: {run_dir} is no fine-tuned run; drop the flag")
    if any("decoder" in tree for tree in networks.values()) and "decoder" in (meta.get("config") or {}):
        given = {"encoder_width": model["width"]} | {name: model[name] for name in ("patch_size", "norm_epsilon")}
        options["decoder"] = plain_arguments(MAEDecoder, dict(meta["config"]["decoder"]) | given)
    stored = meta["geometry"]
    geometry = Geometry(stored["fit"], model["image_size"], stored["mean"], stored["std"])
    return Contents(networks, model, geometry, options, facts), left_out


def model_arguments(meta: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ViT` that say what a network computes, not how it is run (dtypes, scan, remat)."""
    return plain_arguments(ViT, meta["model"])


def plain_arguments(constructor: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """What a module computes, defaults filled in, without how it is run and initialised."""
    found = arguments_of(constructor, stored)
    return {name: value for name, value in found.items() if name not in (*_COMPUTE, *_DTYPES)}


def _network(run_dir: Path, name: str, step: int | None) -> tuple[str, dict[str, Any]]:
    """A network's tree by name; `first` is the teacher where it holds a backbone, else the student."""
    found = {}
    for candidate in NETWORKS if name == "first" else (name,):
        item = ITEMS[candidate]
        # Objectives without targets (MAE) leave no such item.
        saved = (checkpoint.find_step(run_dir, step) / item).is_dir()
        tree = checkpoint.read_item(run_dir, item, step) if saved else {}
        if "backbone" in tree:
            return candidate, tree
        found[candidate] = ", ".join(sorted(tree)) or "nothing"
    described = "; ".join(f"{network} holds {parts}" for network, parts in found.items())
    asked = "teacher" if name == "first" else name
    raise ConfigError(f"--network={asked}: {run_dir} has no backbone there ({described})")


def _index_of(rate: float, rates: list[float]) -> int:
    near = [index for index, other in enumerate(rates) if np.isclose(other, rate, rtol=1e-6, atol=0)]
    require(bool(near), f"--learning_rate={rate:g}: legal are {', '.join(f'{r:g}' for r in rates)}")
    return near[0]
