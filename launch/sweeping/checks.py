"""Every command of a sweep, judged as its entry would judge it, before the first is started.

A process of its own, so that JAX and its devices are gone when the runs begin:

    python -m launch.sweeping.checks < REQUEST

In (JSON): `runs` as in sweep.json, `devices` of one run (0: those of this machine), `data`: whether datasets are seen.
Out (JSON): `errors`, a list of `[run, stage, message, exit code]`, and `same`, a list of lists of runs with one config.

A run's own training is built up to the shapes of its parameters. A command that follows it reads files that do not
exist yet, so of it only the config is judged: keys, types, numbers.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.checks import check_counts, check_evaluation, check_numbers
from cxr_jax.config import EXIT_CONFIG, EXIT_DATA, ConfigError
from cxr_jax.config_reading import read_config
from cxr_jax.data.records import DataError
from cxr_jax.evals.columns import PROTOCOLS
from cxr_jax.evals.per_image_protocols import PER_IMAGE
from cxr_jax.experiments import prepare

NUMBERS = (int, float)


def check_types(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value of a sweep file whose type is not that of the key's value in the config.

    A command line turns everything into text, in which `True` and "True" are the same.
    """
    legal = door.flatten(config)
    for key, value in overrides.items():
        if key not in legal or legal[key] is None:
            continue
        found, given = legal[key], list(value) if isinstance(value, tuple) else value
        if isinstance(found, list) and isinstance(given, list):
            wrong = [item for item in given if found and not _fits(found[0], item)]
        else:
            wrong = [] if _fits(found, given) else [given]
        if wrong:
            example = tuple(found) if isinstance(found, list) else found
            raise ConfigError(
                f"config.{key}={value!r} is no {type(example).__name__}; legal are values such as {example!r}"
            )


def _fits(legal: Any, value: Any) -> bool:
    if isinstance(legal, bool) or isinstance(value, bool):
        return isinstance(legal, bool) and isinstance(value, bool)
    return isinstance(value, NUMBERS if isinstance(legal, float) else type(legal))


def check_command(command: Mapping[str, Any], *, first: bool, data: bool) -> ConfigDict:
    """The config of a command. Raises ConfigError or DataError."""
    arguments = [word for word in command["arguments"] if not word.startswith("--workdir=")]
    config = read_config(arguments)
    if command["entry"] == "train":
        if first:
            prepare.check(config, data=data)
        else:
            check_counts(config)
            check_numbers(config)
    else:
        check_evaluation(config, (*PROTOCOLS, *PER_IMAGE))
    return config


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is wrong with the commands of `request`."""
    errors: list[list[Any]] = []
    texts: dict[str, list[str]] = {}
    for run in request["runs"]:
        for number, command in enumerate(run["commands"]):
            try:
                check_types(read_config(command["arguments"][:1]), command["overrides"])
                config = check_command(command, first=number == 0, data=request["data"])
                if number == 0:
                    texts.setdefault(door.as_text(config), []).append(run["name"])
            except (ConfigError, DataError) as error:
                code = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_DATA
                errors.append([run["name"], command["stage"], " ".join(str(error).split()), code])
            except Exception as error:  # what nobody thought of would end the run as well
                told = " ".join(f"{type(error).__name__}: {error}".split())
                errors.append([run["name"], command["stage"], told, EXIT_CONFIG])
    return {"errors": errors, "same": [names for names in texts.values() if len(names) > 1]}


def main() -> None:
    """Read the request, print the answer as the last line of stdout."""
    request = json.load(sys.stdin)
    if request["devices"]:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", request["devices"])
    print(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
