"""Going on with a run: what may differ, where the data stands, and going back after numbers that are not finite.

In: what the checkpoint says of the run, and the config of the command that continues it. Out: the `meta` it goes on
with. Batch t is records `order[(t + data_skip) B + r]`: everything here moves that one integer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_jax import config as door
from cxr_jax.config import require
from cxr_jax.loop import NumericError

# What may change between starting a run and continuing it, because no result depends on it.
FREE_KEYS = ("log.", "probe.", "checkpoint.", "mesh.", "numerics.", "allow_change", "data.path", "data.threads")
FREE_KEYS += ("data.prefetch", "data.workers", "data.cache_")
# What the shapes of the state follow from: no permission changes it.
FIXED_KEYS = ("model.", "heads.", "decoder.", "head.", "objective.name", "seed", "dtypes.param")
FIXED_KEYS += ("optim.first_moment_dtype", "objective.teacher_dtype")
CARRIED = ("data_skip", "init", "owed", "collapse", "rollbacks")
ON_NONFINITE = ("stop", "rollback")


def check_same_config(saved: dict[str, Any], config: dict[str, Any], workdir: Path) -> dict[str, list]:
    """Refuse to continue a run under another config, but for what `config.allow_change` names (keys or sections).

    Returns the changes that were allowed, `{key: [old, new]}`.
    """
    allowed = tuple(map(str, config["allow_change"]))
    old, new = door.flatten(saved), door.flatten(config)

    def fixed(name: str) -> bool:
        # A run of an earlier version cannot say what it had for a key that came later.
        came_later = name in new and name not in old
        return f"{name}.".startswith(FIXED_KEYS) and not came_later

    never = [name for name in allowed if fixed(name)]
    require(not never, f"config.allow_change={allowed}: {', '.join(never)} cannot change within a run; start a new one")
    changed = {key: values for key, values in door.diff(old, new).items() if not key.startswith(FREE_KEYS)}
    named = {
        key: values for key, values in changed.items() if any(_within(key, name) for name in allowed) and not fixed(key)
    }
    refused = {key: values for key, values in changed.items() if key not in named}
    text = "; ".join(
        f"config.{key} was {was!r} and is {now!r}" if key in old else f"config.{key} is new and is {now!r}"
        for key, (was, now) in list(refused.items())[:4]
    )
    text += f"; and {len(refused) - 4} more" if len(refused) > 4 else ""
    allowable = [key for key in refused if not fixed(key)][:4]
    permission = ", or --config.allow_change=\"('" + "','".join(allowable) + "',)\""
    require(
        not refused,
        f"{workdir} holds a run of another config: {text}; take another --workdir or the same values"
        + (permission if len(allowable) == min(len(refused), 4) else ""),
    )
    strange = [name for name in allowed if not any(_within(key, name) for key in (*old, *new))]
    require(not strange, f"config.allow_change={allowed}: {', '.join(strange)} is no key or section of the config")
    return named


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def check_same_data(saved: dict[str, Any], fingerprint: str, config: dict[str, Any], workdir: Path) -> None:
    """Refuse to continue on another dataset, unless `config.allow_change` names `data`."""
    require(
        saved["fingerprint"] == fingerprint or "data" in config["allow_change"],
        f"{workdir} was trained on other data (or other data.weights) than {config['data']['path']} (fingerprint "
        f"{saved['fingerprint'][:12]}, found {fingerprint[:12]}); take that, or --config.allow_change=\"('data',)\"",
    )


def data_skip_after(step: int, data_skip: int, old_batch: int, new_batch: int) -> int:
    """The skip with which batches of another size go on where the old ones stopped, or less than a batch after."""
    return -(-(step + data_skip) * old_batch // new_batch) - step


def carried(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What a run goes on with from its checkpoint: where its data stands, what it owes, what it has seen."""
    found = {name: saved[name] for name in CARRIED if name in saved}
    old = saved["config"]["batch_size"]
    if old != config["batch_size"]:
        found["data_skip"] = data_skip_after(saved["step"], saved["data_skip"], old, config["batch_size"])
    return found


def roll_back(
    error: NumericError, steps: Sequence[int], meta: dict[str, Any], limit: int
) -> tuple[int, dict[str, Any]]:
    """The checkpoint, of `steps`, to go back to, and what `meta` then says: the data moves past the bad range.

    The newest is taken, or, where a run failed again without a newer one, the one before: its parameters may hold what
    went wrong. Raises `error` itself when there is none left or `limit` rollbacks were made.
    """
    before: Sequence[dict[str, int]] = meta.get("rollbacks", ())
    usable = sorted(set(steps) - {entry["to_step"] for entry in before})
    if len(before) >= limit:
        made = f"after {len(before)} rollbacks (numerics.max_rollbacks={limit})"
        raise NumericError(error.step, f"{error.what}, {made}", error.advice)
    if not usable:
        raise error
    good = usable[-1]
    data_skip = meta["data_skip"] + error.step + 1 - good
    entry = {"failed_step": error.step, "to_step": good, "data_skip": data_skip}
    return good, {"data_skip": data_skip, "rollbacks": [*before, entry]}
