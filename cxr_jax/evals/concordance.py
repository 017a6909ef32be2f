"""C-index: does the higher risk have the earlier event, among outcomes of which some are censored?

In: one risk score, one time and one event indicator per row (1 the event happened at that time, 0 it had not by then
and nobody looked further, -1 unknown). Out: Harrell's concordance index with a patient-level interval,

    C = sum over comparable pairs of [risk_i > risk_j] + [risk_i = risk_j] / 2, over their number,

a pair (i, j) being comparable if the event of i happened and j was known to be without it for longer: time_i < time_j,
or the same time and j censored. Where all events share one time and all others were followed for longer, this is the
AUROC.

Records carry no times of events, so no entry calls this: it is for who joins predictions.csv with a follow-up table.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals.bootstrap import bootstrap, ratio, with_interval

ROWS_PER_CHUNK = 1024  # bounds the tables of pairs at 1024 x n


def concordance(
    risk: Float[np.ndarray, " n"],
    time: Float[np.ndarray, " n"],
    event: Integer[np.ndarray, " n"],
    patient_ids: Shaped[np.ndarray, " n"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict:
    """`c_index`, its interval, `comparable_pairs`, `events`, `censored`, `unknown`, and `undefined` (None or the
    reason).

    Raises:
      ValueError: an event that is not 1, 0 or -1, or a known row whose risk or time is not finite or time negative.
    """
    strange = np.setdiff1d(event, [-1, 0, 1])
    if len(strange):
        raise ValueError(f"event holds {strange[:5].tolist()}; legal: 1 (happened), 0 (censored), -1 (unknown)")
    known = event >= 0
    bad = int((~np.isfinite(risk[known]) | ~np.isfinite(time[known]) | (time[known] < 0)).sum())
    if bad:
        raise ValueError(f"{bad} rows have a risk or a time that is not finite, or a negative time; mark them -1")
    risk, time, happened = risk[known].astype(np.float64), time[known].astype(np.float64), event[known] == 1
    pairs = sum(int(comparable.sum()) for _, comparable, _ in _pairs(risk, time, happened))

    def values(weights):
        drawn = weights[known]
        concordant = possible = np.zeros(weights.shape[1])
        for rows, comparable, right in _pairs(risk, time, happened):
            possible = possible + (drawn[rows] * (comparable @ drawn)).sum(axis=0)
            concordant = concordant + (drawn[rows] * (right @ drawn)).sum(axis=0)
        return {"c_index": ratio(concordant, possible)}

    points, samples = bootstrap([values], ["c_index"], patient_ids, resamples=resamples, seed=seed)
    return {
        **with_interval("c_index", points["c_index"][0], samples["c_index"][0], confidence),
        "comparable_pairs": pairs,
        "events": int(happened.sum()),
        "censored": int((~happened).sum()),
        "unknown": int((~known).sum()),
        "undefined": None if pairs else "no event happened while another row was still being followed",
    }


def _pairs(risk, time, happened) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """By chunk of rows i: which rows j are comparable to i, and how right their order is (1, 1/2, 0); `[chunk, n]`."""
    for start in range(0, len(risk), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        later = (time[rows, None] < time) | ((time[rows, None] == time) & ~happened)
        comparable = (happened[rows, None] & later).astype(np.float64)
        yield rows, comparable, comparable * ((risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk))
