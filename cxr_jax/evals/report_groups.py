"""Sections about groups: of people (source, view, sex, age) and of findings (head, medium, tail).

In: `subgroups.subgroups` and the `groups` of `classification.evaluate`. Out: HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cxr_jax.evals.page import interval, number, table, text
from cxr_jax.evals.report_column import Column
from cxr_jax.evals.report_html import SPARSE_MARK, cell, muted, plain, row, sparse_note

TITLES = {"source": "Source", "view": "View", "sex": "Sex", "age": "Age in years"}


def subgroups(class_names: Sequence[str], found: Mapping[str, Any], min_positive_patients: int) -> str:
    """A table per finding: every group of every field with more than one, and below it the gaps."""
    parts = []
    for name in class_names:
        rows, sentences, marked = [], [], False
        for field, findings in found.items():
            groups = findings[name]["groups"]
            if len(groups) < 2:
                continue
            rows.append(f'<tr class="band"><th colspan="7" scope="colgroup">{TITLES[field]}</th></tr>')
            for group in groups:
                mark = f"&nbsp;{SPARSE_MARK}" if group["sparse"] else ""
                marked |= group["sparse"]
                counts = [f"{group['counts'][key]:,}" for key in ("patients", "positives", "negatives")]
                cells = [*plain(*counts), *(cell(group, m) for m in ("auroc", "sensitivity", "specificity"))]
                rows.append(row(text(group["group"]) + mark, cells))
            sentences.append(f"{TITLES[field]}: {_gap(findings[name]['gap'])}")
        if rows:
            heads = ("Group", "Patients", "Positive", "Negative", "AUROC", "Sensitivity", "Specificity")
            caption = f"{text(name)}. {sparse_note(marked, min_positive_patients)}"
            parts.append(table(heads, rows, caption) + muted("Equal-opportunity gap. " + " ".join(sentences)))
    if not parts:
        return ""
    explanation = (
        "One threshold for everyone: the one with the best F1 on all selection rows. The equal-opportunity gap is the "
        "largest difference between groups in sensitivity, the share of ill patients' images that are found; marked "
        "groups take no part. Groups with unknown values are left out."
    )
    return f'<p>{explanation}</p><div class="stacked">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _gap(gap: Mapping[str, Any]) -> str:
    if gap["undefined"]:
        return f"undefined ({text(gap['undefined'])})."
    low, high = gap["difference_interval"] or (None, None)
    told = "no interval" if low is None else "told apart" if low > 0 or high < 0 else "not told apart"
    between = f"{text(gap['highest'])} over {text(gap['lowest'])}"
    return f"{number(gap['value'])} {interval(gap['interval'])}, {between} ({told}; {_difference(gap)})."


def _difference(gap) -> str:
    between = gap["difference_interval"]
    return "difference " + (interval(between, signed=True) if between else "without interval")


def long_tail(class_names: Sequence[str], columns: Sequence[Column], settings: Mapping[str, int]) -> str:
    """Mean AUROC and AUPRC of frequent, middling and rare findings; nothing unless there are several such groups."""
    groups = columns[0].results.get("groups", {})
    if len(groups) < 2 or len(class_names) < 3:
        return ""
    rows = []
    for name, group in groups.items():
        cells = plain(len(group["classes"]))
        for column in columns:
            entry = column.results["groups"][name]
            cells += [cell(entry, "auroc_macro"), cell(entry, "auprc_macro")]
        rows.append(row(f'{text(name)}<span class="interval">{text(", ".join(group["classes"]))}</span>', cells))
    heads = ["Group", "Findings"]
    heads += [f"{text(column.name)}: {metric}" for column in columns for metric in ("AUROC", "AUPRC")]
    caption = (
        f"Means over findings by the number of positive training images: head above {settings['head_above']:,}, tail "
        f"below {settings['tail_below']:,}, medium between. Findings without a score are left out of the mean."
    )
    return table(heads, rows, caption)
