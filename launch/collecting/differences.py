"""What differs between two runs: config, environment, data, command.

In: two `runs.Found`. Out: sections of (key, first, second).
"""

from typing import Any

from cxr_jax.config_reading import diff, flatten
from launch.collecting.runs import Found

FACTS = ("fingerprint", "command", "resumed_from_step", "started")
Section = tuple[str, list[tuple[str, Any, Any]]]


def differences(first: Found, second: Found) -> list[Section]:
    """`config`, `environment` and `run`, each with the keys whose values differ; empty sections are left in."""
    environments = [flatten(run.about.get("environment", {})) for run in (first, second)]
    facts = [{name: run.about.get(name) for name in FACTS} for run in (first, second)]
    pairs = (("config", [first.config, second.config]), ("environment", environments), ("run", facts))
    return [(title, [(key, *values) for key, values in diff(*both).items()]) for title, both in pairs]


def as_text(first: Found, second: Found) -> str:
    """The differences for a terminal."""
    lines = [f"- {first.name}", f"+ {second.name}"]
    for title, entries in differences(first, second):
        lines.append(f"{title}:" + ("" if entries else " no difference"))
        for key, old, new in entries:
            lines += [f"  {key}", f"    - {old}", f"    + {new}"]
    return "\n".join(lines)
