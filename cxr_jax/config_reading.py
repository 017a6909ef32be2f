"""Reading a config: a command line in, one resolved config out, or one line that says what is wrong with it.

In: `--config=file.py[:argument]` and `--config.key=value`. Out: a locked ConfigDict, and its flat forms. absl and
ml_collections tell mistakes in their own way; here they become key, found, legal, and what to do.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cxr_jax.config_hints import did_you_mean, explain_raised, nearest, wrong_door


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
        raise ConfigError(_explain_flag(values, argv, str(error))) from None
    except Exception as error:  # whatever the user's config file raises
        raise ConfigError(_explain_key(values, argv) or _explain_file(argv, error)) from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    overridden = config_flags.get_override_values(values["config"]) if "config" in values else {}
    for name, value in overridden.items():
        if isinstance(value, ConfigDict):
            raise ConfigError(_explain_section(name, value, _of_file(values, argv)))
        if isinstance(value, tuple):
            _check_numbers(name, value, flatten(_of_file(values, argv)).get(name, []))
            _check_commas(name, value, argv)
    return rest


def _of_file(values: flags.FlagValues, argv: list[str]) -> ConfigDict:
    """The config as the file has it. absl drops it when an override fails."""
    return values["config"].parser.parse(_argument_of(argv, "config"))


def _explain_section(name: str, given: Any, config: ConfigDict) -> str:
    """What to write in place of a whole section, which would take the place of all its keys."""
    if isinstance(given, ConfigDict) and given:
        return f"config.{name} is a section; write its keys, " + " and ".join(
            f"--config.{name}.{key}=..." for key in given
        )
    for part in name.split("."):
        config = config[part]
    return f"config.{name} is a section; write its keys, --config.{name}.KEY=...; legal are {', '.join(config)}"


def _check_commas(name: str, value: tuple, argv: list[str]) -> None:
    """A bare text becomes a tuple of that one text, whatever commas it holds."""
    bare = _argument_of(argv, f"config.{name}")
    if value == (bare,) and "," in bare:
        items = tuple(item.strip() for item in bare.split(",") if item.strip())
        raise ConfigError(
            f'config.{name}={bare!r} would be a single item; write --config.{name}="{items!r}", or for one item that '
            f'holds commas "{value!r}", with the quotes'
        )


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
    # ml_collections loads every file as this module; one without get_config() would be given the last file's.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True, sys_argv=argv)
    read_flags(values, argv)
    return values.config


def _explain_flag(values: flags.FlagValues, argv: list[str], message: str) -> str:
    """absl's message, with what to do."""
    message = message.replace("FATAL Flags parsing error: ", "").strip()
    bare = re.match(r"Missing value for flag --config(\.?[\w.]*)$", message)
    if bare:
        return _explain_bare(values, argv, bare[1].lstrip("."))
    missing = re.findall(r"Flag --(\w+) must have a value other than None", message)
    if missing:
        return f"--{' and --'.join(missing)} missing; write " + " ".join(f"--{name}=..." for name in missing)
    if "in argv before a value for --config" in message:
        return f"{message}; put --config=FILE before --config.key=value"
    raised = re.match(r"flag --config=(.*?): Error whilst parsing", message)
    if raised:
        file = raised[1].partition(":")[0]
        at = re.findall(rf'{re.escape(Path(file).name)}", line (\d+)', message)
        why = message.splitlines()[-1]
        return f"--config={raised[1]}: " + (f"{why} (line {at[-1]})" if at else wrong_door(why, file) or why)
    section = re.match(r"flag --config\.([\w.]+)=.* as a ConfigDict", message, re.DOTALL)
    if section:
        return _explain_section(section[1], None, _of_file(values, argv))
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


def _explain_bare(values: flags.FlagValues, argv: list[str], name: str) -> str:
    """What to write for a key (or the config itself) that stands on the command line without a value."""
    if not name:
        return "--config has no value; write --config=FILE, for example --config=configs/smoke.py"
    try:
        found: Any = _of_file(values, argv)
        config = found
        for part in name.split("."):
            found = found[part]
    except (KeyError, TypeError, AttributeError, OSError):
        return f"config.{name} has no value; write --config.{name}=..."
    if isinstance(found, ConfigDict):
        return _explain_section(name, None, config)
    return f"config.{name} has no value; write --config.{name}=..., the config file has {found!r}"


def _explain_key(values: flags.FlagValues, argv: list[str]) -> str | None:
    """Which `--config.key` of the command line the config does not have, and the nearest that it has."""
    try:
        config = _of_file(values, argv)
    except Exception:
        return None
    if not isinstance(config, ConfigDict):
        return None
    for name in (match[1] for arg in argv if (match := re.match(r"--?config\.([^=]*)", arg))):
        section, walked = config, "config"
        for part in name.split("."):
            if isinstance(section, ConfigDict) and part in section:
                section, walked = section[part], f"{walked}.{part}"
                continue
            hint = did_you_mean("config", nearest(name, list(flatten(config)))) if part else ""
            legal = ", ".join(section) if isinstance(section, ConfigDict) else f"nothing below the value {section!r}"
            return f"config.{name} is not a key of {walked}; legal are {legal}{hint}"
    return None


def _argument_of(argv: list[str], flag: str) -> str:
    """What stands last behind `--flag=` or `--flag `; empty if nothing does."""
    arguments, found = iter(argv), ""
    for name, equals, value in (arg.partition("=") for arg in arguments):
        if name.startswith("-") and name.lstrip("-") == flag:
            found = value if equals else next(arguments, "")
    return found


def _explain_file(argv: list[str], error: Exception) -> str:
    """What is wrong with the config file itself."""
    file = _argument_of(argv, "config")
    examples = "legal are Python files with get_config(), for example configs/smoke.py"
    if isinstance(error, OSError):
        why = "no such file" if not Path(file.partition(":")[0]).is_file() else str(error)
        return f"--config={file}: {why}; {examples}"
    why = explain_raised(error, file)
    return f"--config={file}: {why}" + (f"; {examples}" if why.startswith("it has no") else "")
