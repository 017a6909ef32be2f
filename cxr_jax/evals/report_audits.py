"""The section on audits: what else could explain the scores.

In: the dictionary of `audits.run_audits`. Out: HTML, one part for every audit that was run.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cxr_jax.evals.page import interval, number, table, text
from cxr_jax.evals.report_html import cell, muted, plain, row, share, value_cell

LISTED = 10


def audits(found: Mapping[str, Any]) -> str:
    """All audits that were run."""
    parts = [
        f"<div><h3>{heading}</h3>{part(found[name], found['settings'])}</div>"
        for name, (heading, part) in PARTS.items()
        if name in found
    ]
    return f'<div class="stacked">{"".join(parts)}</div>' if parts else ""


def _shortcuts(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for findings in found.values() for name in findings))
    rows = []
    for candidate, findings in found.items():
        cells = []
        for name in names:
            entry = findings.get(name)
            if entry is None:
                cells += plain("by definition")
            else:
                if entry["undefined"]:
                    cells += plain(entry["undefined"])
                    continue
                style = "lower" if entry["warning"] else ""
                cells.append(value_cell(entry["auroc"], entry["auroc_interval"], style=style))
        rows.append(row(text(candidate), cells))
    caption = (
        "AUROC of a logistic regression that sees this alone, and never the lungs; fitted on the training rows. "
        f"Coloured: at least {settings['warn_auroc']:g}, and the interval excludes 0.5."
    )
    within = []
    for candidate, findings in found.items():
        for name, entry in findings.items():
            if entry["warning"]:
                cells = [cell(entry, "auroc"), cell(entry, "model_auroc"), cell(entry, "model_auroc_within_strata")]
                within.append(row(f"{text(name)}, {text(candidate)}", cells))
    if not within:
        return table(["Candidate", *map(text, names)], rows, caption)
    heads = ("Finding, candidate", "Candidate alone", "Model", "Model among images alike in the candidate")
    inner = (
        "Pairs of a positive and a negative image are compared only within tenths of equal candidate score. A model "
        "that lives off the candidate falls towards 0.5 there; one that happens to agree with it stays."
    )
    both = table(["Candidate", *map(text, names)], rows, caption) + table(heads, within, inner)
    return f'<div class="stacked">{both}</div>'


def _source(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    del settings
    if found["undefined"]:
        return muted(f"Not run: {text(found['undefined'])}.")
    findings = list(found["prevalence"])
    rows = []
    for name, entry in found["per_source"].items():
        shares = plain(*(share(found["prevalence"][finding].get(name)) for finding in findings))
        rows.append(row(text(name), [cell(entry, "auroc"), *shares]))
    caption = (
        f"A linear probe on the evaluated features tells the source: mean AUROC {number(found['auroc_macro'])} "
        f"{interval(found['auroc_macro_interval'])}, its best guess is right for {share(found['accuracy'])} of "
        f"the test images (always the most frequent source: {share(found['largest_share'])}). This harms where the "
        "share of positives among the training rows, given here, differs between sources."
    )
    return table(["Source", "AUROC against the rest", *(f"{text(f)}, positive" for f in findings)], rows, caption)


def _duplicates(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    del settings
    nearest = found["nearest"]
    sentence = (
        "Thumbnails of every test image were compared with all training and selection images, as they are, mirrored "
        f"and inverted. {found['test_images']:,} of {found['of']:,} correlate with one by {found['correlation']:g} or "
        f"more. The correlation with the nearest is {number(nearest['median'])} for half of the test images, above "
        f"{number(nearest['p99'])} for one in a hundred, and at most {number(nearest['highest'])}."
    )
    if not found["pairs"]:
        return muted(sentence)
    rows = [
        row(
            text(pair["test_image_id"]),
            plain(
                pair["test_patient_id"],
                pair["image_id"],
                pair["patient_id"],
                pair["split"],
                number(pair["correlation"]),
            ),
        )
        for pair in found["pairs"][:LISTED]
    ]
    heads = ("Test image", "Patient", "Looks like", "Patient", "Rows", "Correlation")
    more = f" The {LISTED} likest pairs of {found['count']:,}." if found["count"] > LISTED else ""
    return table(heads, rows, sentence + " Somebody has to look at these." + more)


def _labels(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    rows, lists = [], []
    for name, entry in found.items():
        counts = number(entry["vote_auroc"]), f"{entry['contradicted']:,}", f"{entry['of']:,}"
        rows.append(row(text(name), plain(*counts)))
        for listed in entry["rows"][:LISTED]:
            label = "positive" if listed["label"] else "negative"
            cells = name, listed["split"], label, share(listed["positive_neighbours"])
            lists.append(row(text(listed["image_id"]), plain(*cells)))
    caption = (
        "Labels of the dataset that disagree with the vote of the "
        f"{settings['neighbours']} training images of other patients whose frozen features are most alike (the two "
        "labels weighted as if equally frequent): candidates for a wrong label, to look at; the scores above do not "
        "use them. The AUROC says how well such a vote ranks the training labels at all; near 0.5 "
        f"the list is noise. The list has the {LISTED} strongest of each finding, results.json up to 20."
    )
    summary = table(("Finding", "AUROC of the vote", "Contradicted", "Of"), rows, caption)
    if not lists:
        return summary
    heads = ("Image", "Finding", "Rows", "Label", "Neighbours positive")
    return f"{summary}<details><summary>The images</summary>{table(heads, lists, '')}</details>"


# Name in `audits.AUDITS` -> heading and the function that shows it.
PARTS: dict[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]]] = {
    "shortcuts": ("Shortcuts: what predicts the label without the lungs", _shortcuts),
    "source": ("Can the features tell the source?", _source),
    "duplicates": ("Near-duplicates across the splits", _duplicates),
    "labels": ("Labels that the neighbours contradict", _labels),
}
