"""report.html: one self-contained page that a clinician-researcher can read and a reviewer can check.

In: scores, labels and the dictionaries that results.json is made of. Out: one HTML file with what was evaluated and
what to beware of, tables with intervals and counts, comparisons, curves, calibration, subgroups, example images,
audits, training curves, what was left out, and the environment. It loads nothing from outside.

The first column is what the report is about; the others are what it has to be held against (a random network, the
hand-made floor). Each theme is a file `report_*.py` of functions that return HTML, "" where they have nothing to say;
`extra` takes sections that are made elsewhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from cxr_jax.evals import report_audits, report_context, report_decisions, report_groups, report_scores
from cxr_jax.evals.page import facts, write_page
from cxr_jax.evals.report_column import Column

__all__ = ["Column", "write_report"]
Section = tuple[str, str, str]  # key (an id of the page), heading, HTML


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
    subgroups: Mapping[str, Any] | None = None,
    audits: Mapping[str, Any] | None = None,
    excluded: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    extra: Sequence[Section] = (),
) -> Path:
    """Write the page and return its path.

    Args:
      evaluated: facts in order, e.g. run, checkpoint step, network (teacher or student), dataset, fingerprint, split.
      labels: 1, 0, -1 unknown; for the curves.
      columns: the evaluated scores first, comparisons after.
      attention: `{"image": uint8 [h, w], "maps": {class: [gh, gw]}, "caption": str}` each, with `detail` to show below;
        `maps` may be empty.
      metrics_path: a run's metrics.jsonl, for the training curves.
      environment: versions and devices.
      notes: sentences about how the task was set up.
      subgroups, audits, excluded: what `subgroups.subgroups`, `audits.run_audits` and `excluded.excluded` return.
      settings: `subgroups`, `long_tail` and `metrics` of the config, which the tables name; calibration is shown with
        the last.
      extra: further sections, shown after the scores.

    Raises:
      ValueError: no columns, or a column lacks a class of `class_names`.
      FileNotFoundError: `metrics_path` does not exist.
    """
    _check(class_names, labels, columns)
    settings, first, maps = settings or {}, columns[0], any(case["maps"] for case in attention)
    sections: list[Section] = [
        ("results", "Results per finding", report_scores.results(class_names, first)),
        ("comparison", "Against the baselines", report_scores.comparison(class_names, columns)),
        ("groups", "Frequent and rare findings", _long_tail(class_names, columns, settings)),
        ("curves", "ROC and precision-recall curves", report_scores.roc_and_pr(class_names, labels, columns)),
        ("decisions", "At a threshold", report_decisions.decisions(class_names, first)),
        ("calibration", "Do probabilities come true?", _calibration(class_names, labels, columns, settings)),
        ("subgroups", "Source, view, sex and age", _subgroups(class_names, subgroups, settings)),
        *extra,
        ("examples", "Where the head looks" if maps else "Examples", report_context.examples(attention)),
        ("audits", "Audits: what else could explain the scores", report_audits.audits(audits) if audits else ""),
        ("training", "Training", report_context.training(metrics_path)),
        ("excluded", "What was left out", report_context.excluded(excluded or {})),
        ("method", "How these numbers were made", report_context.method(first, notes)),
        ("environment", "Environment", facts(environment or {})),
    ]
    warnings = audits["warnings"] if audits else ()
    top = report_scores.headline(columns, evaluated, warnings)
    return write_page(path, title=title, top=top, sections=sections)


def _check(class_names, labels, columns) -> None:
    if not columns:
        raise ValueError("columns is empty; the first column is the evaluated score set")
    for column in columns:
        missing = [name for name in class_names if name not in column.results["per_class"]]
        if missing or column.scores.shape != labels.shape:
            raise ValueError(
                f"column {column.name!r} has scores {column.scores.shape} and lacks {missing}; the labels have shape "
                f"{labels.shape} and the classes are {list(class_names)}"
            )


def _long_tail(class_names, columns, settings) -> str:
    return report_groups.long_tail(class_names, columns, settings["long_tail"]) if "long_tail" in settings else ""


def _calibration(class_names, labels, columns, settings) -> str:
    if "metrics" not in settings:
        return ""
    return report_decisions.calibration(class_names, labels, columns, settings["metrics"]["calibration_bins"])


def _subgroups(class_names, found, settings) -> str:
    if not found:
        return ""
    return report_groups.subgroups(class_names, found, settings["subgroups"]["min_positive_patients"])
