"""Sections about decisions: what the chosen thresholds do, and whether probabilities come true.

In: the report's columns. Out: HTML; nothing for results that hold no thresholds.
"""

from collections.abc import Sequence

from jaxtyping import Integer
from numpy import ndarray

from cxr_jax.evals import figures
from cxr_jax.evals.calibration import probabilities, reliability
from cxr_jax.evals.figure_calibration import calibration_plot
from cxr_jax.evals.measures import AT_SPECIFICITY, DECISIONS, OWN_CURVE
from cxr_jax.evals.page import interval, number, table, text
from cxr_jax.evals.report_column import Column
from cxr_jax.evals.report_html import cell, muted, plain, row, sparse_mark, sparse_note

HEADS = {
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "brier": "Brier",
    "ece": "Calibration error",
}
PLOT_BINS = 10


def decisions(class_names: Sequence[str], column: Column) -> str:
    """F1 and its kin at the first threshold, sensitivity at the second; one table each."""
    per_class = column.results["per_class"]
    if not class_names or "thresholds" not in per_class[class_names[0]]:
        return ""
    wanted = per_class[class_names[0]]["thresholds"]["specificity_wanted"]
    best = _table(class_names, column, DECISIONS, [HEADS[metric] for metric in DECISIONS], "f1", "Threshold")
    caption = (
        "Called positive at the threshold with the best F1 on the selection rows; the test rows had no say in it. PPV "
        "and NPV hold for the prevalence of this test set only."
    )
    caption += sparse_note(any(sparse_mark(per_class[name]) for name in class_names))
    fixed = _table(
        class_names,
        column,
        (*AT_SPECIFICITY, *OWN_CURVE),
        ["Sensitivity", "Specificity reached", "Sensitivity on the test rows' own curve"],
        "specificity",
        "Threshold",
    )
    other = (
        f"At the threshold with a specificity of {wanted:g} on the selection rows. The last column is read off the "
        "test rows' own ROC curve: it says what the ranking would allow, not what the classifier does."
    )
    return f'<div class="stacked">{table(*best, caption)}{table(*fixed, other)}</div>{_reasons(class_names, column)}'


def _table(class_names, column, metrics, heads, threshold, head):
    rows = []
    for name in class_names:
        entry = column.results["per_class"][name]
        value = entry["thresholds"][threshold]
        at = "–" if value is None else f"{value:.4g}"
        rows.append(row(text(name) + sparse_mark(entry), [*plain(at), *(cell(entry, metric) for metric in metrics)]))
    if len(class_names) > 1:
        cells = [cell(column.results, f"{metric}_macro") for metric in metrics]
        rows.append(row("Mean", [*plain(""), *cells], style="macro"))
    return ["Finding", f"{head} ({column.kind})", *heads], rows


def _reasons(class_names, column) -> str:
    """Why some of these numbers are missing, findings with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for name in class_names:
        entry = column.results["per_class"][name]
        for metric, why in {} if entry["undefined"] else entry["not_measured"].items():
            by_reason.setdefault(f"{text(name)}, {why}", []).append(HEADS.get(metric, metric.replace("_", " ")))
    lines = [f"{reason}: no {', '.join(metrics)}" for reason, metrics in by_reason.items()]
    return muted("; ".join(lines) + ".") if lines else ""


def calibration(
    class_names: Sequence[str], labels: Integer[ndarray, "n c"], columns: Sequence[Column], bins: int
) -> str:
    """Reliability curves of every finding that is defined, for columns whose scores are probabilities.

    `bins` is the number that the calibration error was made with.
    """
    per_class = columns[0].results["per_class"]
    if not class_names or "brier" not in per_class[class_names[0]]:
        return ""
    if columns[0].kind == "score":
        return muted("The scores are no probabilities, so there is nothing to calibrate.")
    cards = []
    for c, name in enumerate(class_names):
        entry = per_class[name]
        if entry["undefined"]:
            continue
        series = []
        for column in columns:
            probability = probabilities(column.scores[:, c], column.kind)
            there = probability is not None and not column.results["per_class"][name]["undefined"]
            points = reliability(probability, labels[:, c], bins=PLOT_BINS) if there else None
            series.append((column.name, points))
        caption = f"Brier {number(entry['brier'])} {interval(entry['brier_interval'])}, calibration error "
        caption += f"{number(entry['ece'])} {interval(entry['ece_interval'])}"
        svg = calibration_plot(name, series)
        cards.append(f'<figure class="card"><h3>{text(name)}</h3>{svg}<figcaption>{caption}</figcaption></figure>')
    legend = " &ensp; ".join(f"{figures.line_key(i)}{text(column.name)}" for i, column in enumerate(columns))
    explanation = (
        "Of the images that were given a probability near p, the share that has the finding: on the diagonal, "
        "probabilities come true; below it, they are too high. Bars are Wilson intervals of the evaluated column, "
        f"which take images as independent; {PLOT_BINS} bins are drawn. The calibration error is made with {bins} "
        "bins. Brier score: lower is better, 0.25 is a constant 0.5."
    )
    return f'<p>{explanation}</p>{muted(legend)}<div class="figures small">{"".join(cards)}</div>' if cards else ""
