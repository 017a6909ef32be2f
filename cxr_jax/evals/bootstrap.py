"""Patient-level bootstrap: whose images were drawn how often, and what intervals follow.

In: one patient id per row, and metrics as functions of row weights. Out: values on all rows and under every draw, and
their percentile intervals.

Patients are drawn with replacement, since images of one patient are not independent. A draw is a column of weights (how
often each row was drawn), so a metric that is exact under integer weights sorts its scores once and not once a draw.
The same patients, number of draws and seed give the same draws, so that whatever is computed from them is paired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

RESAMPLES_PER_CHUNK = 128  # bounds the work array at n x 128 float64
MIN_DEFINED_SHARE = 0.5  # of the resamples, for an interval to be given

# Row weights `[n, r]` to `r` values of each metric, NaN where the weights leave it undefined.
MetricFunction = Callable[[Float[np.ndarray, "n r"]], Mapping[str, Float[np.ndarray, " r"]]]
# Values by metric: `[k]` on all rows, or `[k, resamples]`.
Values = dict[str, np.ndarray]


def resampled_weights(
    patient_ids: Shaped[np.ndarray, " n"], resamples: int, seed: int
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


def bootstrap(
    functions: Sequence[MetricFunction | None],
    metrics: Sequence[str],
    patient_ids: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int,
) -> tuple[Values, Values]:
    """Every metric of each of k functions on all rows, `[k]`, and under the same draws of patients, `[k, resamples]`.

    NaN where a function is None, does not give a metric, or a draw leaves it undefined.
    """

    def values(weights):
        out = {metric: np.full((len(functions), weights.shape[1]), np.nan) for metric in metrics}
        for k, function in enumerate(functions):
            for metric, row in (function(weights) if function else {}).items():
                out[metric][k] = row
        return out

    points = {metric: value[:, 0] for metric, value in values(np.ones((len(patient_ids), 1))).items()}
    chunks = [values(weights) for weights in resampled_weights(patient_ids, resamples, seed)]
    empty = np.empty((len(functions), 0))
    return points, {metric: np.concatenate([empty, *(c[metric] for c in chunks)], axis=1) for metric in metrics}


def interval(samples: Float[np.ndarray, " r"], confidence: float) -> list[float] | None:
    """Percentile interval over the draws in which the value is defined; None if those are too few."""
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0 or len(defined) < MIN_DEFINED_SHARE * len(samples):
        return None
    tail = (1.0 - confidence) / 2.0
    return [float(value) for value in np.quantile(defined, [tail, 1.0 - tail])]


def with_interval(metric: str, point: float, samples: Float[np.ndarray, " r"], confidence: float) -> dict:
    """`{metric: value or None, metric_interval: [low, high] or None}`; a value that is undefined has no interval."""
    undefined = bool(np.isnan(point))
    return {
        metric: None if undefined else float(point),
        f"{metric}_interval": None if undefined else interval(samples, confidence),
    }


def mean_over_classes(values: Float[np.ndarray, "k ..."]) -> Float[np.ndarray, "..."]:
    """Mean over the leading axis of the defined entries, NaN where none is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def macro_means(points: Values, samples: Values, metrics: Sequence[str], confidence: float, rows=slice(None)) -> dict:
    """`{metric_macro, metric_macro_interval}`: means over the classes (those of `rows`) that a draw leaves defined."""
    entries = (
        with_interval(
            f"{metric}_macro",
            float(mean_over_classes(points[metric][rows])),
            mean_over_classes(samples[metric][rows]),
            confidence,
        )
        for metric in metrics
    )
    return {key: value for entry in entries for key, value in entry.items()}


def ratio(numerator: Float[np.ndarray, " r"], denominator: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """Quotient, NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)
