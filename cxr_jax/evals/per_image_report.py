"""results.json and report.html of scores that every image has: Dice and IoU of masks, hits of attention on boxes.

In: columns of values `[n, m]` on the same images, the evaluated one first, and groups of these images (all, each
source, each finding). Out: means with patient-level intervals and paired differences to the first column, as a dict
and a page.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from cxr_jax.evals.classification import write_results
from cxr_jax.evals.page import facts, interval, number, table, text, with_sign, write_page
from cxr_jax.evals.per_image import differences, means
from cxr_jax.evals.publishing import together


@dataclass(frozen=True)
class ScoreColumn:
    """One column of the page: values `[n, m]`, NaN where undefined, and what was chosen on the selection rows."""

    name: str
    values: Float[np.ndarray, "n m"]
    chosen: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A picture of the page: a caption, and (data address, what it shows) of its images."""

    caption: str
    images: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """What a protocol found: everything but who was evaluated and where it ran.

    Attributes:
      columns: the evaluated one first.
      headings: score -> what the page calls it, in the order of the columns' values.
      identities: `image_id`, `patient_id`, ... of every row; the bootstrap draws patients.
      groups: all rows first, then parts of them.
      tiles: the scores that stand at the top and on the screen.
    """

    columns: Sequence[ScoreColumn]
    headings: Mapping[str, str]
    identities: Mapping[str, Sequence[str]]
    groups: Mapping[str, Bool[np.ndarray, " n"]]
    tiles: Sequence[str]
    cases: Sequence[Case]
    explanation: str
    notes: Sequence[str]


def publish(
    workdir: Path,
    page: Page,
    *,
    title: str,
    evaluated: Mapping[str, object],
    environment: Mapping[str, object],
    bootstrap: Mapping[str, Any],
    training: Mapping[str, Any],
    remarks: Sequence[str],
) -> list[str]:
    """Write results.json, predictions.csv and report.html; returns what the screen says.

    `training` is by run what it was trained on, `remarks` what a reader has to know of that (`seen`).
    """
    names, first = list(page.headings), page.columns[0]
    patients = np.asarray(page.identities["patient_id"])
    scores = tabulate(page.columns, names, patients, page.groups, bootstrap)
    whole = next(iter(scores.values()))
    results: dict[str, Any] = {}
    for name in names:
        entry = whole[first.name][name]
        results |= {f"{name}_mean": entry["mean"], f"{name}_mean_interval": entry["interval"]}
    chosen = {column.name: dict(column.chosen) for column in page.columns}
    evaluated_column = {"column": first.name, "chosen": chosen[first.name]}
    results |= {"training": dict(training)}
    results |= {"scores": scores, "chosen": chosen, "evaluated": {**evaluated, **evaluated_column}}
    results |= {"bootstrap": {"unit": "patient", "method": "percentile", **bootstrap}, "environment": environment}
    share = f"{100 * bootstrap['confidence']:g} %"
    drawn = f"Intervals: {share} percentile intervals of {bootstrap['resamples']:,} bootstrap samples of patients."
    with together(workdir) as (report, predictions, numbers):
        write_results(numbers, results)
        write_values(predictions, page.identities, page.columns, names)
        write_per_image_report(
            report,
            title=title,
            evaluated={"column": first.name, **evaluated, **rate_of(first)},
            headings=page.headings,
            scores=scores,
            tiles=page.tiles,
            cases=page.cases,
            explanation=page.explanation,
            notes=(*page.notes, drawn, *remarks),
            environment=environment,
        )
    lines = []
    for column in page.columns:
        found = [(page.headings[tile], whole[column.name][tile]) for tile in page.tiles]
        lines.append(f"{column.name:34s} " + "  ".join(_spoken(head, entry) for head, entry in found))
    return lines


def rate_of(column: ScoreColumn) -> dict[str, str]:
    """The learning rate that was chosen, in words."""
    if "learning_rate" in column.chosen:
        return {"learning rate": f"{column.chosen['learning_rate']:g}"}
    return {"chosen": str(column.chosen["chosen"])} if "chosen" in column.chosen else {}


def _spoken(head: str, entry: dict) -> str:
    if entry["mean"] is None:
        return f"{head} undefined"
    bounds = "(no interval)" if entry["interval"] is None else "[{:.3f}, {:.3f}]".format(*entry["interval"])
    return f"{head} {entry['mean']:.3f} {bounds}"


def lowest_middle_highest(values: Float[np.ndarray, " n"], count: int) -> list[int]:
    """`count` rows, a third each of the lowest, middle and highest values, in this order; none of an undefined one."""
    order = [int(i) for i in np.argsort(values) if not np.isnan(values[i])]
    third = -(-count // 3)
    middle = max((len(order) - third) // 2, 0)
    parts = [*order[:third], *order[middle : middle + third], *order[-third:]] if count else []
    return list(dict.fromkeys(parts))[:count]


def tabulate(
    columns: Sequence[ScoreColumn],
    names: Sequence[str],
    patient_ids: Shaped[np.ndarray, " n"],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    bootstrap: Mapping[str, Any],
) -> dict[str, dict[str, dict[str, dict]]]:
    """`{group: {column: {score: entry of `per_image.means`}}}`; all columns but the first also have `difference`, the
    first column minus this one."""
    whole: dict[str, dict[str, dict[str, dict]]] = {}
    for group, rows in groups.items():
        patients, first = patient_ids[rows], columns[0].values[rows]
        for i, column in enumerate(columns):
            entries = means(column.values[rows], patients, names, **bootstrap)
            if i:
                apart = differences(first, column.values[rows], patients, names, **bootstrap)
                entries = {name: entry | {"difference": apart[name]} for name, entry in entries.items()}
            whole.setdefault(group, {})[column.name] = entries
    return whole


def write_values(
    path: Path, identities: Mapping[str, Sequence[str]], columns: Sequence[ScoreColumn], names: Sequence[str]
) -> None:
    """One row an image: who it is, and the values of every column (empty = undefined)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*identities, *(f"{column.name}: {name}" for column in columns for name in names)])
        for i, who in enumerate(zip(*identities.values(), strict=True)):
            values = [value for column in columns for value in column.values[i]]
            writer.writerow([*who, *("" if np.isnan(value) else f"{value:.6g}" for value in values)])


def write_per_image_report(
    path: Path,
    *,
    title: str,
    evaluated: Mapping[str, object],
    headings: Mapping[str, str],
    scores: Mapping[str, Mapping[str, Mapping[str, dict]]],
    tiles: Sequence[str],
    cases: Sequence[Case],
    explanation: str,
    notes: Sequence[str],
    environment: Mapping[str, object],
) -> Path:
    """Write the page.

    Args:
      headings: score -> what the page calls it, in order.
      scores: from `tabulate`; the first group holds all images.
      tiles: the scores shown at the top, of the first group and column.
      explanation: what the pictures show.
    """
    whole = next(iter(scores.values()))
    name, first = next(iter(whole.items()))
    entries = [(headings[tile], first[tile]) for tile in tiles]
    cards = [(number(entry["mean"]), interval(entry["interval"]), f"{text(head)}, mean") for head, entry in entries]
    cards += [(f"{entries[0][1][key]:,}", "", key) for key in ("images", "patients")]
    top = "".join(
        f'<div class="card tile"><div class="name">{label}</div><div class="value">{value}</div>{bounds}</div>'
        for value, bounds, label in cards
    )
    reading = "".join(
        f"<li>{_verdict(name, other, headings[tiles[0]], found[tiles[0]]['difference'])}</li>"
        for other, found in list(whole.items())[1:]
    )
    reading = f'<ul class="reading">{reading}</ul>' if reading else ""
    top = f'<div class="tiles">{top}</div><div class="card">{facts(evaluated)}{reading}</div>'
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    sections = [
        ("results", "Results", "".join(_scores(group, found, headings) for group, found in scores.items())),
        ("pictures", "Pictures", _pictures(cases, explanation)),
        ("method", "How these numbers were made", f'<ul class="reading">{items}</ul>'),
        ("environment", "Environment", facts(environment)),
    ]
    return write_page(path, title=title, top=top, sections=sections)


def _verdict(name: str, other: str, head: str, difference: dict) -> str:
    if difference["interval"] is None:
        return f"Against {text(other)}: the difference has no interval, so nothing can be said."
    low, high = difference["interval"]
    if low > 0:
        words = f'<strong class="higher">above</strong> {text(other)}'
    elif high < 0:
        words = f'<strong class="lower">below</strong> {text(other)}'
    else:
        words = f"<strong>not told apart</strong> from {text(other)} by this test set"
    numbers = f"{with_sign(difference['mean'])} {interval((low, high), signed=True)}"
    return f"{text(name)} is {words}: {text(head)} difference {numbers}."


def _scores(group: str, columns: Mapping[str, Mapping[str, dict]], headings: Mapping[str, str]) -> str:
    rows = []
    for name, entries in columns.items():
        cells = ""
        for score in headings:
            entry = entries[score]
            cells += f"<td>{number(entry['mean'])} {interval(entry['interval'])}"
            apart = entry.get("difference")
            if apart and apart["mean"] is not None and any(apart["interval"] or ()):  # the same in both columns: none
                cells += f'<br><span class="muted">{with_sign(apart["mean"])}</span> '
                cells += interval(apart["interval"], signed=True)
            cells += "</td>"
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    entry = next(iter(next(iter(columns.values())).values()))
    undefined = f", {entry['undefined_images']} left out as undefined" if entry["undefined_images"] else ""
    caption = f"{text(group)}: {entry['images']:,} images of {entry['patients']:,} patients{undefined}. "
    caption += f"Below a value: {text(next(iter(columns)))} minus that column, on the same images." * (len(columns) > 1)
    return table(["", *map(text, headings.values())], rows, caption)


def _pictures(cases: Sequence[Case], explanation: str) -> str:
    if not cases:
        return ""
    parts = [f"<p>{text(explanation)}</p>"]
    for case in cases:
        images = "".join(
            f'<figure><img src="{address}" alt="{text(shown)}"><figcaption>{text(shown)}</figcaption></figure>'
            for address, shown in case.images
        )
        parts.append(f'<div class="card case"><h3>{text(case.caption)}</h3><div class="maps">{images}</div></div>')
    return "".join(parts)
