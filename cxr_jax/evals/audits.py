"""Audits: what else could explain a good score.

In: a `Task`, who its rows are, the evaluated column's scores and frozen features. Out: a dictionary by audit, for
results.json and the report, and one sentence for every warning. None of them sees more than the scores' own rows.

`AUDITS` is the table of audits; each is switched by the key of its name in `config.audits`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from cxr_jax.evals.audit_duplicates import audit_duplicates, check_correlation
from cxr_jax.evals.audit_labels import audit_labels, check_neighbours
from cxr_jax.evals.audit_pixels import Pixels, read_pixels
from cxr_jax.evals.audit_shortcuts import audit_shortcuts
from cxr_jax.evals.audit_source import audit_source
from cxr_jax.evals.measures import Options
from cxr_jax.evals.people import People
from cxr_jax.evals.task import Task


@dataclass(frozen=True)
class Evidence:
    """What the audits look at; features and pixels are made when the first audit asks for them.

    `make_features` returns the frozen features behind the column, by role.
    """

    task: Task
    people: Mapping[str, People]
    scores: Float[np.ndarray, "n c"]
    make_features: Callable[[], Mapping[str, Float[np.ndarray, "_ d"]]]
    options: Options

    @cached_property
    def features(self) -> Mapping[str, Float[np.ndarray, "_ d"]]:
        """By role."""
        return self.make_features()

    @cached_property
    def pixels(self) -> dict[str, Pixels]:
        """By role."""
        return {role: read_pixels(split) for role, split in self.task.splits.items()}


def _source(evidence: Evidence, settings: Mapping[str, Any]) -> dict:
    del settings
    task = evidence.task
    return audit_source(evidence.features, task.labels, evidence.people, task.targets, evidence.options)


def _shortcuts(evidence: Evidence, settings: Mapping[str, Any]) -> dict:
    task, borders = evidence.task, {role: pixels.borders for role, pixels in evidence.pixels.items()}
    known = evidence.people, borders, task.labels, task.targets, evidence.scores, evidence.options
    return audit_shortcuts(*known, warn_auroc=settings["warn_auroc"])


def _duplicates(evidence: Evidence, settings: Mapping[str, Any]) -> dict:
    thumbnails = {role: pixels.thumbnails for role, pixels in evidence.pixels.items()}
    return audit_duplicates(thumbnails, evidence.people, correlation=settings["duplicate_correlation"])


def _labels(evidence: Evidence, settings: Mapping[str, Any]) -> dict:
    task = evidence.task
    known = evidence.features, task.labels, evidence.people, task.targets
    return audit_labels(*known, neighbours=settings["neighbours"])


AUDITS: dict[str, Callable[[Evidence, Mapping[str, Any]], dict]] = {
    "shortcuts": _shortcuts,
    "source": _source,
    "duplicates": _duplicates,
    "labels": _labels,
}


def check_audits(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for `warn_auroc` not in 0.5..1, `duplicate_correlation` not in 0.5..1, or no `neighbours`."""
    if not 0.5 <= settings["warn_auroc"] <= 1.0:
        raise ValueError(f"audits.warn_auroc={settings['warn_auroc']}: legal are 0.5 to 1")
    check_correlation(settings["duplicate_correlation"])
    check_neighbours(settings["neighbours"])


def run_audits(evidence: Evidence, settings: Mapping[str, Any]) -> dict:
    """The audits that `settings` switches on, and `warnings`: sentences for the top of a report.

    Raises:
      ValueError: `warn_auroc` is not in 0.5..1, or an audit refuses its setting.
    """
    check_audits(settings)
    found = {name: audit(evidence, settings) for name, audit in AUDITS.items() if settings[name]}
    return {"warnings": warnings(found), "settings": dict(settings), **found}


def warnings(found: Mapping[str, dict]) -> list[str]:
    """One sentence for every shortcut that predicts a label, and for copies between seen and test images."""
    sentences = []
    for candidate, findings in found.get("shortcuts", {}).items():
        for name, entry in findings.items():
            if entry["warning"]:
                sentence = f"{candidate} alone predicts {name}: AUROC {spoken(entry, 'auroc')}"
                within = entry["model_auroc_within_strata"]
                if within is not None:
                    sentence += f"; among images alike in it the model's {entry['model_auroc']:.3f} is {within:.3f}"
                sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    copies = found.get("duplicates", {})
    if copies.get("count"):
        sentences.append(
            f"{copies['test_images']} of {copies['of']} test images look like a training or selection image "
            f"(correlation of thumbnails {copies['correlation']:g} or more)."
        )
    return sentences


def spoken(entry: Mapping[str, Any], metric: str) -> str:
    """A value with its interval, in text."""
    bounds = entry[f"{metric}_interval"]
    return f"{entry[metric]:.3f}" + ("" if bounds is None else " [{:.3f}, {:.3f}]".format(*bounds))
