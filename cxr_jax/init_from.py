"""A run that starts from another one: from its networks, its backbone, or all that it was.

In: a fresh state, and a source: a run directory, or PyTorch's weights that `export` reads (a Hugging Face folder, a
`.safetensors` or `.pth` file of DINOv2, CheXFound, timm or MAE). Out: a `Start`, the state with the source's arrays in
its own shards, and a report of what was taken from where.

    networks     backbone and heads                         the next stage of a chain
    backbone     the backbone, heads stay fresh             public weights, another objective
    everything   also optimiser, step and data position     a branch of a run, to cool down or to go on

Loading is strict: an array that is missing, unexpected or of another shape is refused by name. One thing may differ:
position embeddings of another grid are resized by the model's own rule (`models.positions`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax import checkpoint
from cxr_jax.config import ConfigError, require
from cxr_jax.data.records import DataError
from cxr_jax.export.folder import is_foreign, read_weights
from cxr_jax.export.foreign import Hints
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.positions import resize_positions
from cxr_jax.sharding import path_name
from cxr_jax.state import TrainState

NETWORKS = ("teacher", "both")
PARTS = ("networks", "backbone", "everything")
GRAM = "gram"  # a third copy of the backbone, among the targets
BACKBONES = ("backbone", GRAM)
EXTRAS = {"centres", GRAM}  # what targets hold besides networks
# Where a run's data stands, and what its watch has seen: a branch of everything goes on with both.
CARRIED = ("data_skip", "collapse")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Start:
    """A state to train from, what was loaded, and what the new run's checkpoints take over of the source's words."""

    state: TrainState
    report: dict[str, Any]
    carried: dict[str, Any]

    def describe(self) -> str:
        """The report as two lines."""
        r = self.report
        step = "" if r["step"] is None else f", step {r['step']}"
        resized = [f"{name} {old} -> {new}" for name, (old, new) in r["resized"].items()]
        lists = {"resized": resized, **{name: r[name] for name in ("fresh", "unused", "missing", "unexpected")}}
        if r.get("assumed"):
            lists["assumed, as the file does not say"] = r["assumed"]
        words = "; ".join(f"{name}: {', '.join(map(str, values)) or 'none'}" for name, values in lists.items())
        return f"from {r['source']}{step}: {r['parts']} of {r['network']}\n  loaded {r['loaded']} arrays; {words}"


def is_public(source: str | Path) -> bool:
    """Whether `source` is PyTorch's weights to import, a file or a folder with config.json, and not a run."""
    return is_foreign(source)


def read_source_meta(source: str | Path, step: int) -> dict[str, Any]:
    """What the run `source` says about its checkpoint `step` (-1: the newest). Raises ConfigError when it has none."""
    require(step >= -1, f"config.init_step={step}: legal are -1, the newest, and the steps of a checkpoint")
    try:
        return checkpoint.read_meta(source, None if step == -1 else step)
    except ConfigError as error:
        raise ConfigError(f"config.init_from={error}") from None


def start_from(
    state: TrainState,
    *,
    source: str,
    network: str,
    parts: str,
    step: int,
    model: dict[str, Any],
    batch_size: int,
    total_steps: int,
) -> Start:
    """Start a pretraining from `source`.

    `network` is `teacher` (the EMA teacher into student and teacher; of a run without one its only network) or `both`
    (each as it was). `model` holds the arguments of this run's `ViT`. Raises ConfigError naming what does not fit.
    """
    if is_public(source):
        return _start_from_weights(state, source=source, network=network, parts=parts, step=step, model=model)
    meta = read_source_meta(source, step)
    step = meta["step"]
    if parts == "everything":
        return _branch(state, source, meta, batch_size, total_steps)
    saved, taken = _saved_networks(source, meta, network, keeps_teacher=bool(state.targets))
    facts = {"network": taken, "parts": parts, "step": step, "fingerprint": meta["fingerprint"]}
    return _fill(state, saved, source, model, meta["model"], facts)


def pretrained_backbone(state: TrainState, *, run: str, network: str, item: str) -> Start:
    """The backbone of a run's `teacher` or `student` as that of a fine-tuning, under its `params` or its `targets`.

    Only the backbone is taken, whatever else the run has: heads always start fresh. A run without a teacher has one
    network, which `teacher` means too. Raises ConfigError for a run whose backbone is spread over two items.
    """
    meta = checkpoint.read_meta(run)
    require(
        meta.get("backbone", {}).get("mode") != "lora",
        f"config.init_from={run}: its backbone is that of {meta.get('pretrained', {}).get('run')} and low-rank "
        "factors; name that run, or one with objective.backbone='full'",
    )
    network = checkpoint.network_of(meta, network)
    tree = checkpoint.read_item(run, "targets" if network == "teacher" else "params")
    found = _flat({item: {"backbone": tree.get("backbone", {})}})
    facts = {"network": network, "parts": "backbone", "step": meta["step"], "fingerprint": meta["fingerprint"]}
    facts["unused"] = sorted(set(tree) - {"backbone"})
    facts["fresh"] = sorted(set(state.params) - {"backbone"})
    return _place(state, {item: {"backbone": getattr(state, item)["backbone"]}}, found, run, facts)


def _start_from_weights(state, *, source, network, parts, step, model) -> Start:
    """Imported weights hold backbones, and the heads of a training checkpoint, but no optimiser and no steps.

    What a bare file does not say (number of heads, how positions are resized) is this run's own `model`.
    """
    require(parts != "everything", f"config.init_parts={parts!r}: {source} holds weights; legal are backbone, networks")
    require(step == -1, f"config.init_step={step}: {source} holds weights and no steps; legal is -1")
    try:
        read = read_weights(Path(source), Hints(num_heads=model.get("num_heads"), pos_resize=model.get("pos_resize")))
    except LayoutError as error:
        raise DataError(f"config.init_from={source}: {error}") from None
    theirs, epsilon = read.contents.model["norm_epsilon"], model.get("norm_epsilon", 1e-6)
    require(
        theirs == epsilon,
        f"config.model.norm_epsilon={epsilon}: {source} was trained with {theirs}; legal is that",
    )
    found = read.contents.networks
    parts_there = sorted({part for tree in found.values() for part in tree})
    missing = sorted(set(state.params) - set(parts_there))
    require(
        parts == "backbone" or not missing,
        f"config.init_parts={parts!r}: {source} holds weights of {', '.join(parts_there)} alone; legal is backbone",
    )
    require(
        network == "teacher" or not state.targets or len(found) > 1,
        f"config.init_network={network!r}: {source} holds the weights of one network; legal is teacher",
    )
    if network == "both" and len(found) > 1:
        saved, taken = {"params": found["student"], "targets": found["teacher"]}, "student and teacher"
    else:
        tree = found.get("teacher") or found["student"]
        saved, taken = {"params": tree, "targets": tree}, "the teacher" if len(found) > 1 else "its only network"
    facts = {"network": taken, "parts": parts, "step": None, "fingerprint": None, "assumed": list(read.assumed)}
    return _fill(state, saved, source, model, read.contents.model, facts)


def _saved_networks(run: str, meta: dict[str, Any], network: str, keeps_teacher: bool) -> tuple[dict[str, dict], str]:
    """`{"params": ..., "targets": ...}` of a run as `network` asks for them, and which network that was."""
    step, has_teacher = meta["step"], "targets" in meta["items"]
    if network == "teacher":
        tree = checkpoint.read_item(run, "targets" if has_teacher else "params", step)
        return {"params": tree, "targets": tree}, "the teacher" if has_teacher else "the student, its only network"
    require(
        has_teacher or not keeps_teacher,
        f"config.init_network='both': {run} keeps no teacher; legal is teacher, which takes its only network for both",
    )
    items = ("params", "targets") if keeps_teacher else ("params",)
    return {item: checkpoint.read_item(run, item, step) for item in items}, "student and teacher"


def _fill(state, saved, source, model, their_model, facts) -> Start:
    """Put the saved networks, or their backbones alone, into a state whose optimiser and step stay fresh."""
    wanted = {"params": state.params, "targets": state.targets} if state.targets else {"params": state.params}
    saved = {item: dict(saved[item]) for item in wanted}
    if GRAM in state.targets:
        # The Gram teacher is the teacher as this run starts, whatever the source anchored itself to.
        saved["targets"][GRAM] = saved["targets"].get("backbone", {})
    for item, tree in saved.items():
        # Centres and Gram teachers are no networks: of no use to who has none, fresh for who finds none.
        for name in EXTRAS & (set(tree) - set(wanted[item])):
            del tree[name]
        absent = EXTRAS & (set(wanted[item]) - set(tree))
        wanted[item] = {name: part for name, part in wanted[item].items() if name not in absent}
    fresh, unused = set(), set()
    if facts["parts"] == "backbone":
        fresh, unused = ({name for tree in t.values() for name in tree} - set(BACKBONES) for t in (wanted, saved))
        wanted, saved = (
            {item: {name: tree.get(name, {}) for name in BACKBONES if name in wanted[item]} for item, tree in t.items()}
            for t in (wanted, saved)
        )
    found = _flat(saved)
    resized = _resize_positions(found, wanted, model.get("pos_resize"))
    facts |= {"fresh": sorted(fresh), "unused": sorted(unused), "resized": resized}
    facts["model"] = {
        key: [their_model.get(key), value] for key, value in model.items() if their_model.get(key, value) != value
    }
    return _place(state, wanted, found, source, facts)


def _resize_positions(found: Arrays, wanted, rule: str | None) -> dict[str, list]:
    """Resize positions `[1 + n, d]` in place to the grid that is wanted; returns `{name: [old shape, new shape]}`."""
    resized = {}
    for item, tree in wanted.items():
        for backbone in BACKBONES:
            name, new = f"{item}/{backbone}/pos_embed", tree.get(backbone, {}).get("pos_embed")
            if rule is None or new is None or name not in found:
                continue
            old = found[name].shape
            grids = [round(max(shape[0] - 1, 0) ** 0.5) for shape in (old, new.shape)]
            square = [grid**2 + 1 for grid in grids] == [old[0], new.shape[0]]
            if old != new.shape and old[1:] == new.shape[1:] and square:
                found[name] = np.asarray(resize_positions(jnp.asarray(found[name]), *grids, rule))
                resized[name] = [list(old), list(new.shape)]
    return resized


def _branch(state: TrainState, source: str, meta: dict[str, Any], batch_size: int, total_steps: int) -> Start:
    """All of a run at a step: networks, optimiser, counters; its data goes on at the next batch.

    Another dataset is legal: step t then takes batch t of that one's order.
    """
    step, theirs = meta["step"], meta["config"]["batch_size"]
    require(
        total_steps > step,
        f"config.total_steps={total_steps}: init_parts='everything' goes on from step {step} of {source} and counts "
        f"its steps; legal are more than {step}",
    )
    require(
        theirs == batch_size,
        f"config.batch_size={batch_size}: init_parts='everything' goes on in the data of {source}, whose batch_size "
        f"is {theirs}; take the same, or init_parts='networks'",
    )
    wanted = {"params": state.params, "targets": state.targets}
    wanted = {item: tree for item, tree in wanted.items() if tree}
    wanted["opt_state"] = {"optimizer": state.opt_state, "health": state.health}
    found = _flat({item: checkpoint.read_item(source, item, step) for item in meta["items"]})
    facts = {"network": "student and teacher", "parts": "everything", "step": step, "fingerprint": meta["fingerprint"]}
    return _place(state, wanted, found, source, facts, {name: meta[name] for name in CARRIED if name in meta})


def _flat(tree) -> Arrays:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _to_device(old, new: np.ndarray):
    # Every process reads the file and places its own shards; device_put would compare whole arrays between them.
    # `astype` copies: student and teacher may come from one array, and the state is donated.
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index].astype(old.dtype))


def _place(state, wanted, found: Arrays, source, facts, carried: dict[str, Any] | None = None) -> Start:
    """`found` in the shards of `wanted`; refuses whatever does not fit exactly."""
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    try:
        checkpoint.check_same_tree(shapes, wanted, source)
    except ConfigError as error:
        settings = [
            f"model.{k} {theirs!r} there, {ours!r} here" for k, (theirs, ours) in facts.get("model", {}).items()
        ]
        why = f"; settings that differ: {', '.join(settings)}" if settings else ""
        raise ConfigError(f"config.init_from={source}: {error}{why}") from None
    placed = jax.tree_util.tree_map_with_path(lambda path, old: _to_device(old, found[path_name(path)]), wanted)
    changes = {item: getattr(state, item) | placed[item] for item in ("params", "targets") if item in placed}
    if "opt_state" in placed:
        step = _to_device(state.step, np.asarray(facts["step"]))
        changes |= {
            "step": step,
            "opt_state": placed["opt_state"]["optimizer"],
            "health": placed["opt_state"]["health"],
        }
    empty = {"fresh": [], "unused": [], "resized": {}, "model": {}}
    report = {"source": str(source), **empty, **facts, "loaded": len(found), "missing": [], "unexpected": []}
    return Start(state.replace(**changes), report, carried or {})
