"""Who may import whom, read from the source by its syntax tree; and the size and names of files.

The picture is DESIGN's: entries -> loop, objectives, evals, export -> heads -> models, and data beside them.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSES = ("cxr_jax", "data_prep", "launch", "configs")
FILES = sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))
ENTRIES = {f"cxr_jax.{name}" for name in ("train", "evaluate", "convert", "plan")}

# What each room (the longest prefix that fits) may import of ours. A module may always import its own room.
PRETRAINING = ("cxr_jax.data.augment", "cxr_jax.data.masking", "cxr_jax.data.geometry")
DOORS = {
    "cxr_jax.models": (),
    "cxr_jax.heads": ("cxr_jax.models",),
    "cxr_jax.data": (),
    "cxr_jax.objectives": (*PRETRAINING, "cxr_jax.models", "cxr_jax.heads"),
    "cxr_jax.sharding": ("cxr_jax.models.layers",),
    "cxr_jax.schedules": (),
    "cxr_jax.optim": ("cxr_jax.schedules", "cxr_jax.sharding"),
    "cxr_jax.accumulation": ("cxr_jax.models.layers", "cxr_jax.objectives.base"),
    "cxr_jax.state": (
        *("cxr_jax.accumulation", "cxr_jax.models.layers", "cxr_jax.objectives.base"),
        *("cxr_jax.optim", "cxr_jax.sharding"),
    ),
    "cxr_jax.planning": ("cxr_jax.objectives.base", "cxr_jax.sharding", "cxr_jax.state"),
    "cxr_jax.config": ("cxr_jax.config_hints", "cxr_jax.config_reading", "cxr_jax.data.records"),
    "cxr_jax.config_reading": ("cxr_jax.config_hints",),
    "cxr_jax.config_hints": (),
    "data_prep": ("cxr_jax.data.records", "cxr_jax.data.remote"),
    "configs": (),
}
# Rooms that may import all but these.
CLOSED = {
    "cxr_jax": ("data_prep", "configs", "launch", "tests"),
    "cxr_jax.evals": (*ENTRIES, *(f"cxr_jax.{name}" for name in ("loop", "optim", "state", "objectives", "export"))),
    "cxr_jax.export": (*ENTRIES, *(f"cxr_jax.{name}" for name in ("loop", "optim", "state", "objectives", "evals"))),
    "launch": ("data_prep", "tests"),
}
# What a closed room may import all the same: an evaluation makes the heads that a run has trained, and trains some.
OPEN = {
    "cxr_jax.evals": ("cxr_jax.objectives.supervised", "cxr_jax.objectives.segmentation", "cxr_jax.optim"),
}
# `models` and `heads` describe networks: nothing but these and the standard library's plain parts.
THIRD_PARTY = {"jax", "flax", "jaxtyping", "numpy"}
PLAIN = {"collections", "dataclasses", "functools", "typing", "math"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Full names of all modules that a file imports, at whatever depth; `from a import b` counts as `a.b` if a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                file = ROOT / inner.replace(".", "/")
                names.add(inner if file.with_suffix(".py").exists() or file.is_dir() else node.module)
    return names


def inside(name, room):
    return name == room or name.startswith(room + ".")


def room_of(module, rooms):
    return max((room for room in rooms if inside(module, room)), key=len, default=None)


def is_ours(name):
    return any(inside(name, house) for house in (*HOUSES, "tests"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_through_the_doors(path):
    module, found = module_name(path), imports(path)
    ours = {name for name in found if is_ours(name)}
    room = room_of(module, DOORS)
    if room:
        legal = (*DOORS[room], room)
        wrong = {name for name in ours if not any(inside(name, door) for door in legal)}
        assert not wrong, f"{module} may import of ours only {', '.join(legal)}, but imports {', '.join(sorted(wrong))}"
    for closed, doors in CLOSED.items():
        if inside(module, closed) and module not in ENTRIES:
            legal = OPEN.get(closed, ())
            wrong = {name for name in ours if any(inside(name, door) for door in doors)}
            wrong = {name for name in wrong if not any(inside(name, door) for door in legal)}
            assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"
    wrong = {name for name in ours if name in ENTRIES}
    assert not wrong or module in ENTRIES, f"{module} imports the entry {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in ("models", "heads")], ids=module_name)
def test_networks_know_jax_flax_and_jaxtyping_only(path):
    foreign = {name.split(".")[0] for name in imports(path) if not is_ours(name)}
    assert not foreign - THIRD_PARTY - PLAIN


def test_reading_and_saving_alone_know_orbax():
    users = {module_name(path) for path in FILES if any(inside(name, "orbax") for name in imports(path))}
    assert users == {"cxr_jax.checkpoint", "cxr_jax.saving"}


def test_only_entries_and_their_door_read_configs():
    """The config stops at the door: entries, their door and checks, `experiments` and configs know `ConfigDict`."""
    users = {module_name(path) for path in FILES if any(inside(name, "ml_collections") for name in imports(path))}
    rooms = ("configs", "launch", "cxr_jax.experiments")
    wrong = {user for user in users if not any(inside(user, room) for room in rooms)}
    assert wrong <= {*ENTRIES, "cxr_jax.config", "cxr_jax.config_reading", "cxr_jax.checks"}


def test_tensorflow_is_never_imported():
    assert not {module_name(path) for path in FILES if any(inside(name, "tensorflow") for name in imports(path))}


def test_objectives_know_no_optimiser():
    """`optax` is there for its losses; no transformation of it is made in an objective."""
    for path in FILES:
        if path.parent.name == "objectives":
            used = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "optax"
            }
            assert used <= {"sigmoid_binary_cross_entropy"}, f"{path.name} uses optax.{used}"


@pytest.mark.parametrize("path", sorted({*FILES, *(ROOT / "tests").rglob("*.py")}), ids=module_name)
def test_files_are_short_and_named_after_what_they_hold(path):
    assert len(path.read_text().splitlines()) <= 400, "explained past 400 lines, split at 600 (DESIGN section 7)"
    assert path.stem not in ("utils", "util", "misc", "helpers", "common")
    assert not path.stem.endswith("_v2")


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=module_name)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module opens with what flows in and out"
