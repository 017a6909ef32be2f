"""The door: flags in, one resolved config out, and what a run leaves behind about itself.

In: a config file named by `--config=file.py[:argument]` and `--config.key=value` overrides. Out: a locked ConfigDict
for the entry file, named arguments for everything else, `run.json`.

Exit codes: 0 done, 2 bad configuration or flags, 3 bad data, 4 saved and stopped on preemption, 1 anything else.
"""

import difflib
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cxr_jax.data.records import DataError

EXIT_ERROR, EXIT_CONFIG, EXIT_DATA = 1, 2, 3
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


class ConfigError(Exception):
    """A configuration that cannot run. The message is one line; entry points exit with 2."""


class RunError(Exception):
    """A run that had to stop for a reason it can name. The message is one line; entry points exit with 1."""


def define_flags() -> None:
    """`--config`, `--workdir` and the place among several processes, for the entries that have them."""
    config_flags.DEFINE_config_file("config", None, "Config file, for example configs/smoke.py.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Run directory; made if absent, continued if it holds checkpoints.")
    flags.DEFINE_string(
        "coordinator_address", None, "host:port of process 0 of several; `auto` asks the cluster (TPU pod, Slurm, GKE)."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes train together.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, 0 .. num_processes - 1.", lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir"])


def start_distributed() -> None:
    """Join the other processes, if the flags say that there are any; call it before anything touches a device.

    JAX itself reads only the coordinator's address from the environment, so launchers pass all three flags.
    """
    address, count, index = (flags.FLAGS[name].value for name in ("coordinator_address", "num_processes", "process_id"))
    if address == "auto":
        require(count is None and index is None, "--coordinator_address=auto finds count and id itself; drop the flags")
        jax.distributed.initialize()
        return
    given = [value is not None for value in (address, count, index)]
    require(
        all(given) or not any(given),
        "--coordinator_address, --num_processes and --process_id belong together; "
        "give all three, none for a single process, or --coordinator_address=auto",
    )
    if all(given):
        require(index < count, f"--process_id={index} must be below --num_processes={count}")
        jax.distributed.initialize(address, count, index)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    """Parse flags; anything wrong with them or with the config file is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}; options are written --name=value")
        return rest
    except flags.Error as error:
        _fail(_explain_flag(str(error)), EXIT_CONFIG)
    except FileNotFoundError as error:
        _fail(f"--config: no such file {error.filename!r}; legal are the files in configs/", EXIT_CONFIG)
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError, ImportError, SyntaxError) as error:
        _fail(f"--config: {error}", EXIT_CONFIG)


def _explain_flag(message: str) -> str:
    return message.replace("FATAL Flags parsing error: ", "").strip()


def run_entry(main: Callable[[], None]) -> None:
    """Parse flags, run `main()`, and turn our errors into one line on stderr and their exit code."""

    def guarded(_):
        # Below ERROR, JAX lists accelerators it looked for in vain and Orbax tells a save in forty lines.
        logging.set_verbosity(logging.ERROR)
        try:
            main()
        except ConfigError as error:
            _fail(error, EXIT_CONFIG)
        except DataError as error:
            _fail(error, EXIT_DATA)
        except RunError as error:
            _fail(error, EXIT_ERROR)

    app.run(guarded, flags_parser=_parse)


def _parameters(function: Callable):
    # A Flax module's own signature hides its constructor's.
    constructor = function.__init__ if inspect.isclass(function) else function
    return inspect.signature(constructor).parameters.values()


def check_keys(prefix: str, kwargs: dict[str, Any], *functions: Callable, given: Collection[str] = ()) -> None:
    """Raise ConfigError for a key of a config section that none of `functions` takes by name, or that is `given`."""
    legal = sorted(
        parameter.name
        for function in functions
        for parameter in _parameters(function)
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in (*given, "self")
    )
    for key in kwargs:
        if key not in legal:
            near = difflib.get_close_matches(key, legal, n=1)
            hint = f"; did you mean {prefix}.{near[0]}?" if near else ""
            raise ConfigError(f"config.{prefix}.{key} is not a key of {prefix}; legal are {', '.join(legal)}{hint}")


def call(function: Callable, prefix: str, kwargs: dict[str, Any], **given) -> Any:
    """`function(**kwargs, **given)`, `kwargs` being a config section.

    A value or combination that the function refuses (ValueError, TypeError) becomes a ConfigError naming the section.
    """
    try:
        return function(**kwargs, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{prefix}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list]:
    """`{"a.b": [old, new]}` for every key whose value differs; absent values are None."""
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def overrides() -> dict[str, Any]:
    """What the command line changed: `{"a.b": value}`."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def environment() -> dict[str, Any]:
    """Versions, devices and threads: what bit-exact repetition depends on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "packages": packages,
        "devices": {"kind": device.device_kind, "count": jax.device_count(), "processes": jax.process_count()},
        "cpu_threads": int(os.environ.get("NPROC") or len(os.sched_getaffinity(0))),
        "commit": commit.stdout.strip() or "unknown",
    }


def write_run_json(workdir: Path, config: ConfigDict, extra: dict[str, Any]) -> None:
    """`run.json`: the resolved config, its difference from the file, the command, versions and devices."""
    content = {
        "command": " ".join(sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": overrides(),
        "config": config.to_dict(),
        "environment": environment(),
        **extra,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "run.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    temporary.replace(path)
