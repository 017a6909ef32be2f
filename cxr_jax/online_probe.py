"""Nearest neighbours on the teacher's CLS tokens while it trains: does it learn what a reader needs?

In: a labelled dataset, and the train state every so many steps. Out: AUROC of each target on held-out patients, with
its patient-level interval, as scalars for metrics.jsonl:

    probe_auroc_<target>, probe_auroc_<target>_low, probe_auroc_<target>_high

Nothing is fitted and nothing is drawn: the same state gives the same numbers, and training never notices. Images are
decoded once and stay on the host as uint8 canvases, each process keeping the rows of its own devices.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cxr_jax.data.geometry import fit_images, normalise
from cxr_jax.data.pipeline import local_eval_batches, local_rows, to_global
from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split, open_split
from cxr_jax.evals.classification import evaluate, require_disjoint_patients
from cxr_jax.evals.features import Geometry, identities
from cxr_jax.evals.knn import knn_scores
from cxr_jax.models.layers import Layout
from cxr_jax.objectives.base import Objective
from cxr_jax.sharding import batch_sharding, replicated
from cxr_jax.state import TrainState


def thin(split: Split, max_images: int) -> Split:
    """At most `max_images` rows, evenly spaced, so that every source keeps its share."""
    if len(split) <= max_images:
        return split
    chosen = np.linspace(0, len(split) - 1, max_images).round().astype(int)
    return Split(split.records, np.asarray(split.rows)[chosen], split.manifest, split.name)


class OnlineProbe:
    """`probe(state)` scores the teacher; due when the step is a multiple of `every_steps`, and on the last state.

    At most `max_images` of each split are kept, evenly spaced over it. Raises ValueError for numbers that make no
    sense, DataError for a target without both labels or splits that share patients.
    """

    def __init__(
        self,
        *,
        every_steps: int,
        path: str,
        train_split: str,
        test_split: str,
        where: Mapping[str, str],
        targets: Sequence[str],
        k: int,
        max_images: int,
        resamples: int,
        cache_dir: str = "",
        objective: Objective,
        geometry: Geometry,
        batch_size: int,
        mesh: Mesh,
        layout: Layout,
        dtype: str,
    ):
        for name, value in (("every_steps", every_steps), ("k", k), ("max_images", max_images)):
            if value < 1:
                raise ValueError(f"probe.{name}={value} must be at least 1")
        if not targets:
            raise ValueError("probe.targets is empty; name findings, or attributes such as sex:F")
        self.every_steps, self._k, self._resamples, self._targets = every_steps, k, resamples, tuple(targets)
        self._batch_size, self._sharding = batch_size, batch_sharding(mesh)
        names = {"train": train_split, "test": test_split}
        splits = {
            role: thin(open_split(path, name, where=where, targets=targets, cache_dir=cache_dir), max_images)
            for role, name in names.items()
        }
        self._sizes = {role: len(split) for role, split in splits.items()}
        self._labels = {role: split.labels(targets) for role, split in splits.items()}
        patients = {role: identities(split, "patient_id") for role, split in splits.items()}
        self._patients = patients["test"]
        self._check(path, names, patients)
        if k > self._sizes["train"]:
            raise ValueError(f"probe.k={k} is more than the {self._sizes['train']} images of split {train_split!r}")
        self._batches = {role: self._decode(split) for role, split in splits.items()}

        def features(state: TrainState, image, size):
            images = normalise(fit_images(image, size, geometry.image_size, geometry.fit, dtype))
            cls = objective.features(state.params, state.targets, images, network="teacher", layout=layout).cls[-1]
            return cls.astype(dtype)

        self._features = jax.jit(features, out_shardings=replicated(mesh))

    def _check(self, path, names, patients) -> None:
        try:
            require_disjoint_patients(**patients)
        except ValueError as error:
            raise DataError(f"{path}, splits {' and '.join(names.values())}: {error}") from None
        for role, labels in self._labels.items():
            for c, target in enumerate(self._targets):
                if len(np.unique(labels[labels[:, c] >= 0, c])) < 2:
                    raise DataError(
                        f"{path}: the {len(labels)} images of split {names[role]!r} do not have both "
                        f"labels of {target!r}; take another target or split, or a larger config.probe.max_images"
                    )

    def _decode(self, split: Split) -> list[dict[str, np.ndarray]]:
        batches = local_eval_batches(split, batch_size=self._batch_size, sharding=self._sharding)
        return [{name: batch[name] for name in ("image", "size")} for batch in batches]

    def _run(self, state: TrainState, role: str) -> np.ndarray:
        rows, parts = local_rows(self._sharding, self._batch_size), []
        for local in self._batches[role]:
            batch = to_global(local, rows, self._batch_size, self._sharding)
            parts.append(jax.device_get(self._features(state, batch["image"], batch["size"])))
        return np.concatenate(parts)[: self._sizes[role]]

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Scores by name; NaN where a feature is zero or not finite, which has no neighbours."""
        features = {role: self._run(state, role) for role in self._batches}
        try:
            scores = knn_scores(features["train"], self._labels["train"], features["test"], k=self._k)
        except ValueError:
            return {f"probe_auroc_{target}": math.nan for target in self._targets}
        results = evaluate(scores, self._labels["test"], self._patients, self._targets, resamples=self._resamples)
        values = {}
        for target, entry in results["per_class"].items():
            name = f"probe_auroc_{target}"
            values[name] = entry["auroc"]
            if entry["auroc_interval"]:
                values[f"{name}_low"], values[f"{name}_high"] = entry["auroc_interval"]
        return values
