"""Can the features tell where an image comes from?

In: frozen features and the source of every row. Out: AUROC of each source against the rest, by a linear probe on the
very features that are evaluated, how often its best guess is right, and how the labels differ between sources.

A backbone that knows the hospital can answer "how ill are this hospital's patients" instead of "how ill is this
patient". It hurts where the labels differ between sources; whether they do stands beside, and what the source alone is
worth is among the shortcuts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer

from cxr_jax.evals import classification
from cxr_jax.evals.linear_probe import fit_linear_probe
from cxr_jax.evals.measures import Options
from cxr_jax.evals.people import People


def audit_source(
    features: Mapping[str, Float[np.ndarray, "_ d"]],
    labels: Mapping[str, Integer[np.ndarray, "_ c"]],
    people: Mapping[str, People],
    class_names: Sequence[str],
    options: Options,
) -> dict:
    """`per_source` AUROC, `auroc_macro`, their intervals, `accuracy`, `largest_share` (that of always guessing the most
    frequent source), `prevalence` by finding and source among train rows; or `undefined` with the reason.
    """
    sources = [str(source) for source in np.unique(people["train"].source)]
    if len(sources) < 2:
        return {"undefined": f"all training rows are of one source, {sources[0] or 'which has no name'}"}
    targets = {role: (p.source[:, None] == np.array(sources)).astype(int) for role, p in people.items()}
    probe = fit_linear_probe(features["train"], targets["train"], features["select"], targets["select"])
    scores = probe.scores(features["test"])
    results = classification.evaluate(scores, targets["test"], people["test"].patient_id, sources, **options.bootstrap)
    right = np.array(sources)[scores.argmax(axis=1)] == people["test"].source
    return {
        "undefined": None,
        **{key: results[key] for key in ("auroc_macro", "auroc_macro_interval")},
        "per_source": {
            name: {key: entry[key] for key in ("auroc", "auroc_interval", "undefined")}
            for name, entry in results["per_class"].items()
        },
        "accuracy": float(right.mean()),
        "largest_share": float(targets["test"].mean(axis=0).max()),
        "prevalence": {
            name: {s: _share(labels["train"][people["train"].source == s, c]) for s in sources}
            for c, name in enumerate(class_names)
        },
    }


def _share(labels) -> float | None:
    known = labels >= 0
    return float((labels[known] == 1).mean()) if known.any() else None
