"""Numbers of a config that no run can have, told before anything is written.

In: a resolved config. Out: nothing, or a ConfigError that names the key, what was found and what is legal. What a
single function can judge stands at that function; here is what concerns the run as a whole.
"""

import math
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.accumulation import Divisible
from cxr_jax.collapse import MODES
from cxr_jax.config import ConfigError, call, require
from cxr_jax.data.order import SEEDS
from cxr_jax.evals.features import TOKENS
from cxr_jax.objectives.base import Objective
from cxr_jax.resume import ON_NONFINITE
from cxr_jax.sharding import data_shards
from cxr_jax.trackers import check_trackers

COUNTS: tuple[str, ...] = ("batch_size", "accumulate_steps", "total_steps", "log.every_steps")
COUNTS += ("checkpoint.every_steps", "checkpoint.keep")
COUNTS += ("log.collapse_patience", "data.threads", "data.prefetch", "checkpoint.keep_best", "numerics.max_rollbacks")
NOT_NEGATIVE = ("data.workers", "data.prefetch_to_device", "data.cache_decoded_mb")
NETWORKS = ("teacher", "student")
STUDIES = ("none", "average", "concatenate")  # what a test row is: an image, or a study (`evals.studies`)
# Keys of an evaluation that some protocols have no use for.
BY_LABELS = ("head", "linear_probe", "knn", "cached_head", "label_efficiency")
ONLY_FOR = {
    "baselines.runs": ("head", "segmentation", "localisation"),
    "baselines.random": BY_LABELS[1:],
    "test_time_flip": BY_LABELS,
    **dict.fromkeys(("data.targets", "data.only_images"), (*BY_LABELS, "localisation")),
    **dict.fromkeys(
        ("data.train_only_images", "data.train_path", *(f"data.train_where.{f}" for f in ("source", "view", "sex"))),
        BY_LABELS,
    ),
}
EXAMPLES = "log.examples_every_steps"


def check_counts(config: ConfigDict) -> None:
    """Refuse numbers beyond their range, and what is named and does not exist."""
    flat = door.flatten(config)
    for key in COUNTS:
        require(flat[key] >= 1, f"config.{key}={flat[key]} must be at least 1")
    for key in NOT_NEGATIVE:
        require(flat[key] >= 0, f"config.{key}={flat[key]} must be at least 0; 0 switches it off")
    require(0 <= config.seed < SEEDS, f"config.seed={config.seed}: legal are 0 to {SEEDS - 1}")
    mode = config.log.on_collapse
    require(mode in MODES, f"config.log.on_collapse={mode!r}: legal are {', '.join(MODES)}")
    policy = config.numerics.on_nonfinite
    require(policy in ON_NONFINITE, f"config.numerics.on_nonfinite={policy!r}: legal are {', '.join(ON_NONFINITE)}")
    call(check_trackers, "log", {"names": config.log.trackers})
    for key in ("log.stall_secs", "checkpoint.every_secs"):
        require(flat[key] >= 0, f"config.{key}={flat[key]} must be at least 0; 0 switches it off")
    # What is kept has to be saved first; keep_every_steps takes the nearest.
    saving = config.checkpoint
    for key, steps in (("keep_steps", saving.keep_steps), ("teacher_every_steps", (saving.teacher_every_steps,))):
        never = [step for step in steps if step % saving.every_steps and step != config.total_steps]
        require(
            not never or bool(saving.every_secs),
            f"config.checkpoint.{key}: {never} must be multiples of checkpoint.every_steps={saving.every_steps}; "
            "nothing is saved at other steps",
        )
    metric = saving.best_metric
    require(
        not metric or bool(config.get("probe", {}).get("every_steps", 0)),
        f"config.checkpoint.best_metric={metric!r}: scores come from the online probe, and "
        "config.probe.every_steps is 0",
    )
    every = flat.get(EXAMPLES, 0)
    require(every >= 0, f"config.{EXAMPLES}={every} must be at least 0; 0 shows the first batch at the start alone")


def check_numbers(config: ConfigDict) -> None:
    """Refuse numbers that are not finite, shares of a run that are none, and negative numbers of the optimiser."""
    for key, value in door.flatten(config).items():
        items = value if isinstance(value, list) else [value]
        require(
            all(math.isfinite(item) for item in items if isinstance(item, float)),
            f"config.{key}={value} must be finite",
        )
        if key.endswith("_frac"):
            require(0 <= value <= 1, f"config.{key}={value} must be a fraction of the run, 0 to 1")
        elif key.startswith("optim."):
            numbers = [item for item in items if isinstance(item, (int, float))]
            require(all(n >= 0 for n in numbers), f"config.{key}={value} must not be negative")


def check_experiment(config: ConfigDict, mesh: Mesh, objective: Objective, model: dict[str, Any]) -> None:
    """Refuse what these devices cannot share, and batches cut that have to be whole."""
    check_split(config, mesh, getattr(objective, "group_size", 1))
    check_tensor(mesh, model)
    check_parts(config, objective)


def check_split(config: ConfigDict, mesh: Mesh | AbstractMesh, group_size: int) -> None:
    """Refuse numbers that the devices cannot share evenly."""
    shards, batch_size, tensor = data_shards(mesh), config.batch_size, mesh.shape["tensor"]
    below = batch_size // shards * shards
    near = " and ".join(str(legal) for legal in (below, below + shards) if legal)
    require(
        batch_size % shards == 0,
        f"config.batch_size={batch_size} must be a multiple of {shards}, the devices that share it; nearest: {near}",
    )
    share = batch_size // shards
    require(
        group_size >= 1 and share % group_size == 0,
        f"config.objective.group_size={group_size} must divide the {share} images of each device "
        f"(batch_size {batch_size} on {shards})",
    )
    parts, groups = config.accumulate_steps, share // group_size
    require(
        groups % parts == 0,
        f"config.accumulate_steps={parts} must divide the {groups} groups of each device "
        f"(batch_size {batch_size} on {shards}, in groups of {group_size})",
    )
    for name, head in config.get("heads", {}).items():
        require(
            head.num_prototypes % tensor == 0,
            f"config.heads.{name}.num_prototypes={head.num_prototypes} must be a multiple of {tensor}, "
            "the devices of config.mesh.tensor that share them",
        )


def check_tensor(mesh: Mesh, model: dict[str, Any]) -> None:
    """Refuse attention heads that the tensor axis cannot share."""
    tensor, heads = mesh.shape["tensor"], model["num_heads"]
    legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
    require(
        heads % tensor == 0,
        f"config.mesh.tensor={tensor} must divide the {heads} attention heads of the model; legal are {legal}",
    )


def check_parts(config: ConfigDict, objective: Objective) -> None:
    """Refuse to cut a batch of an objective that has to see it whole."""
    if config.accumulate_steps == 1:
        return
    why = f"config.accumulate_steps={config.accumulate_steps}: {config.objective.name}"
    if not isinstance(objective, Divisible):
        raise ConfigError(f"{why} cannot be cut into parts; legal is 1")
    terms = objective.whole_batch_terms
    require(not terms, f"{why} with {', '.join(terms)} looks at the whole batch at once; switch it off, or legal is 1")


def check_batch(config: ConfigDict, images: int) -> None:
    """Refuse a batch of more than all `images`."""
    require(
        config.batch_size <= images,
        f"config.batch_size={config.batch_size} is more than the {images} images of split {config.data.split!r}; "
        "an image would stand in a batch twice",
    )


def check_evaluation(config: ConfigDict, protocols: tuple[str, ...]) -> None:
    """Refuse choices of an evaluation that there are not."""
    choices = (("protocol", protocols), ("network", NETWORKS), ("probe.tokens", TOKENS), ("study", STUDIES))
    for key, legal in choices:
        found = door.flatten(config)[key]
        require(found in legal, f"config.{key}={found!r}: legal are {', '.join(legal)}")
    require(bool(config.init_from), "config.init_from is empty; name a run directory")
    for name in ("k", "blocks"):
        require(config.probe[name] >= 1, f"config.probe.{name}={config.probe[name]} must be at least 1")
    require(config.batch_size >= 1, f"config.batch_size={config.batch_size} must be at least 1")
    drawn = config.bootstrap
    for name in ("resamples", "seed"):
        require(drawn[name] >= 0, f"config.bootstrap.{name}={drawn[name]} must be at least 0")
    require(0 < drawn.confidence < 1, f"config.bootstrap.confidence={drawn.confidence}: legal are between 0 and 1")
    targets = tuple(config.data.targets)
    require(len(set(targets)) == len(targets), f"config.data.targets={targets}: name each target once")
    for key, those in ONLY_FOR.items():
        found = door.flatten(config).get(key)
        require(
            not found or config.protocol in those,
            f"config.{key}={found!r} means nothing with config.protocol={config.protocol!r}; it goes with "
            f"{', '.join(those)}",
        )
    by_image = ("label_efficiency", "segmentation")
    scored = {"none": protocols, "average": tuple(name for name in protocols if name not in by_image)}
    suited = scored.get(config.study, ("cached_head",))
    require(
        config.protocol in suited,
        f"config.study={config.study!r} is not for config.protocol={config.protocol!r}; it goes with "
        f"{', '.join(suited)}",
    )
