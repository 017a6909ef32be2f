"""Reading a config: a command line in, one resolved config out, or one line that says what is wrong with it.

In: `--config=file.py[:argument]` and `--config.key=value`. Out: a locked ConfigDict, and its flat forms. absl and
ml_collections tell mistakes in their own way; here they become key, found, legal, and what to do.
"""

import difflib
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags


class ConfigError(Exception):
    """A configuration that cannot run. The message is one line; entry points exit with 2."""


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}` of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def as_text(config: ConfigDict) -> str:
    """The config, one `a.b = value` a line, sorted: as `--print_config` shows it and tests/golden keeps it."""
    return "".join(f"{key} = {value!r}\n" for key, value in sorted(flatten(config).items()))


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list]:
    """`{"a.b": [old, new]}` for every key whose value differs; absent values are None."""
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def read_flags(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parse `argv` into `values`; returns what is no flag. Raises ConfigError."""
    try:
        rest = values(argv)
        # A config file that cannot be opened shows itself only when it is looked at.
        _ = "config" in values and values.config.is_locked
    except flags.Error as error:
        raise ConfigError(_explain_flag(values, str(error))) from None
    except Exception as error:  # whatever the user's config file raises
        raise ConfigError(_explain_key(values, argv) or _explain_file(argv, error)) from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    overridden = config_flags.get_override_values(values["config"]) if "config" in values else {}
    for name, value in overridden.items():
        if isinstance(value, ConfigDict):  # it would take the place of all keys of the section
            keys = " and ".join(f"--config.{name}.{key}=..." for key in value)
            raise ConfigError(f"config.{name} is a section; write its keys, {keys}")
        if isinstance(value, tuple):
            _check_numbers(name, value, flatten(values["config"].parser.parse(_config_file(argv))).get(name, []))
    return rest


def _check_numbers(name: str, value: tuple, of_file: list) -> None:
    """absl takes any text for an item of a tuple."""
    if of_file and all(isinstance(item, int | float) for item in of_file):
        wrong = [item for item in value if not isinstance(item, int | float)]
        if wrong:
            legal = f"legal are values such as {tuple(of_file)!r}"
            raise ConfigError(f"config.{name}={value!r}: its items are numbers; {legal}")


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The locked config of `--config=FILE --config.key=value ...`, as an entry would read it from its command line.

    Raises ConfigError.
    """
    argv, values = ["", *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True, sys_argv=argv)
    read_flags(values, argv)
    return values.config


def _explain_flag(values: flags.FlagValues, message: str) -> str:
    """absl's message, with what to do."""
    message = message.replace("FATAL Flags parsing error: ", "").strip()
    missing = re.findall(r"Flag --(\w+) must have a value other than None", message)
    if missing:
        return f"--{' and --'.join(missing)} missing; write " + " ".join(f"--{name}=..." for name in missing)
    if "in argv before a value for --config" in message:
        return f"{message}; put --config=FILE before --config.key=value"
    raised = re.match(r"flag --config=(.*?): Error whilst parsing", message)
    if raised:
        name = re.escape(Path(raised[1].partition(":")[0]).name)
        at = re.findall(rf'{name}", line (\d+)', message)
        return f"--config={raised[1]}: {message.splitlines()[-1]}" + (f" (line {at[-1]})" if at else "")
    wrong = re.match(r"flag --config\.([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    found = flatten(values["config"].value).get(wrong[1]) if wrong else None
    if wrong and isinstance(found, list):
        example = tuple(found) or ("A", "B C")
        return f'config.{wrong[1]}={wrong[2]!r} is no tuple; legal are values such as "{example!r}", with the quotes'
    if wrong and found is not None:
        return f"config.{wrong[1]}={wrong[2]!r} is no {type(found).__name__}; legal are values such as {found!r}"
    nothing = re.match(r"Type <class 'NoneType'> of field ([\w.]+)", message)
    if nothing:
        return f"{nothing[1]} is None in the config file, which has no type to read a value by; set it in a config file"
    return message.removeprefix("flag ")


def _explain_key(values: flags.FlagValues, argv: list[str]) -> str | None:
    """Which `--config.key` of the command line the config does not have, and the nearest that it has."""
    try:
        # absl drops the config when an override of it fails.
        config = values["config"].parser.parse(_config_file(argv))
    except Exception:
        return None
    if not isinstance(config, ConfigDict):
        return None
    for name in (match[1] for arg in argv if (match := re.match(r"--?config\.([^=]+)", arg))):
        section, walked = config, "config"
        for part in name.split("."):
            if isinstance(section, ConfigDict) and part in section:
                section, walked = section[part], f"{walked}.{part}"
                continue
            near = difflib.get_close_matches(name, flatten(config), n=1)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            legal = ", ".join(section) if isinstance(section, ConfigDict) else f"nothing below the value {section!r}"
            return f"config.{name} is not a key of {walked}; legal are {legal}{hint}"
    return None


def _config_file(argv: list[str]) -> str:
    arguments = iter(argv)
    for name, _, value in (arg.partition("=") for arg in arguments):
        if name.lstrip("-") == "config" and name.startswith("-"):
            return value or next(arguments, "")
    return ""


def _explain_file(argv: list[str], error: Exception) -> str:
    """What is wrong with the config file itself."""
    file = _config_file(argv)
    if isinstance(error, OSError):
        why = "no such file" if not Path(file.partition(":")[0]).is_file() else str(error)
        return f"--config={file}: {why}; legal are Python files with get_config(), for example configs/smoke.py"
    frames = traceback.extract_tb(error.__traceback__)
    name = Path(file.partition(":")[0]).name
    at = next((frame.lineno for frame in reversed(frames) if Path(frame.filename).name == name), None)
    return f"--config={file}: {type(error).__name__}: {error}" + (f" (line {at})" if at else "")
