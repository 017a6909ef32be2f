"""Classification metrics that admit what they do not know.

In: scores `[n, c]`, labels `[n, c]` (1 positive, 0 negative, -1 unknown) and one patient id per row. Out: the
dictionary of `results.json`: AUROC and AUPRC per class and their macro means, each with a patient-level bootstrap
interval, and the counts behind them.

Rules kept here and nowhere else:

- An unknown label is masked out of its class; it is never a negative.
- A class without both labels has no AUROC and no AUPRC: null with the reason, and not part of the macro mean.
- The bootstrap draws patients with replacement, since images of one patient are not independent. All classes and
  all score sets see the same draws, so macro means and differences are paired. A class that lacks a label in a
  draw is left out of that draw, and how often that happened is reported.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals.bootstrap import bootstrap, macro_means, resampled_weights, with_interval
from cxr_jax.evals.ranking import rank, weighted_metrics

METRICS = ("auroc", "auprc")
NOT_SCORED = "not scored (the classifier had nothing to learn this class from)"
__all__ = ["compare", "evaluate", "require_disjoint_patients", "resampled_weights", "write_results"]


def evaluate(
    scores: Float[np.ndarray, "_n _c"],
    labels: Integer[np.ndarray, "_n _c"],
    patient_ids: Shaped[np.ndarray, " _n"],
    class_names: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """All metrics of one score set, in the layout of `results.json`.

    Args:
      scores: higher means more likely positive. A column that is all NaN was not scored and is undefined.
      labels: 1 positive, 0 negative, -1 unknown.
      patient_ids: the unit of resampling; strings or integers.
      class_names: one name per column.
      resamples: number of bootstrap draws; 0 gives no intervals.
      confidence: mass of the percentile interval.
      seed: of the draws.
      groups: classes by the name of a group, such as head, medium and tail, whose means are given as well.

    Returns:
      `auroc_macro`, `auprc_macro` (numbers or null), `auroc_macro_interval`, `auprc_macro_interval` (`[low, high]`
      or null); `per_class`: name -> the same four without `_macro`, `undefined` (null or the reason), `prevalence`
      (the AUPRC of a coin), `counts`, `resamples_left_out`; `classes_in_macro`; `counts`; `bootstrap`; with
      `groups`, `groups`: name -> `classes` and the means over them.

    Raises:
      ValueError: shapes disagree, a label is not 1, 0 or -1, a score is not finite, or a patient id is empty.
    """
    _check(scores, labels, patient_ids, class_names, resamples, confidence)
    ((points, samples),) = _points_and_samples([scores], labels, patient_ids, resamples, seed)
    per_class = {
        name: _values_and_intervals(points, samples, confidence, c)
        | _class_entry(samples["auroc"][c], scores[:, c], labels[:, c], patient_ids)
        for c, name in enumerate(class_names)
    }
    return {
        **macro_means(points, samples, METRICS, confidence),
        "per_class": per_class,
        "classes_in_macro": _defined(per_class),
        "counts": {
            "images": len(labels),
            "patients": len(np.unique(patient_ids)),
            "classes": len(class_names),
        },
        "bootstrap": _bootstrap_facts(points, samples, confidence, seed),
    } | ({"groups": _group_means(points, samples, class_names, groups, confidence)} if groups else {})


def compare(
    scores: Float[np.ndarray, "_n _c"],
    baseline: Float[np.ndarray, "_n _c"],
    labels: Integer[np.ndarray, "_n _c"],
    patient_ids: Shaped[np.ndarray, " _n"],
    class_names: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict:
    """Difference `scores` minus `baseline` on the same rows, with paired bootstrap intervals.

    Both score sets see the same draws of patients, so what they have in common cancels. The macro difference is
    over the classes defined in both.

    Returns:
      `auroc_macro`, `auprc_macro` and their `_interval`s; `per_class`: name -> `auroc`, `auprc`, their
      `_interval`s and `undefined`; `classes_in_macro`; `bootstrap`. All are differences; positive favours `scores`.

    Raises:
      ValueError: as `evaluate`.
    """
    for values in (scores, baseline):
        _check(values, labels, patient_ids, class_names, resamples, confidence)
    ours, theirs = _points_and_samples([scores, baseline], labels, patient_ids, resamples, seed)
    point, sample = (
        {metric: one[metric] - other[metric] for metric in METRICS} for one, other in zip(ours, theirs, strict=True)
    )
    per_class = {}
    for c, name in enumerate(class_names):
        reasons = [undefined_reason(values[:, c], labels[:, c]) for values in (scores, baseline)]
        per_class[name] = {
            **_values_and_intervals(point, sample, confidence, c),
            "undefined": reasons[0] or reasons[1],
        }
    return {
        **macro_means(point, sample, METRICS, confidence),
        "per_class": per_class,
        "classes_in_macro": _defined(per_class),
        "bootstrap": _bootstrap_facts(point, sample, confidence, seed),
    }


def require_disjoint_patients(**patient_ids: Shaped[np.ndarray, " _n"]) -> None:
    """Refuse splits that share patients, e.g. `require_disjoint_patients(train=..., test=...)`.

    Raises:
      ValueError: names the two splits, how many patients they share and some of them.
    """
    names = list(patient_ids)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(patient_ids[first], patient_ids[second])
            if len(shared):
                raise ValueError(
                    f"splits {first} and {second} share {len(shared)} patients, e.g. "
                    f"{', '.join(map(str, shared[:3]))}; a score on seen patients is not a test score: "
                    "split by patient"
                )


def write_results(path: str | Path, results: dict) -> None:
    """Write strict JSON (NaN and infinity are refused with ValueError; undefined values are null)."""
    text = json.dumps(results, indent=2, allow_nan=False, default=_plain)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"results hold a {type(value).__name__}; legal: numbers, strings, lists and dictionaries")


def _points_and_samples(score_sets, labels, patient_ids, resamples, seed):
    """Of every score set, values `[c]` and bootstrap values `[c, resamples]` by metric, NaN where undefined."""
    num_classes = labels.shape[1]
    rankings = [rank(scores[:, c], labels[:, c]) for scores in score_sets for c in range(num_classes)]
    functions = [ranking and partial(_ranked, ranking) for ranking in rankings]
    points, samples = bootstrap(functions, METRICS, patient_ids, resamples=resamples, seed=seed)
    cuts = [slice(s * num_classes, (s + 1) * num_classes) for s in range(len(score_sets))]
    return [tuple({metric: table[metric][cut] for metric in METRICS} for table in (points, samples)) for cut in cuts]


def _ranked(ranking, weights):
    return dict(zip(METRICS, weighted_metrics(ranking, weights), strict=True))


def _group_means(points, samples, class_names, groups, confidence) -> dict:
    means = {}
    for name, classes in groups.items():
        rows = [list(class_names).index(one) for one in classes]
        means[name] = {"classes": list(classes), **macro_means(points, samples, METRICS, confidence, rows)}
    return means


def _class_entry(samples, scores, labels, patient_ids) -> dict:
    known = labels >= 0
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    return {
        "undefined": undefined_reason(scores, labels),
        "prevalence": positives / (positives + negatives) if positives + negatives else None,
        "counts": {
            "positives": positives,
            "negatives": negatives,
            "unknown": int((~known).sum()),
            "images": int(known.sum()),
            "patients": len(np.unique(patient_ids[known])),
            "positive_patients": len(np.unique(patient_ids[labels == 1])),
        },
        "resamples_left_out": int(np.isnan(samples).sum()),
    }


def undefined_reason(scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"]) -> str | None:
    """Why a class has no metrics; None if it has."""
    if not (labels >= 0).any():
        return "every label is unknown"
    if not (labels == 1).any():
        return "no positive label"
    if not (labels == 0).any():
        return "no negative label"
    return NOT_SCORED if np.isnan(scores).all() else None


def _defined(per_class) -> list[str]:
    return [name for name, entry in per_class.items() if entry["undefined"] is None]


def _values_and_intervals(points, samples, confidence, c) -> dict:
    entries = [with_interval(metric, points[metric][c], samples[metric][c], confidence) for metric in METRICS]
    return {key: value for entry in entries for key, value in entry.items()}


def _bootstrap_facts(points, samples, confidence, seed) -> dict:
    left_out = np.isnan(samples["auroc"]) & ~np.isnan(points["auroc"])[:, None]
    return {
        "unit": "patient",
        "method": "percentile",
        "confidence": confidence,
        "resamples": samples["auroc"].shape[-1],
        "seed": seed,
        "resamples_with_a_class_left_out": int(left_out.any(axis=0).sum()),
    }


def _check(scores, labels, patient_ids, class_names, resamples, confidence) -> None:
    expected = (len(patient_ids), len(class_names))
    for name, array in (("scores", scores), ("labels", labels)):
        if array.shape != expected:
            raise ValueError(
                f"{name} has shape {array.shape}; {expected[0]} patient ids and {expected[1]} class names "
                f"need {expected}"
            )
    if len(patient_ids) == 0:
        raise ValueError("no rows to evaluate; the split is empty")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class_names repeat: {list(class_names)}; each column needs its own name")
    strange = np.setdiff1d(labels, [-1, 0, 1])
    if len(strange):
        raise ValueError(f"labels hold {strange[:5].tolist()}; legal: 1 (positive), 0 (negative), -1 (unknown)")
    for c, name in enumerate(class_names):
        bad = int((~np.isfinite(scores[:, c])).sum())
        if bad and not np.isnan(scores[:, c]).all():
            raise ValueError(f"scores of {name}: {bad} of {len(scores)} are not finite; find where the model diverged")
    if any(str(patient) == "" for patient in np.unique(patient_ids)):
        raise ValueError("patient_ids hold an empty id; give rows without a patient one of their own (image_id)")
    if resamples < 0 or not 0.0 < confidence < 1.0:
        raise ValueError(f"resamples={resamples} (legal: 0 or more), confidence={confidence} (legal: between 0 and 1)")
