"""The columns of a report: the evaluated run first, then what it has to be held against.

In: a run (its `meta` and arrays) and a `Task`. Out: name -> `Scores`. `PROTOCOLS` is the table of how a run is scored:
a new protocol is one function that makes the columns of runs and networks, and one line there. Hand-made features,
which need no network, are added to every protocol alike.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from cxr_jax import checkpoint
from cxr_jax.config import RunError, require
from cxr_jax.evals import cached_columns, protocols
from cxr_jax.evals.features import Geometry, random_backbone
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import Task
from cxr_jax.objectives.supervised import Supervised

NETWORKS = {"teacher": "targets", "student": "params"}
# How reports call heads and what was done with the backbone under them; other heads go by their own name.
SPOKEN_HEADS = {"glori": "GLoRI", "ml_decoder": "ML-Decoder", "linear": "linear head", "upernet": "UPerNet"}
MODES = {"frozen": "frozen", "lora": "LoRA", "full": "full fine-tuning"}


@dataclass(frozen=True)
class Source:
    """What is evaluated: a run directory, the step of its checkpoint (None: the newest), and what it says."""

    run: str
    step: int | None
    meta: dict[str, Any]

    @property
    def geometry(self) -> Geometry:
        """The geometry that the checkpoint names."""
        return Geometry(self.meta["geometry"]["fit"], self.meta["geometry"]["image_size"])


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks of its columns; each protocol takes what concerns it.

    `runs` are fine-tuned runs to stand beside one, `random` asks for a network that has seen nothing, `settings` are
    the config's other sections by name.
    """

    network: str
    probe: Mapping[str, Any]
    runs: Collection[str]
    random: bool
    settings: Mapping[str, Any]


def open_source(run: str, step: int | None = None) -> Source:
    """Read what a run says of its checkpoint. Raises ConfigError when there is none, DataError when it is damaged."""
    return Source(run, step, checkpoint.read_meta(run, step))


def trained_networks(source: Source) -> tuple[dict, dict]:
    """Parameters and targets of a fine-tuned run; one whose backbone was trained as well has no targets."""
    items = source.meta["items"]
    params, targets = (
        checkpoint.read_item(source.run, item, source.step) if item in items else {} for item in ("params", "targets")
    )
    return params, targets


def head_scores(source: Source, task: Task) -> Scores:
    """The run's own heads: the learning rate with the best mean AUROC on the selection split scores the test split.

    Raises ConfigError when the run has no head, or one for other targets.
    """
    meta = source.meta
    require(meta["objective"] == "supervised", f"config.baselines.runs: {source.run} is not a fine-tuned run")
    require(
        tuple(meta["targets"]) == task.targets,
        f"{source.run} was trained for {meta['targets']}, not for {list(task.targets)}",
    )
    objective = Supervised.trained(meta)

    def function(networks, images):
        features = objective.features(*networks, images, blocks=objective.head["blocks"])
        return {"logits": objective.logits(networks[0], features).swapaxes(0, 1)}

    networks = trained_networks(source)
    runners = {mirrored: task.runner(function, source.geometry, mirrored=mirrored) for mirrored in (False, True)}

    def run(role, mirrored=False):
        return runners[mirrored](task.splits[role], networks)["logits"]

    logits = {"select": run("select"), "test": task.over_mirror(lambda mirrored: run("test", mirrored))}
    best, grid, broken = best_rate(source.run, objective.learning_rates, logits["select"], task.labels["select"])
    rates = dict(zip(map(str, objective.learning_rates), grid, strict=True))
    chosen = {
        "learning_rate": objective.learning_rates[best],
        "selection_auroc": rates,
        "pretrained": meta["pretrained"],
    }
    if broken:
        chosen["not finite"] = broken
    if task.splits["select"].name in meta["config"]["data"]["split"].split("+"):
        chosen["selection"] = "the selection rows were trained on, so thresholds chosen on them are too sure"
    return Scores(logits["test"][:, best], chosen, logits["select"][:, best], "logit")


def best_rate(
    run: str, rates: Sequence[float], logits: Float[np.ndarray, "n rates c"], labels: Integer[np.ndarray, "n c"]
) -> tuple[int, list[float | None], list[float]]:
    """The rate with the best mean AUROC, that of each, and those whose logits are not finite, which are passed over.

    Raises RunError when the logits of no rate are finite.
    """
    finite = np.isfinite(logits).all(axis=(0, 2))
    broken = [rate for rate, whole in zip(rates, finite, strict=True) if not whole]
    if not finite.any():
        raise RunError(f"{run}: the logits of every learning rate are not finite; its training diverged")
    if broken:
        print(f"{run}: learning rates {broken} have logits that are not finite and are passed over", flush=True)
    grid = [protocols.mean_auroc(logits[:, i], labels) if whole else None for i, whole in enumerate(finite)]
    best = max((value, -i) for i, value in enumerate(grid) if value is not None)
    return -best[1], grid, broken


def head_columns(source: Source, task: Task, asked: Asked) -> dict[str, Scores]:
    """The heads of a fine-tuned run and of the `runs` beside it."""
    columns = {column_name(source.run, source.meta, ()): head_scores(source, task)}
    for run in asked.runs:
        other = open_source(run)
        scores = head_scores(other, task)
        columns[column_name(run, other.meta, columns)] = scores
    return columns


def backbones_of(source: Source, network: str, random: bool) -> dict[str, Mapping[str, Any]]:
    """The backbone of the run's `network`, and with `random` one that has seen nothing, by column.

    Raises ConfigError for a run that keeps changes of another run's backbone alone.
    """
    meta, found = source.meta, checkpoint.network_of(source.meta, network)
    require(
        meta.get("backbone", {}).get("mode") != "lora",
        f"{source.run}: its backbone is low-rank factors on that of {meta.get('pretrained', {}).get('run')}; "
        "probe that run, or score this one's head with config.protocol=head",
    )
    if found != network:
        print(f"{source.run} was trained without a teacher; its one network, the student, is evaluated")
    params = checkpoint.read_item(source.run, NETWORKS[found], source.step)["backbone"]
    backbones = {f"pretrained ({found})": params}
    if random:
        backbones["random network"] = random_backbone(meta["model"], seed=0)
    return backbones


def frozen_columns(source: Source, task: Task, asked: Asked, score: Callable[..., Scores]) -> dict[str, Scores]:
    """`score(task, model, backbone, geometry)` of each backbone; what cannot be scored is told with run and column."""
    columns = {}
    for name, backbone in backbones_of(source, asked.network, asked.random).items():
        try:
            columns[name] = score(task, source.meta["model"], backbone, source.geometry)
        except ValueError as error:
            cached_columns.refuse(error, f"{source.run}, step {source.meta['step']}, {name}")
    return columns


def probe_columns(
    score: Callable[..., Scores], options: tuple[str, ...], source: Source, task: Task, asked: Asked
) -> dict[str, Scores]:
    """Frozen features of the run's network, and on request of one that has seen nothing, under `score`."""
    chosen = {name: asked.probe[name] for name in options}
    return frozen_columns(source, task, asked, partial(score, **chosen))


def trained_columns(score: Callable[..., Scores], source: Source, task: Task, asked: Asked) -> dict[str, Scores]:
    """Heads that are trained here, on cached features of the same backbones."""
    return frozen_columns(source, task, asked, partial(score, settings=asked.settings, run=source.run))


# Name of `config.protocol` -> columns of a source, a task and what was asked.
PROTOCOLS: dict[str, Callable[..., dict[str, Scores]]] = {
    "head": head_columns,
    "linear_probe": partial(probe_columns, protocols.linear_probe_scores, ("blocks", "tokens")),
    "knn": partial(probe_columns, protocols.knn_scores, ("k", "tokens")),
    "cached_head": partial(trained_columns, cached_columns.cached_head),
    "label_efficiency": partial(trained_columns, cached_columns.label_efficiency),
}
# Protocols whose hand-made floor is not that of all rows.
FLOORS: dict[str, Callable[..., Scores]] = {"label_efficiency": cached_columns.label_efficiency_floor}


def score_columns(source: Source, task: Task, *, protocol: str, asked: Asked, floor: bool) -> dict[str, Scores]:
    """The evaluated run first, then the baselines: other runs, a random network, with `floor` hand-made features."""
    columns = PROTOCOLS[protocol](source, task, asked)
    if floor:
        score = FLOORS.get(protocol, lambda task, fit, settings: protocols.floor_scores(task, fit))
        columns["hand-made features"] = score(task, source.geometry.fit, asked.settings)
    return columns


def backbone_mode(meta: Mapping[str, Any]) -> str:
    """How a fine-tuned run trained its backbone, a key of `MODES`."""
    return meta.get("backbone", {}).get("mode", "frozen")


def column_name(run: str, meta: Mapping[str, Any], taken: Collection[str]) -> str:
    """What the report calls a fine-tuned run: its head, backbone and how that was trained; where that is `taken`, the
    run as well."""
    network, head = meta["pretrained"]["network"], meta["head"]["name"]
    on = "random network" if network == "random" else network
    name = f"{SPOKEN_HEADS.get(head, head)} on {on}, {MODES[backbone_mode(meta)]}"
    return f"{name}, {run}" if name in taken else name
