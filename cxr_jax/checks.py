"""Numbers of a config that no run can have, told before anything is written.

In: a resolved config. Out: nothing, or a ConfigError that names the key, what was found and what is legal. What a
single function can judge stands at that function; here is what concerns the run as a whole.
"""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.collapse import MODES
from cxr_jax.config import call, require
from cxr_jax.evals.features import TOKENS
from cxr_jax.resume import ON_NONFINITE
from cxr_jax.sharding import data_shards
from cxr_jax.trackers import check_trackers

COUNTS: tuple[str, ...] = ("batch_size", "total_steps", "checkpoint.every_steps", "checkpoint.keep", "log.every_steps")
COUNTS += ("log.collapse_patience", "data.threads", "data.prefetch", "checkpoint.keep_best", "numerics.max_rollbacks")
NOT_NEGATIVE = ("data.workers", "data.prefetch_to_device", "data.cache_decoded_mb")
PROTOCOLS = ("head", "linear_probe", "knn")  # of an evaluation
NETWORKS = ("teacher", "student")
EXAMPLES = "log.examples_every_steps"


def check_counts(config: ConfigDict) -> None:
    """Refuse zero and negative numbers where something is counted."""
    flat = door.flatten(config)
    for key in COUNTS:
        require(flat[key] >= 1, f"config.{key}={flat[key]} must be at least 1")
    for key in NOT_NEGATIVE:
        require(flat[key] >= 0, f"config.{key}={flat[key]} must be at least 0; 0 switches it off")
    mode = config.log.on_collapse
    require(mode in MODES, f"config.log.on_collapse={mode!r}: legal are {', '.join(MODES)}")
    policy = config.numerics.on_nonfinite
    require(policy in ON_NONFINITE, f"config.numerics.on_nonfinite={policy!r}: legal are {', '.join(ON_NONFINITE)}")
    call(check_trackers, "log", {"names": config.log.trackers})
    for key in ("log.stall_secs", "checkpoint.every_secs"):
        require(flat[key] >= 0, f"config.{key}={flat[key]} must be at least 0; 0 switches it off")
    every = flat.get(EXAMPLES, 0)
    require(every >= 0, f"config.{EXAMPLES}={every} must be at least 0; 0 shows the first batch at the start alone")


def check_numbers(config: ConfigDict) -> None:
    """Refuse shares of a run that are none, and negative numbers of the optimiser."""
    for key, value in door.flatten(config).items():
        if key.endswith("_frac"):
            require(0 <= value <= 1, f"config.{key}={value} must be a fraction of the run, 0 to 1")
        elif key.startswith("optim."):
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, (int, float))]
            require(all(n >= 0 for n in numbers), f"config.{key}={value} must not be negative")


def check_split(config: ConfigDict, mesh: Mesh, group_size: int) -> None:
    """Refuse numbers that the devices cannot share evenly."""
    shards, batch_size, tensor = data_shards(mesh), config.batch_size, mesh.shape["tensor"]
    require(
        batch_size % shards == 0,
        f"config.batch_size={batch_size} must be a multiple of {shards}, the devices that share it",
    )
    share = batch_size // shards
    require(
        group_size >= 1 and share % group_size == 0,
        f"config.objective.group_size={group_size} must divide the {share} images of each device "
        f"(batch_size {batch_size} on {shards})",
    )
    for name, head in config.get("heads", {}).items():
        require(
            head.num_prototypes % tensor == 0,
            f"config.heads.{name}.num_prototypes={head.num_prototypes} must be a multiple of {tensor}, "
            "the devices of config.mesh.tensor that share them",
        )


def check_batch(config: ConfigDict, images: int) -> None:
    """Refuse a batch of more than all `images`."""
    require(
        config.batch_size <= images,
        f"config.batch_size={config.batch_size} is more than the {images} images of split {config.data.split!r}; "
        "an image would stand in a batch twice",
    )


def check_evaluation(config: ConfigDict) -> None:
    """Refuse choices of an evaluation that there are not."""
    for key, legal in (("protocol", PROTOCOLS), ("network", NETWORKS), ("probe.tokens", TOKENS)):
        found = door.flatten(config)[key]
        require(found in legal, f"config.{key}={found!r}: legal are {', '.join(legal)}")
    require(bool(config.init_from), "config.init_from is empty; name a run directory")
    for name in ("k", "blocks"):
        require(config.probe[name] >= 1, f"config.probe.{name}={config.probe[name]} must be at least 1")
