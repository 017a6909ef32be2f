"""Sections about how well findings are ranked: headline, results per finding, comparison, curves.

In: the report's columns. Out: HTML. Whether a column is better is read off the interval of the paired difference and
said in words.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Integer
from numpy import ndarray

from cxr_jax.evals import figures
from cxr_jax.evals.page import facts, interval, number, table, text, with_sign
from cxr_jax.evals.ranking import curves
from cxr_jax.evals.report_column import Column
from cxr_jax.evals.report_html import (
    bullets,
    cell,
    marker,
    muted,
    p_value,
    plain,
    row,
    share,
    sparse_mark,
    sparse_note,
    value_cell,
)


def headline(columns: Sequence[Column], evaluated: Mapping[str, object], warnings: Sequence[str]) -> str:
    """The mean scores, what was evaluated, how it compares, and what to beware of."""
    results = columns[0].results
    counts = results["counts"]
    defined = f"{len(results['classes_in_macro'])} of {counts['classes']} findings"
    names = ("AUROC", "AUPRC") if counts["classes"] == 1 else (f"AUROC, mean of {defined}", f"AUPRC, mean of {defined}")
    chances = [results["per_class"][name]["prevalence"] for name in results["classes_in_macro"]]
    if chances:
        names = (f"{names[0]} (chance 0.500)", f"{names[1]} (chance {number(sum(chances) / len(chances))})")
    tiles = [
        *(
            (number(results[f"{metric}_macro"]), interval(results[f"{metric}_macro_interval"]), name)
            for metric, name in zip(("auroc", "auprc"), names, strict=True)
        ),
        (f"{counts['images']:,}", "", "test images"),
        (f"{counts['patients']:,}", "", "test patients"),
    ]
    cards = "".join(
        f'<div class="card tile"><div class="name">{name}</div><div class="value">{value}</div>{bounds}</div>'
        for value, bounds, name in tiles
    )
    reading = bullets([_verdict(columns[0].name, column) for column in columns[1:]])
    caution = ""
    if warnings:
        caution = f'<div class="card caution"><h3>Beware</h3>{bullets([text(warning) for warning in warnings])}</div>'
    return f'<div class="tiles">{cards}</div>{caution}<div class="card">{facts(evaluated)}{reading}</div>'


def _verdict(name: str, column: Column) -> str:
    """What the paired difference in macro AUROC says, in words."""
    baseline, difference = text(column.name), column.difference
    if difference is None or difference["auroc_macro_interval"] is None:
        return f"Against {baseline}: the difference has no interval, so nothing can be said."
    low, high = difference["auroc_macro_interval"]
    numbers = f"{with_sign(difference['auroc_macro'])} {interval((low, high), signed=True)}"
    if low > 0:
        words = f'<strong class="higher">above</strong> {baseline}'
    elif high < 0:
        words = f'<strong class="lower">below</strong> {baseline}'
    else:
        words = f"<strong>not told apart</strong> from {baseline} by this test set"
    return f"{text(name)} is {words}: AUROC difference {numbers}."


def results(class_names: Sequence[str], column: Column) -> str:
    """AUROC, AUPRC and counts of every finding."""
    per_class = column.results["per_class"]
    rows = []
    for name in class_names:
        entry = per_class[name]
        numbers = [f"{entry['counts'][key]:,}" for key in ("positives", "negatives", "unknown", "patients")]
        cells = [cell(entry, "auroc"), cell(entry, "auprc"), *plain(share(entry["prevalence"]), *numbers)]
        rows.append(row(text(name) + sparse_mark(entry), cells))
    if len(class_names) > 1:
        means = [cell(column.results, f"{metric}_macro") for metric in ("auroc", "auprc")]
        rows.append(row("Mean", [*means, *plain(*[""] * 5)], style="macro"))
    heads = ("Finding", "AUROC", "AUPRC", "Prevalence", "Positive", "Negative", "Unknown", "Patients")
    caption = f"{text(column.name)}. Prevalence, the share of positives among known labels, is the AUPRC of chance."
    caption += sparse_note(any(sparse_mark(per_class[name]) for name in class_names))
    undefined = [f"{text(n)}: {text(per_class[n]['undefined'])}" for n in class_names if per_class[n]["undefined"]]
    return table(heads, rows, caption) + (
        muted(f"Not scored and not in the mean: {'; '.join(undefined)}.") if undefined else ""
    )


def comparison(class_names: Sequence[str], columns: Sequence[Column]) -> str:
    """Every column's AUROC with the paired differences of the first from it; nothing for a single column."""
    if len(columns) < 2:
        return ""
    macro = len(class_names) > 1
    names = [*class_names, *(["Mean"] if macro else [])]
    values = []
    for column in columns:
        entries = [column.results["per_class"][name] for name in class_names]
        points = [(entry["auroc"], entry["auroc_interval"]) for entry in entries]
        mean = (column.results["auroc_macro"], column.results["auroc_macro_interval"])
        values.append((column.name, [*points, *([mean] if macro else [])]))
    rows = []
    for i, name in enumerate(names):
        of_class = name if i < len(class_names) else None
        cells = [value_cell(*points[i]) for _, points in values]
        cells += [_difference_cell(column.difference, of_class) for column in columns[1:]]
        mark = sparse_mark(columns[0].results["per_class"][name]) if of_class else ""
        rows.append(row(text(name) + mark, cells, style="" if of_class else "macro"))
    keys = [f"{marker(i)}{text(column.name)}" for i, column in enumerate(columns)]
    heads = ["Finding", *keys, *(f"Difference to {text(column.name)}" for column in columns[1:])]
    caption = (
        "AUROC on the same rows. Differences are paired: both columns see the same draws of patients. Coloured where "
        "the interval excludes 0; with many findings some will do so by chance. p: DeLong's test, which takes images "
        "as independent; where patients have several images it is too small, and the interval is what counts."
    )
    chart = figures.forest(names, values, metric="AUROC")
    return f'<div class="stacked"><figure class="card">{chart}</figure>{table(heads, rows, caption)}</div>'


def _difference_cell(difference, name: str | None) -> str:
    entry = {} if difference is None else difference if name is None else difference["per_class"][name]
    metric = "auroc_macro" if name is None else "auroc"
    value, bounds = entry.get(metric), entry.get(f"{metric}_interval")
    if value is None:
        return "<td>–</td>"
    style = "" if bounds is None else "higher" if bounds[0] > 0 else "lower" if bounds[1] < 0 else ""
    p = entry.get("delong", {}).get("p")
    test = "" if p is None else f'<span class="interval">p {"" if p < 0.001 else "= "}{p_value(p)}</span>'
    shown = f'<span class="{style}">{with_sign(value)}</span>'
    return f"<td>{shown} {interval(bounds, signed=True)}{test}</td>"


def roc_and_pr(class_names: Sequence[str], labels: Integer[ndarray, "n c"], columns: Sequence[Column]) -> str:
    """Curves of every finding that is defined."""
    cards = []
    for c, name in enumerate(class_names):
        entry = columns[0].results["per_class"][name]
        if entry["undefined"]:
            continue
        series = [(column.name, curves(column.scores[:, c], labels[:, c])) for column in columns]
        svg = figures.roc_and_precision_recall(name, series, entry["prevalence"])
        caption = f"AUROC {number(entry['auroc'])} {interval(entry['auroc_interval'])}, "
        caption += f"AUPRC {number(entry['auprc'])} {interval(entry['auprc_interval'])}"
        cards.append(f'<figure class="card"><h3>{text(name)}</h3>{svg}<figcaption>{caption}</figcaption></figure>')
    legend = " &ensp; ".join(f"{figures.line_key(i)}{text(column.name)}" for i, column in enumerate(columns))
    return muted(legend) + f'<div class="figures">{"".join(cards)}</div>' if cards else ""
