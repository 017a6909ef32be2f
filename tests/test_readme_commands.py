"""The READMEs' commands: every one names modules, flags, config files and keys that exist; marked ones are run.

A block that opens with ```sh run is run as it stands, the front README's blocks first, all in one folder that holds the
rooms and nothing else. Every other `python -m` command of a block is read as its entry would read it, without starting.
Words such as DIR, NAME or ... stand for what the reader fills in.
"""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_jax.config_reading import read_config
from tests.tiny_run import QUICK_COMPILE

ROOT = Path(__file__).parents[1]
ROOMS = ("cxr_jax", "configs", "data_prep", "launch")
READMES = sorted((path.relative_to(ROOT) for path in ROOT.rglob("README.md") if ".venv" not in path.parts), key=str)
READMES.sort(key=lambda path: len(path.parts))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLANK = re.compile(r"\.\.\.|\b[A-Z][A-Z_]+\b|[*|]")


def blocks(marked):
    """(README, number of the block, text) of all fenced blocks that are, or are not, marked."""
    for path in READMES:
        for number, (info, text) in enumerate(FENCE.findall((ROOT / path).read_text())):
            if (info.split() == ["sh", "run"]) == marked:
                yield path, number, text


def commands():
    """(README, words) of every `python -m` command of ours, also behind a launcher's `--`."""
    for marked in (True, False):
        for path, _, text in blocks(marked):
            for line in text.replace("\\\n", " ").splitlines():
                line = re.sub(r"\s(#\s|\(|[|>&]\s).*", "", line).strip().replace("[", "").replace("]", "")
                if re.match(rf"python -m ({'|'.join(ROOMS)})\.", line):
                    yield str(path), line


COMMANDS = sorted(set(commands()))


def entries(line):
    """(module, flags) of a command, and of the one behind `--`."""
    words = shlex.split(line)
    at = words.index("--") if "--" in words else len(words)
    for part in (words[:at], words[at + 1 :]):
        if part[:2] == ["python", "-m"]:
            yield part[2], part[3:]


@functools.cache
def names_in(room):
    """Every name in the sources of a room: flags may be arguments of a function far from the entry."""
    text = "".join(file.read_text() for file in (ROOT / room).rglob("*.py"))
    return {"help", *re.findall(r"\w+", text)}


def test_there_are_commands_to_read_and_to_run():
    assert len(COMMANDS) > 10 and len(list(blocks(True))) >= 2


@pytest.mark.parametrize(("readme", "line"), COMMANDS)
def test_a_command_names_what_exists(readme, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    for module, flags in entries(line):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{readme}: there is no {module}"
        names, overrides = names_in(module.partition(".")[0]), []
        for word in flags:
            name, _, value = word.lstrip("-").partition("=")
            if not word.startswith("--"):
                assert BLANK.search(word), f"{readme}: {word!r} is no flag"
            elif name.startswith("config."):
                overrides.append(word)
            else:
                assert name in names, f"{readme}: {module} has no --{name}"
            if name in ("config", "sweep") and not BLANK.search(value):
                assert Path(value.partition(":")[0]).exists(), f"{readme}: there is no {value}"
        config = next((word for word in flags if word.startswith("--config=") and not BLANK.search(word)), None)
        if config:
            known = [word for word in overrides if not BLANK.search(word.partition("=")[0])]
            # A value left to the reader has no type.
            read_config([config, *(word for word in known if not re.search(r"=(\.\.\.|N|STEP)$", word))])


def test_configs_name_their_commands_as_they_are():
    """The same for the commands in the docstrings of configs and sweeps."""
    for path in sorted((ROOT / "configs").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        for word in re.findall(r"--(?:config|sweep)=(\S+\.py)", docstring):
            assert (ROOT / word).exists() or BLANK.search(word), f"{path.name} names {word}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the rooms of this repository and a `python` that is this one."""
    folder = tmp_path_factory.mktemp("clone")
    for room in ROOMS:
        (folder / room).symlink_to(ROOT / room)
    # A script: a virtual environment's Python finds its packages by where it lies, which a link would hide.
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return folder


def test_marked_blocks_run_as_written(clone):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # One device as a reader has it, compiled quickly as all tests are.
    environment["XLA_FLAGS"] = " ".join(QUICK_COMPILE)
    environment["PATH"] = f"{clone / 'bin'}{os.pathsep}{environment['PATH']}"
    for path, number, text in blocks(True):
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert run.returncode == 0, f"{path}, block {number}:\n{text}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
