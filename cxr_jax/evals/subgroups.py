"""The same threshold on everyone: how well it serves each source, view, sex and age group.

In: test scores and labels of one column, thresholds chosen on all selection rows, and who the rows are. Out: per
finding and group the counts, AUROC, and sensitivity and specificity at the one threshold, with intervals; and the
equal-opportunity gap of each field,

    gap = max over groups of TPR - min over groups of TPR        (Hardt et al. 2016)

A group with fewer than `min_positive_patients` positive patients is marked `sparse` and takes no part in a gap: its
true-positive rate is mostly chance. A largest difference is never below 0 and grows with the number of groups, so the
interval of the gap cannot contain "no gap"; that question is answered by `difference_interval`, of the best minus the
worst group as they came out (with more than two groups this, too, flatters the gap).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Integer

from cxr_jax.evals.bootstrap import bootstrap, interval, with_interval
from cxr_jax.evals.classification import undefined_reason
from cxr_jax.evals.decisions import decision_metrics
from cxr_jax.evals.measures import Options
from cxr_jax.evals.people import People, check_bins, check_field
from cxr_jax.evals.ranking import rank, weighted_metrics

METRICS = ("auroc", "auprc", "sensitivity", "specificity")


def subgroups(
    scores: Float[np.ndarray, "n c"],
    labels: Integer[np.ndarray, "n c"],
    people: People,
    class_names: Sequence[str],
    thresholds: Mapping[str, float | None],
    options: Options,
    *,
    fields: Sequence[str],
    age_bins: Sequence[float],
    min_positive_patients: int,
) -> dict:
    """Field -> finding -> `groups` (a list of entries; none for a finding made of that field) and `gap`.

    A group's entry has `group`, `counts`, `sparse`, `undefined`, and each of `METRICS` with its interval. `gap` has
    `value`, `interval`, `highest`, `lowest`, `difference_interval`, or `undefined` with the reason.

    Args:
      thresholds: by class; None where there is none, which leaves sensitivity, specificity and gap undefined.

    Raises:
      ValueError: an unknown field, bins that do not rise, or min_positive_patients below 1.
    """
    check_subgroups(fields, age_bins, min_positive_patients)
    rows_of = {field: people.groups(field, age_bins) for field in fields}
    keys = [
        (f, c, g) for f in fields for c, name in enumerate(class_names) for g in rows_of[f] if not of_field(name, f)
    ]
    functions = [
        partial(
            _of_group,
            scores[:, c].astype(np.float64),
            np.where(np.isin(np.arange(len(people)), rows_of[f][g]), labels[:, c], -1),
            thresholds[class_names[c]],
        )
        for f, c, g in keys
    ]
    drawn = {"resamples": options.resamples, "seed": options.seed}
    points, samples = bootstrap(functions, METRICS, people.patient_id, **drawn)
    found: dict = {field: {name: {"groups": []} for name in class_names} for field in fields}
    places: dict = {}
    for k, (field, c, group) in enumerate(keys):
        rows = rows_of[field][group]
        entry = _entry(group, scores[rows, c], labels[rows, c], people.patient_id[rows], min_positive_patients)
        for metric in METRICS:
            entry |= with_interval(metric, points[metric][k], samples[metric][k], options.confidence)
        found[field][class_names[c]]["groups"].append(entry)
        places.setdefault((field, c), []).append(k)
    for field in fields:
        for c, name in enumerate(class_names):
            own = places.get((field, c), [])
            rates = points["sensitivity"][own], samples["sensitivity"][own]
            found[field][name]["gap"] = _gap(found[field][name]["groups"], *rates, options.confidence)
    return found


def check_subgroups(fields: Sequence[str], age_bins: Sequence[float], min_positive_patients: int) -> None:
    """Raises ValueError for an unknown field, bins that do not rise, or min_positive_patients below 1."""
    for field in fields:
        check_field(field)
    check_bins(age_bins)
    if min_positive_patients < 1:
        raise ValueError(f"subgroups.min_positive_patients={min_positive_patients} must be at least 1")


def of_field(target: str, field: str) -> bool:
    """Whether a target is made of a field, as `sex:F` is of sex and `age>=60` of age: the field's groups know it."""
    return target.startswith((f"{field}:", f"{field}>="))


def _of_group(scores, labels, threshold, weights):
    """Metrics of one class on the rows whose label is kept; -1 elsewhere."""
    ranking = rank(scores, labels)
    ranked = np.full((2, weights.shape[1]), np.nan) if ranking is None else weighted_metrics(ranking, weights)
    values = dict(zip(METRICS[:2], ranked, strict=True))
    if threshold is None:
        return values
    decided = decision_metrics(scores, labels, threshold, weights)
    return values | {metric: decided[metric] for metric in METRICS[2:]}


def _entry(group, scores, labels, patients, min_positive_patients) -> dict:
    positive_patients = len(np.unique(patients[labels == 1]))
    return {
        "group": group,
        "counts": {
            "images": int((labels >= 0).sum()),
            "patients": len(np.unique(patients[labels >= 0])),
            "positives": int((labels == 1).sum()),
            "negatives": int((labels == 0).sum()),
            "unknown": int((labels < 0).sum()),
            "positive_patients": positive_patients,
        },
        "sparse": positive_patients < min_positive_patients,
        "undefined": undefined_reason(scores, labels),
    }


def _gap(groups, points, samples, confidence) -> dict:
    """The equal-opportunity gap between groups that are not sparse."""
    kept = [k for k, group in enumerate(groups) if not group["sparse"] and not np.isnan(points[k])]
    empty = dict.fromkeys(("value", "interval", "highest", "lowest", "difference_interval"))
    if len(kept) < 2:
        why = f"{len(kept)} of {len(groups)} groups have enough positive patients and a sensitivity; a gap needs two"
        return {**empty, "undefined": why}
    high, low = (kept[int(pick(points[kept]))] for pick in (np.argmax, np.argmin))
    gaps = samples[kept].max(axis=0) - samples[kept].min(axis=0)  # NaN where a group drew no positive
    return {
        "value": float(points[high] - points[low]),
        "interval": interval(gaps, confidence),
        "highest": groups[high]["group"],
        "lowest": groups[low]["group"],
        "difference_interval": interval(samples[high] - samples[low], confidence),
        "undefined": None,
    }
