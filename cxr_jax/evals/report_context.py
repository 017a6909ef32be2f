"""Sections beside the scores: example images, training curves, what was left out, how the numbers were made.

In: cases, a metrics.jsonl, the dictionary of `excluded.excluded`. Out: HTML.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.evals import figures
from cxr_jax.evals.page import table, text
from cxr_jax.evals.report_column import Column
from cxr_jax.evals.report_html import bullets, muted, plain, row
from cxr_jax.evals.training_curves import collapse_sentences, training_panels

SKIPPED_LISTED = 10
ROLES = {"train": "Training", "select": "Selection", "test": "Test"}


def examples(cases: Sequence[Mapping[str, Any]]) -> str:
    """Images of the test split with their captions, and with attention maps where a head has such."""
    parts = []
    for case in cases:
        caption, detail = text(case["caption"]), text(case.get("detail", "image"))
        plain_image = figures.plain_image(case["image"])
        maps = [
            f'<figure><img src="{plain_image}" alt="Radiograph: {caption}"><figcaption>{detail}</figcaption></figure>'
        ]
        for name, weights in case["maps"].items():
            address, peak = figures.attention_overlay(case["image"], np.asarray(weights, np.float32))
            alt = f"The radiograph with the attention of the {text(name)} query, peak {peak:.1f} times an even share"
            maps.append(
                f'<figure><img src="{address}" alt="{alt}">'
                f"<figcaption>{text(name)}<br>peak {peak:.1f} × even share</figcaption></figure>"
            )
        parts.append(f'<div class="card case"><h3>{caption}</h3><div class="maps">{"".join(maps)}</div></div>')
    if not parts:
        return ""
    explanation = "The surest errors at the chosen threshold come first, then the surest right answers. "
    if any(case["maps"] for case in cases):
        explanation += (
            "Mean over attention heads of the weight that each finding's query puts on each patch; amber where a patch "
            "gets more than an even share. A peak near 1 × means that the query singles out nothing. Attention shows "
            "what was read, not why the score came out as it did."
        )
    return f'<p>{explanation}</p><div class="cases">{"".join(parts)}</div>'


def training(metrics_path: str | Path | None) -> str:
    """Curves of the run's log, and its warnings of collapse."""
    if metrics_path is None:
        return ""
    cards = "".join(
        f'<figure class="card"><h3>{text(heading)}</h3>{svg}</figure>' for heading, svg in training_panels(metrics_path)
    )
    if not cards:
        return muted("The run has logged nothing yet.")
    warnings = bullets([f"<strong>{text(sentence)}</strong>" for sentence in collapse_sentences(metrics_path)])
    return f'{warnings}<div class="figures small">{cards}</div>'


def excluded(found: Mapping[str, Any]) -> str:
    """How many images of each split were scored, and why the others were not."""
    if not found:
        return ""
    rows = []
    for role, entry in found["roles"].items():
        counts = (entry["images"], entry["other_rows"], entry["no_label"], entry["kept"])
        unknown = ", ".join(f"{name} {count:,}" for name, count in entry["unknown"].items() if count)
        chosen = ", ".join(f"{field} {value}" for field, value in entry["where"].items()) or "all"
        cells = plain(*(f"{count:,}" for count in counts), chosen, unknown or "none")
        rows.append(row(f"{ROLES[role]} ({text(entry['split'])})", cells))
    caption = "Images of the dataset that are in these numbers, and those that are not."
    heads = ("Rows (split)", "Images", "Not chosen", "No known label", "Used", "Choice", "Unknown among the used")
    sentence = "No image was left out when the dataset was built."
    if found["skipped"]:
        reasons = "; ".join(f"{count:,} × {why}" for why, count in list(found["skipped"].items())[:SKIPPED_LISTED])
        sentence = f"When the dataset was built, {found['skipped_count']:,} images could not be read: {reasons}."
    return table(heads, rows, caption) + muted(text(sentence))


def method(column: Column, notes: Sequence[str]) -> str:
    """What every number keeps to."""
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
    return bullets([*sentences, *(text(note) for note in notes)])
