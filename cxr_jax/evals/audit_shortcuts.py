"""Does something beside the lungs predict the label: the size of the file, the borders, the source, the view?

In: who the rows are, border statistics, labels. Out: for every candidate and finding the AUROC on test rows of a
logistic regression that sees the candidate alone (fitted on train rows, its strength chosen on selection rows), with
its interval, a warning where that is high, and what is left of the model's AUROC among rows that the candidate cannot
tell apart:

    AUROC within strata = sum over strata of U_s / sum over strata of P_s N_s,

U_s being the rightly ordered pairs, P_s and N_s the positives and negatives of one of ten strata of equal size of the
candidate's score. A score that only repeats the shortcut falls towards 0.5 there, though not quite to it: within a
tenth the candidate still differs a little.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped

from cxr_jax.evals import classification
from cxr_jax.evals.bootstrap import bootstrap, with_interval
from cxr_jax.evals.linear_probe import fit_linear_probe
from cxr_jax.evals.measures import Options
from cxr_jax.evals.people import UNKNOWN, People
from cxr_jax.evals.ranking import rank, weighted_metrics
from cxr_jax.evals.subgroups import of_field

STRATA = 10
ROLES = ("train", "select", "test")


def _numbers(*names: str):
    def features(people: Mapping[str, People], borders: Any) -> dict[str, np.ndarray]:
        del borders
        return {r: np.log(np.stack([getattr(p, name) for name in names], axis=1)) for r, p in people.items()}

    return features


def _one_hot(name: str):
    def features(people: Mapping[str, People], borders: Any) -> dict[str, np.ndarray]:
        del borders
        values = np.unique(getattr(people["train"], name))
        return {r: (getattr(p, name)[:, None] == values).astype(np.float64) for r, p in people.items()}

    return features


def _age_and_sex(people: Mapping[str, People], borders: Any) -> dict[str, np.ndarray]:
    del borders
    ages = people["train"].age_years
    middle = np.nanmean(ages) if np.isfinite(ages).any() else 0.0
    return {
        role: np.stack(
            [
                np.where(np.isnan(p.age_years), middle, p.age_years),
                np.isnan(p.age_years),
                p.sex == "F",
                p.sex == "M",
            ],
            axis=1,
        ).astype(np.float64)
        for role, p in people.items()
    }


# Name -> the fields it knows, and its features by role.
CANDIDATES: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, np.ndarray]]]] = {
    "file size (bytes of the stored JPEG)": ((), _numbers("image_bytes")),
    "height and width": ((), _numbers("height", "width")),
    "border statistics": ((), lambda people, borders: dict(borders)),
    "source": (("source",), _one_hot("source")),
    "view": (("view",), _one_hot("view")),
    "age and sex": (("age", "sex"), _age_and_sex),
}


def audit_shortcuts(
    people: Mapping[str, People],
    borders: Mapping[str, Float[np.ndarray, "_ f"]],
    labels: Mapping[str, Integer[np.ndarray, "_ c"]],
    class_names: Sequence[str],
    model_scores: Float[np.ndarray, "n c"],
    options: Options,
    *,
    warn_auroc: float,
) -> dict:
    """Candidate -> finding -> `auroc` and its interval, `undefined`, `warning`, and with a warning `model_auroc` and
    `model_auroc_within_strata` with their intervals. A candidate does not judge targets made of a field it knows, and
    one that is unknown or the same in all rows is `undefined`, with the reason.

    `warning` is whether the candidate's AUROC is at least `warn_auroc` and its interval excludes 0.5.
    """
    found: dict = {}
    known = {"patient_ids": people["test"].patient_id, "class_names": class_names}
    model = classification.evaluate(model_scores, labels["test"], **known, **options.bootstrap)["per_class"]
    for candidate, (fields, features_of) in CANDIDATES.items():
        features = features_of(people, borders)
        if why := nothing_known(fields, people, features):
            found[candidate] = {
                name: {"auroc": None, "auroc_interval": None, "undefined": why, "warning": False}
                for name in class_names
                if not any(of_field(name, field) for field in fields)
            }
            continue
        probe = fit_linear_probe(features["train"], labels["train"], features["select"], labels["select"])
        scores = probe.scores(features["test"])
        results = classification.evaluate(scores, labels["test"], **known, **options.bootstrap)["per_class"]
        found[candidate] = {}
        for c, name in enumerate(class_names):
            if any(of_field(name, field) for field in fields):
                continue
            entry = {key: results[name][key] for key in ("auroc", "auroc_interval", "undefined")}
            entry["warning"] = warns(entry, warn_auroc)
            if entry["warning"]:
                entry |= {f"model_{key}": model[name][key] for key in ("auroc", "auroc_interval")}
                inside = within_strata(model_scores[:, c], labels["test"][:, c], scores[:, c])
                drawn = {"resamples": options.resamples, "seed": options.seed}
                point, sample = bootstrap([inside], ["auroc"], people["test"].patient_id, **drawn)
                within = point["auroc"][0], sample["auroc"][0]
                entry |= with_interval("model_auroc_within_strata", *within, options.confidence)
            found[candidate][name] = entry
    return found


def nothing_known(
    fields: Sequence[str], people: Mapping[str, People], features: Mapping[str, Float[np.ndarray, "_ f"]]
) -> str | None:
    """Why a candidate cannot predict anything: its fields are unknown, or the same, in all rows it would learn from or
    be judged on; None if it can."""
    for role in ("train", "test"):
        values = [_known(people[role], field) for field in fields]
        if values and not any(len(known) for known in values):
            return f"{' and '.join(fields)} not known in the {role} rows"
        if len(features[role]) and (features[role] == features[role][0]).all():
            one = [str(known[0]) for known in values if len(known)]
            return f"the same in all {role} rows{': ' + ', '.join(one) if one else ''}"
    return None


def _known(people: People, field: str) -> np.ndarray:
    """The values of a field in the rows that know it."""
    if field == "age":
        return people.age_years[np.isfinite(people.age_years)]
    values = getattr(people, field)
    return values[(values != UNKNOWN) & (values != "")]


def warns(entry: Mapping[str, Any], warn_auroc: float) -> bool:
    """Whether an AUROC with its interval is high enough to warn of."""
    bounds = entry["auroc_interval"]
    return entry["auroc"] is not None and entry["auroc"] >= warn_auroc and (bounds is None or bounds[0] > 0.5)


def within_strata(
    scores: Float[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], candidate: Float[np.ndarray, " n"]
) -> Callable[[Float[np.ndarray, "n r"]], dict[str, np.ndarray]]:
    """AUROC among pairs of the same stratum of the candidate's score, as a function of row weights."""
    known = np.flatnonzero(labels >= 0)
    # Rows of equal score share a stratum; a candidate with few values has as many strata.
    values, place, counts = np.unique(candidate[known], return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(known)
    stratum = np.full(len(labels), -1)
    stratum[known] = (middle * STRATA).astype(int)[place] if len(values) > STRATA else place
    parts = [np.where(stratum == s, labels, -1) for s in np.unique(stratum[known])]
    rankings = [ranking for part in parts if (ranking := rank(scores, part)) is not None]
    return partial(_pooled, rankings)


def _pooled(rankings, weights: Float[np.ndarray, "n r"]) -> dict[str, Shaped[np.ndarray, " r"]]:
    right = pairs = np.zeros(weights.shape[1])
    for ranking in rankings:
        drawn = weights[ranking.rows]
        possible = drawn[ranking.positive].sum(axis=0) * drawn[~ranking.positive].sum(axis=0)
        right = right + np.nan_to_num(weighted_metrics(ranking, weights)[0]) * possible
        pairs = pairs + possible
    return {"auroc": np.where(pairs > 0, right / np.maximum(pairs, 1.0), np.nan)}
