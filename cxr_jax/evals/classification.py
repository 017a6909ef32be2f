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
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals.ranking import rank, weighted_metrics

METRICS = ("auroc", "auprc")
RESAMPLES_PER_CHUNK = 128  # bounds the work array at n x 128 float64
NOT_SCORED = "not scored (the classifier had nothing to learn this class from)"
MIN_DEFINED_SHARE = 0.5  # of the resamples, for an interval to be given


def resampled_weights(
    patient_ids: Shaped[np.ndarray, "n"], resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "n r"]]:
    """Draw patients with replacement and yield how often each row was drawn, some resamples at a time."""
    patients, patient_of_row = np.unique(patient_ids, return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_PER_CHUNK):
        count = min(RESAMPLES_PER_CHUNK, resamples - start)
        draws = rng.integers(len(patients), size=(count, len(patients)))
        flat = (draws + len(patients) * np.arange(count)[:, None]).ravel()
        times_drawn = np.bincount(flat, minlength=count * len(patients)).reshape(count, len(patients))
        yield times_drawn.T.astype(np.float64)[patient_of_row]


def evaluate(
    scores: Float[np.ndarray, "_n _c"],
    labels: Integer[np.ndarray, "_n _c"],
    patient_ids: Shaped[np.ndarray, "_n"],
    class_names: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
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

    Returns:
      `auroc_macro`, `auprc_macro` (numbers or null), `auroc_macro_interval`, `auprc_macro_interval` (`[low, high]`
      or null); `per_class`: name -> the same four without `_macro`, `undefined` (null or the reason), `prevalence`
      (the AUPRC of a coin), `counts`, `resamples_left_out`; `classes_in_macro`; `counts`; `bootstrap`.

    Raises:
      ValueError: shapes disagree, a label is not 1, 0 or -1, a score is not finite, or a patient id is empty.
    """
    _check(scores, labels, patient_ids, class_names, resamples, confidence)
    (points,), (samples,) = _points_and_samples([scores], labels, patient_ids, resamples, seed)
    per_class = {
        name: _class_entry(points[:, c], samples[:, c], scores[:, c], labels[:, c], patient_ids, confidence)
        for c, name in enumerate(class_names)
    }
    return {
        **_macro(points, samples, confidence),
        "per_class": per_class,
        "classes_in_macro": _defined(per_class),
        "counts": {
            "images": len(labels),
            "patients": len(np.unique(patient_ids)),
            "classes": len(class_names),
        },
        "bootstrap": _bootstrap_facts(points, samples, confidence, seed),
    }


def compare(
    scores: Float[np.ndarray, "_n _c"],
    baseline: Float[np.ndarray, "_n _c"],
    labels: Integer[np.ndarray, "_n _c"],
    patient_ids: Shaped[np.ndarray, "_n"],
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
    points, samples = _points_and_samples([scores, baseline], labels, patient_ids, resamples, seed)
    point, sample = points[0] - points[1], samples[0] - samples[1]
    per_class = {}
    for c, name in enumerate(class_names):
        reasons = [_undefined_reason(values[:, c], labels[:, c]) for values in (scores, baseline)]
        per_class[name] = {
            **_values_and_intervals(point[:, c], sample[:, c], confidence),
            "undefined": reasons[0] or reasons[1],
        }
    return {
        **_macro(point, sample, confidence),
        "per_class": per_class,
        "classes_in_macro": _defined(per_class),
        "bootstrap": _bootstrap_facts(point, sample, confidence, seed),
    }


def require_disjoint_patients(**patient_ids: Shaped[np.ndarray, "_n"]) -> None:
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
    """Point values `[sets, 2, c]` and bootstrap values `[sets, 2, c, resamples]`, NaN where undefined."""
    num_rows, num_classes = labels.shape
    rankings = [[rank(scores[:, c], labels[:, c]) for c in range(num_classes)] for scores in score_sets]

    def values(weights):
        out = np.full((len(score_sets), 2, num_classes, weights.shape[1]), np.nan)
        for s, classes in enumerate(rankings):
            for c, ranking in enumerate(classes):
                if ranking is not None:
                    out[s, :, c] = weighted_metrics(ranking, weights)
        return out

    points = values(np.ones((num_rows, 1)))[..., 0]
    chunks = [values(weights) for weights in resampled_weights(patient_ids, resamples, seed)]
    return points, np.concatenate([np.empty((*points.shape, 0)), *chunks], axis=-1)


def _class_entry(points, samples, scores, labels, patient_ids, confidence) -> dict:
    known = labels >= 0
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    return {
        **_values_and_intervals(points, samples, confidence),
        "undefined": _undefined_reason(scores, labels),
        "prevalence": positives / (positives + negatives) if positives + negatives else None,
        "counts": {
            "positives": positives,
            "negatives": negatives,
            "unknown": int((~known).sum()),
            "images": int(known.sum()),
            "patients": len(np.unique(patient_ids[known])),
            "positive_patients": len(np.unique(patient_ids[labels == 1])),
        },
        "resamples_left_out": int(np.isnan(samples[0]).sum()),
    }


def _undefined_reason(scores, labels) -> str | None:
    if not (labels >= 0).any():
        return "every label is unknown"
    if not (labels == 1).any():
        return "no positive label"
    if not (labels == 0).any():
        return "no negative label"
    return NOT_SCORED if np.isnan(scores).all() else None


def _defined(per_class) -> list[str]:
    return [name for name, entry in per_class.items() if entry["undefined"] is None]


def _values_and_intervals(points, samples, confidence, suffix: str = "") -> dict:
    entry = {}
    for m, metric in enumerate(METRICS):
        entry[metric + suffix] = None if np.isnan(points[m]) else float(points[m])
        entry[f"{metric}{suffix}_interval"] = _interval(samples[m], confidence)
    return entry


def _interval(samples, confidence) -> list[float] | None:
    """Percentile interval over the draws in which the value is defined; None if those are too few."""
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0 or len(defined) < MIN_DEFINED_SHARE * len(samples):
        return None
    tail = (1.0 - confidence) / 2.0
    return [float(value) for value in np.quantile(defined, [tail, 1.0 - tail])]


def _macro(points, samples, confidence) -> dict:
    means = _mean_over_classes(points), _mean_over_classes(samples)
    return _values_and_intervals(*means, confidence, "_macro")


def _mean_over_classes(values):
    """Mean over the class axis (axis 1) of the defined entries, NaN where none is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _bootstrap_facts(points, samples, confidence, seed) -> dict:
    left_out = np.isnan(samples[0]) & ~np.isnan(points[0])[:, None]
    return {
        "unit": "patient",
        "method": "percentile",
        "confidence": confidence,
        "resamples": samples.shape[-1],
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
