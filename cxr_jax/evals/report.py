"""report.html: one self-contained page that a clinician-researcher can read and a reviewer can check.

In: scores, labels and the dictionaries of `classification.evaluate` and `classification.compare`. Out: one HTML file
with what was evaluated, tables with intervals and counts, comparisons, curves, attention maps, training curves and
the environment. It loads nothing from outside.

The first column is what the report is about; the others are what it has to be held against (a random network, the
hand-made floor). Whether it is better is read off the interval of the paired difference and said in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from cxr_jax.evals import figures
from cxr_jax.evals.page import facts as _facts
from cxr_jax.evals.page import interval as _range
from cxr_jax.evals.page import number as _number
from cxr_jax.evals.page import table as _table
from cxr_jax.evals.page import text as _text
from cxr_jax.evals.page import with_sign as _signed
from cxr_jax.evals.page import write_page
from cxr_jax.evals.ranking import curves
from cxr_jax.evals.training_curves import collapse_sentences, training_panels

# Below 20 positive patients a 95 % percentile interval covers the truth in 91 % of trials (10), 87 % (5), 72 % (3).
SPARSE_PATIENTS, SPARSE_MARK = 20, "†"


@dataclass(frozen=True)
class Column:
    """One score set of the report.

    `results` is from `classification.evaluate`; `difference`, for columns after the first, is
    `classification.compare(scores of the first column, these scores, ...)`.
    """

    name: str
    scores: Float[np.ndarray, "n c"]
    results: dict
    difference: dict | None = None


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluated: Mapping[str, object],
    class_names: Sequence[str],
    labels: Integer[np.ndarray, "n c"],
    columns: Sequence[Column],
    attention: Sequence[Mapping[str, object]] = (),
    metrics_path: str | Path | None = None,
    environment: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    extra: Sequence[tuple[str, str, str]] = (),
) -> Path:
    """Write the page and return its path.

    Args:
      evaluated: facts in order, e.g. run, checkpoint step, network (teacher or student), dataset, fingerprint, split.
      labels: 1, 0, -1 unknown; for the curves.
      columns: the evaluated scores first, comparisons after.
      attention: `{"image": uint8 [h, w], "maps": {class: [gh, gw]}, "caption": str}` each.
      metrics_path: a run's metrics.jsonl, for the training curves.
      environment: versions and devices.
      extra: sections of protocols of their own, (anchor, heading, HTML) each.
      notes: sentences about what was excluded or how the task was set up.

    Raises:
      ValueError: no columns, or a column lacks a class of `class_names`.
      FileNotFoundError: `metrics_path` does not exist.
    """
    if not columns:
        raise ValueError("columns is empty; the first column is the evaluated score set")
    for column in columns:
        missing = [name for name in class_names if name not in column.results["per_class"]]
        if missing or column.scores.shape != labels.shape:
            raise ValueError(
                f"column {column.name!r} has scores {column.scores.shape} and lacks {missing}; the labels have shape "
                f"{labels.shape} and the classes are {list(class_names)}"
            )
    sections = [
        ("results", "Results per finding", _results(class_names, columns[0])),
        ("comparison", "Against the baselines", _comparison(class_names, columns)),
        ("curves", "ROC and precision-recall curves", _curves(class_names, labels, columns)),
        *extra,
        ("attention", "Where the head looks", _attention(attention)),
        ("training", "Training", _training(metrics_path)),
        ("method", "How these numbers were made", _method(columns[0], notes)),
        ("environment", "Environment", _facts(environment or {})),
    ]
    return write_page(path, title=title, top=_headline(columns, evaluated), sections=sections)


def _headline(columns, evaluated) -> str:
    results = columns[0].results
    counts = results["counts"]
    defined = f"{len(results['classes_in_macro'])} of {counts['classes']} findings"
    tiles = [
        (_number(results["auroc_macro"]), _range(results["auroc_macro_interval"]), f"AUROC, mean of {defined}"),
        (_number(results["auprc_macro"]), _range(results["auprc_macro_interval"]), f"AUPRC, mean of {defined}"),
        (f"{counts['images']:,}", "", "images"),
        (f"{counts['patients']:,}", "", "patients"),
    ]
    cards = "".join(
        f'<div class="card tile"><div class="name">{name}</div><div class="value">{value}</div>{interval}</div>'
        for value, interval, name in tiles
    )
    reading = "".join(f"<li>{_verdict(columns[0].name, column)}</li>" for column in columns[1:])
    reading = f'<ul class="reading">{reading}</ul>' if reading else ""
    return f'<div class="tiles">{cards}</div><div class="card">{_facts(evaluated)}{reading}</div>'


def _verdict(name, column) -> str:
    """What the paired difference in macro AUROC says, in words."""
    baseline, difference = _text(column.name), column.difference
    if difference is None or difference["auroc_macro_interval"] is None:
        return f"Against {baseline}: the difference has no interval, so nothing can be said."
    low, high = difference["auroc_macro_interval"]
    numbers = f"{_signed(difference['auroc_macro'])} {_range((low, high), signed=True)}"
    if low > 0:
        words = f'<strong class="higher">above</strong> {baseline}'
    elif high < 0:
        words = f'<strong class="lower">below</strong> {baseline}'
    else:
        words = f"<strong>not told apart</strong> from {baseline} by this test set"
    return f"{_text(name)} is {words}: AUROC difference {numbers}."


def _results(class_names, column) -> str:
    per_class = column.results["per_class"]
    rows = []
    for name in class_names:
        entry = per_class[name]
        counts = entry["counts"]
        numbers = "".join(f"<td>{counts[key]:,}</td>" for key in ("positives", "negatives", "unknown", "patients"))
        prevalence = "–" if entry["prevalence"] is None else f"{100 * entry['prevalence']:.1f} %"
        rows.append(
            f'<tr><th scope="row">{_text(name)}{_mark(entry)}</th>{_cell(entry, "auroc")}{_cell(entry, "auprc")}'
            f"<td>{prevalence}</td>{numbers}</tr>"
        )
    macro = column.results
    rows.append(
        f'<tr class="macro"><th scope="row">Mean</th>{_cell(macro, "auroc_macro")}{_cell(macro, "auprc_macro")}'
        f"<td></td><td></td><td></td><td></td><td></td></tr>"
    )
    heads = ("Finding", "AUROC", "AUPRC", "Prevalence", "Positive", "Negative", "Unknown", "Patients")
    caption = f"{_text(column.name)}. Prevalence, the share of positives among known labels, is the AUPRC of chance."
    if any(_mark(per_class[name]) for name in class_names):
        caption += (
            f" {SPARSE_MARK} Fewer than {SPARSE_PATIENTS} positive patients: the interval is too narrow to trust."
        )
    undefined = [f"{_text(n)}: {_text(per_class[n]['undefined'])}" for n in class_names if per_class[n]["undefined"]]
    excluded = f'<p class="muted">Not scored and not in the mean: {"; ".join(undefined)}.</p>' if undefined else ""
    return _table(heads, rows, caption) + excluded


def _comparison(class_names, columns) -> str:
    if len(columns) < 2:
        return ""
    names = [*class_names, "Mean"]
    values = []
    for column in columns:
        entries = [column.results["per_class"][name] for name in class_names]
        points = [(entry["auroc"], entry["auroc_interval"]) for entry in entries]
        values.append((column.name, [*points, (column.results["auroc_macro"], column.results["auroc_macro_interval"])]))
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_value_cell(*points[i]) for _, points in values)
        for column in columns[1:]:
            cells += _difference_cell(column.difference, name if i < len(class_names) else None)
        style = ' class="macro"' if i == len(class_names) else ""
        mark = _mark(columns[0].results["per_class"][name]) if i < len(class_names) else ""
        rows.append(f'<tr{style}><th scope="row">{_text(name)}{mark}</th>{cells}</tr>')
    keys = [f"{_marker(i)}{_text(column.name)}" for i, column in enumerate(columns)]
    heads = ["Finding", *keys, *(f"Difference to {_text(column.name)}" for column in columns[1:])]
    caption = (
        "AUROC on the same rows. Differences are paired: both columns see the same draws of patients. Coloured where "
        "the interval excludes 0; with many findings some will do so by chance."
    )
    chart = figures.forest(names, values, metric="AUROC")
    return f'<div class="stacked"><figure class="card">{chart}</figure>{_table(heads, rows, caption)}</div>'


def _curves(class_names, labels, columns) -> str:
    cards = []
    for c, name in enumerate(class_names):
        entry = columns[0].results["per_class"][name]
        if entry["undefined"]:
            continue
        series = [(column.name, curves(column.scores[:, c], labels[:, c])) for column in columns]
        svg = figures.roc_and_precision_recall(name, series, entry["prevalence"])
        caption = f"AUROC {_number(entry['auroc'])} {_range(entry['auroc_interval'])}, "
        caption += f"AUPRC {_number(entry['auprc'])} {_range(entry['auprc_interval'])}"
        cards.append(f'<figure class="card"><h3>{_text(name)}</h3>{svg}<figcaption>{caption}</figcaption></figure>')
    legend = " &ensp; ".join(f"{figures.line_key(i)}{_text(column.name)}" for i, column in enumerate(columns))
    return f'<p class="muted">{legend}</p><div class="figures">{"".join(cards)}</div>' if cards else ""


def _attention(cases) -> str:
    parts = []
    for case in cases:
        caption = _text(case["caption"])
        plain = figures.plain_image(case["image"])
        maps = [f'<figure><img src="{plain}" alt="Radiograph: {caption}"><figcaption>image</figcaption></figure>']
        for name, weights in case["maps"].items():
            address, peak = figures.attention_overlay(case["image"], np.asarray(weights, np.float32))
            alt = f"The radiograph with the attention of the {_text(name)} query, peak {peak:.1f} times an even share"
            maps.append(
                f'<figure><img src="{address}" alt="{alt}">'
                f"<figcaption>{_text(name)}<br>peak {peak:.1f} × even share</figcaption></figure>"
            )
        parts.append(f'<div class="card case"><h3>{caption}</h3><div class="maps">{"".join(maps)}</div></div>')
    if not parts:
        return ""
    explanation = (
        "Mean over attention heads of the weight that each finding's query puts on each patch; amber where a patch "
        "gets more than an even share. A peak near 1 × means that the query singles out nothing. Attention shows "
        "what was read, not why the score came out as it did."
    )
    return f"<p>{explanation}</p>{''.join(parts)}"


def _training(metrics_path) -> str:
    if metrics_path is None:
        return ""
    cards = "".join(
        f'<figure class="card"><h3>{_text(heading)}</h3>{svg}</figure>'
        for heading, svg in training_panels(metrics_path)
    )
    if not cards:
        return '<p class="muted">The run has logged nothing yet.</p>'
    warnings = "".join(f"<li><strong>{_text(text)}</strong></li>" for text in collapse_sentences(metrics_path))
    warnings = f'<ul class="reading">{warnings}</ul>' if warnings else ""
    return f'{warnings}<div class="figures small">{cards}</div>'


def _method(column, notes) -> str:
    facts = column.results["bootstrap"]
    sentences = [
        "Labels that are unknown are left out of their finding; they are never counted as negatives.",
        "A finding without both labels has no score and does not enter the mean.",
    ]
    if facts["resamples"]:
        sentences.append(
            f"Intervals: {100 * facts['confidence']:g} % percentile intervals of {facts['resamples']:,} bootstrap "
            f"samples of patients, drawn with replacement (seed {facts['seed']}). In "
            f"{facts['resamples_with_a_class_left_out']:,} samples some finding lacked a label and was left out."
        )
    items = "".join(f"<li>{sentence}</li>" for sentence in [*sentences, *(_text(note) for note in notes)])
    return f'<ul class="reading">{items}</ul>'


def _mark(entry) -> str:
    """The mark of a class whose bootstrap has too few positive patients to draw from."""
    sparse = not entry["undefined"] and entry["counts"]["positive_patients"] < SPARSE_PATIENTS
    return f"&nbsp;{SPARSE_MARK}" if sparse else ""


def _marker(series: int) -> str:
    sign, variable = (s[series % len(s)] for s in (figures.MARKER_SIGNS, range(len(figures.SERIES))))
    return f'<span class="key" style="color: var(--series-{variable})" aria-hidden="true">{sign}</span>'


def _cell(entry, metric) -> str:
    return _value_cell(entry[metric], entry[f"{metric}_interval"])


def _value_cell(value, interval) -> str:
    return f"<td>{_number(value)} {_range(interval)}</td>"


def _difference_cell(difference, name: str | None) -> str:
    entry = {} if difference is None else difference if name is None else difference["per_class"][name]
    metric = "auroc_macro" if name is None else "auroc"
    value, interval = entry.get(metric), entry.get(f"{metric}_interval")
    if value is None:
        return "<td>–</td>"
    style = "" if interval is None else "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else ""
    return f'<td><span class="{style}">{_signed(value)}</span> {_range(interval, signed=True)}</td>'
