"""From a sweep file to runs with names, folders and command lines.

In: `configs/sweeps/NAME.py[:argument]`, and `--config.key=value` overrides for every run. Out: a list of `Run`, and
sweep.json, which holds all that is needed to run them elsewhere.
"""

import hashlib
import json
import re
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.sweeps import CONFIG, RUN_STAGE, Overrides, Sweep
from cxr_jax.config_hints import explain_raised

MANIFEST = "sweep.json"
TRAIN = "train"
NAME_BYTES = 150  # file systems allow 255, and a stage's log adds its name


class SweepError(Exception):
    """A sweep that cannot be run. A line of the message is one thing that is wrong."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Command:
    """One process of a run: `python -m cxr_jax.<entry> <arguments>`, which leaves `result` in `workdir`.

    `overrides` are those of the sweep file, as Python values: a command line turns `True` and "True" into one text.
    """

    stage: str
    entry: str
    arguments: tuple[str, ...]
    workdir: str
    overrides: dict[str, Any]

    def line(self, python: str = "python") -> list[str]:
        """The command as a list of words."""
        return [python, "-m", f"cxr_jax.{self.entry}", *self.arguments]

    @property
    def result(self) -> Path:
        """The file that a finished command has certainly written."""
        return Path(self.workdir) / ("metrics.jsonl" if self.entry == TRAIN else "results.json")


@dataclass(frozen=True)
class Run:
    """One run of a sweep: what it overrides, and its commands in order, the run itself first."""

    name: str
    overrides: dict[str, Any]
    commands: tuple[Command, ...]


def load_sweep(spec: str) -> Sweep:
    """`get_sweep()` of a file, or `get_sweep(argument)` of `file.py:argument`. Raises SweepError."""
    file, _, argument = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise SweepError(f"--sweep={spec}: no such file; legal are files like configs/sweeps/small_mae_grid.py")
    # A typing mistake in the file is an error in it, whatever its kind.
    try:
        names = runpy.run_path(str(path))
        if "get_sweep" not in names:
            raise ValueError("it has no get_sweep()")
        sweep = names["get_sweep"](argument) if argument else names["get_sweep"]()
    except Exception as error:
        raise SweepError(f"--sweep={spec}: {explain_raised(error, spec, plain=ValueError)}") from None
    if not isinstance(sweep, Sweep):
        raise SweepError(f"--sweep={spec}: get_sweep() returned {type(sweep).__name__}, not a configs.sweeps.Sweep")
    return sweep


def resolve(sweep: Sweep, output: str, given: Mapping[str, str]) -> list[Run]:
    """Every run of the sweep in folders below `output`; `given` are the command line's overrides, as text.

    Raises SweepError for runs that are the same, and where the command line sets what the runs vary.
    """
    varied = {key for overrides in sweep.runs for key in overrides}
    both = sorted(varied & given.keys())
    if both:
        raise SweepError(f"--config.{both[0]}: the sweep varies this key; leave it to the sweep file")
    sweep = replace(
        sweep,
        runs=[_plain_overrides(overrides) for overrides in sweep.runs],
        fixed=_plain_overrides(sweep.fixed),
        then={name: replace(s, overrides=_plain_overrides(s.overrides)) for name, s in sweep.then.items()},
    )
    names = run_names(sweep.runs)
    return [_run(sweep, name, dict(o), output, given) for name, o in zip(names, sweep.runs, strict=True)]


def _plain_overrides(overrides: Overrides) -> dict[str, Any]:
    return {key: _plain(key, value) for key, value in overrides.items()}


def _plain(key: str, value: Any) -> Any:
    """What a command line and JSON can say of a value: arrays and their scalars as Python's, paths as text."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(key, item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, Mapping)):
        return value
    raise SweepError(
        f"config.{key}={value!r} is a {type(value).__name__}; legal are numbers, booleans, texts, tuples of them"
    )


def run_names(runs: Sequence[Overrides]) -> list[str]:
    """A name per run. Of runs whose values are written alike, the first has the plain name, others a digest behind it.

    So a sweep that grows keeps the names of its runs. Raises SweepError for runs with the same overrides.
    """
    short = short_keys({key for overrides in runs for key in overrides})
    first: dict[str, int] = {}
    names: dict[str, None] = {}
    for place, overrides in enumerate(runs):
        said = repr(sorted(overrides.items()))
        if said in first:
            raise SweepError(
                f"runs {first[said]} and {place} of the sweep are the same, {run_name(overrides, short)}: both set "
                f"{dict(overrides)!r}; leave one out"
            )
        first[said] = place
        name = run_name(overrides, short)
        names[f"{name}-{_digest(said)}" if name in names else name] = None
    return list(names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run(sweep: Sweep, name: str, overrides: dict[str, Any], output: str, given: Mapping[str, str]) -> Run:
    workdir = f"{output}/{name}"
    fixed = {key: value for key, value in sweep.fixed.items() if key not in given}
    own = {**fixed, **given, **overrides}
    config, data = own.pop(CONFIG, sweep.config), own.get("data.path")
    commands = [_command(RUN_STAGE, sweep.entry, config, workdir, own, fixed | overrides)]
    folders = {"": workdir}
    for stage_name, stage in sweep.then.items():
        folders[stage_name] = f"{workdir}/{stage_name}"
        inherited = {"data.path": data} if stage.entry == TRAIN and data else {}
        own = {**inherited, "init_from": folders[stage.init_from], **stage.overrides}
        commands.append(
            _command(stage_name, stage.entry, stage.config, folders[stage_name], own, dict(stage.overrides))
        )
    return Run(name, overrides, tuple(commands))


def _command(stage: str, entry: str, config: str, workdir: str, values: Overrides, overrides: Overrides) -> Command:
    words = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items()]
    kept = {key: value for key, value in overrides.items() if key != CONFIG}
    return Command(stage, entry, (f"--config={config}", f"--workdir={workdir}", *words), workdir, kept)


def short_keys(keys: set[str]) -> dict[str, str]:
    """For each path the fewest of its last parts that no other path of `keys` ends in."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        # A whole path may itself be the ending of another.
        short[key] = next((e for e in endings if sum(f".{other}".endswith(f".{e}") for other in keys) == 1), key)
    return short


def run_name(overrides: Overrides, short: Mapping[str, str]) -> str:
    """`mask_ratio=0.5,base_learning_rate=0.01`: a folder's name, without anything a shell would have to quote."""
    parts = [f"{short[key]}={_as_name(value, key)}" for key, value in overrides.items()]
    name = ",".join(parts) or "base"
    if len(name.encode()) > NAME_BYTES:
        name = f"{name[: NAME_BYTES - 9]}-{_digest(repr(sorted(overrides.items())))}"
    return name


def _as_name(value: Any, key: str) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(_as_name(item, key) for item in value) or "none"
    text = Path(value).stem if key == CONFIG else str(value)
    # A text of other scripts leaves no letter.
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or (_digest(text) if text else "empty")


def write_manifest(folder: Path, spec: str, runs: Sequence[Run]) -> None:
    """sweep.json: the command, and every run with its overrides and commands."""
    content = {
        "sweep": spec,
        "command": shlex.join(["python", "-m", "launch.sweep", *sys.argv[1:]]),
        "runs": [asdict(run) for run in runs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> list[Run]:
    """The runs of a sweep.json. Raises SweepError."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        return [
            Run(run["name"], run["overrides"], tuple(Command(**_tupled(command)) for command in run["commands"]))
            for run in content["runs"]
        ]
    except FileNotFoundError:
        raise SweepError(f"{folder} holds no {MANIFEST}; launch.sweep writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{folder / MANIFEST} is damaged ({error}); start launch.sweep again to rewrite it") from None


def _tupled(command: dict[str, Any]) -> dict[str, Any]:
    return {**command, "arguments": tuple(command["arguments"])}
