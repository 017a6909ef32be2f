"""Means of a score that every image has, such as Dice, with patient-level bootstrap intervals.

In: values `[n, m]` of n images and m named scores, NaN where a score is undefined for an image. Out: per name the mean
over the images that have it, its interval, and how many those are. Images without a value are left out, they are never
0. Differences are paired: both sets of values see the same draws of patients, and must be undefined on the same images.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from cxr_jax.evals.classification import resampled_weights


def means(
    values: Float[np.ndarray, "n m"],
    patient_ids: Shaped[np.ndarray, " n"],
    names: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict]:
    """`{name: {"mean", "interval", "images", "undefined_images", "patients"}}`; null where no image has a value.

    Intervals are percentiles of the mean over bootstrap samples of patients; `resamples=0` gives none.

    Raises:
      ValueError: shapes disagree.
    """
    if values.shape != (len(patient_ids), len(names)):
        raise ValueError(f"values {values.shape}: {len(patient_ids)} patient ids and {len(names)} names were given")
    samples = _samples(values, patient_ids, resamples, seed)
    entries = {}
    for j, name in enumerate(names):
        there = ~np.isnan(values[:, j])
        entries[name] = {
            "mean": float(values[there, j].mean()) if there.any() else None,
            "interval": _interval(samples[j], confidence),
            "images": int(there.sum()),
            "undefined_images": int((~there).sum()),
            "patients": len(np.unique(patient_ids[there])),
        }
    return entries


def differences(
    values: Float[np.ndarray, "n m"],
    baseline: Float[np.ndarray, "n m"],
    patient_ids: Shaped[np.ndarray, " n"],
    names: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict]:
    """As `means`, of `values - baseline` image by image; positive favours `values`.

    Raises:
      ValueError: shapes disagree, or the two are undefined on different images.
    """
    if values.shape != baseline.shape or (np.isnan(values) != np.isnan(baseline)).any():
        raise ValueError("paired differences need both sets of values on the same images")
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return means(values - baseline, patient_ids, names, **options)


def _samples(values, patient_ids, resamples: int, seed: int) -> list[Float[np.ndarray, " r"]]:
    """The mean of every column in every bootstrap sample that has a value at all."""
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    drawn = [[] for _ in range(values.shape[1])]
    for weights in resampled_weights(patient_ids, resamples, seed):
        total, count = filled.T @ weights, there.T.astype(float) @ weights
        for j, (sums, counts) in enumerate(zip(total, count, strict=True)):
            drawn[j].append(sums[counts > 0] / counts[counts > 0])
    return [np.concatenate([np.empty(0), *parts]) for parts in drawn]


def _interval(samples: Float[np.ndarray, " r"], confidence: float) -> list[float] | None:
    if not len(samples):
        return None
    tail = (1.0 - confidence) / 2.0
    return [float(value) for value in np.quantile(samples, [tail, 1.0 - tail])]
