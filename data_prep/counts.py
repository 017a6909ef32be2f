"""Counts of what was written, for the manifest.

In: each outcome (`Made`) with its split. Out: `counts`, `canvas` and `skipped` of the manifest. Patients are held
as 8-byte hashes, everything else as totals.
"""

from collections import Counter as Tally
from typing import Any

from cxr_jax.data.records import NEGATIVE, POSITIVE, SEXES, SPLITS, UNKNOWN_LABEL, VIEWS
from data_prep.parallel import Made
from data_prep.splits import stable_hash

_LABEL_NAMES = {POSITIVE: "positive", NEGATIVE: "negative", UNKNOWN_LABEL: "unknown"}


class Counter:
    """Counts outcomes; `images` is the number of records so far, `skipped` the images left out."""

    def __init__(self, vocabulary: tuple[str, ...]):
        self._vocabulary = vocabulary
        self._totals: dict[str, Tally[str]] = {name: Tally() for name in ("source", "split", "view", "sex")}
        self._labels = {split: [Tally() for _ in vocabulary] for split in SPLITS}
        self._patients: dict[str, set[int]] = {split: set() for split in SPLITS}
        self._with_mask = self._with_boxes = 0
        self.images = 0
        self.canvas = {"height": 0, "width": 0}
        self.skipped: list[dict[str, str]] = []

    def add(self, made: Made, split: str) -> None:
        """Counts one outcome; an error counts as skipped."""
        record = made.record
        if record is None:
            self.skipped.append({"file": made.sample.key, "reason": made.error})
            return
        self.images += 1
        self.canvas["height"] = max(self.canvas["height"], record.height)
        self.canvas["width"] = max(self.canvas["width"], record.width)
        self._totals["split"][split] += 1
        for name in ("source", "view", "sex"):
            self._totals[name][getattr(record, name)] += 1
        for tally, label in zip(self._labels[split], record.labels, strict=True):
            tally[_LABEL_NAMES[label]] += 1
        self._patients[split].add(stable_hash(record.patient_id, 0))
        self._with_mask += bool(record.mask)
        self._with_boxes += bool(record.boxes)

    def counts(self) -> dict[str, Any]:
        """The manifest's `counts`; names that could occur but did not have the count 0."""
        splits = [split for split in SPLITS if self._totals["split"][split]]
        per_split = {
            split: {
                label: {name: tally[name] for name in _LABEL_NAMES.values()}
                for label, tally in zip(self._vocabulary, self._labels[split], strict=True)
            }
            for split in splits
        }
        label = {
            name: {kind: sum(per_split[split][name][kind] for split in splits) for kind in _LABEL_NAMES.values()}
            for name in self._vocabulary
        }
        return {
            "images": self.images,
            "patients": sum(len(patients) for patients in self._patients.values()),
            "images_with_mask": self._with_mask,
            "images_with_boxes": self._with_boxes,
            "source": dict(sorted(self._totals["source"].items())),
            "split": {split: self._totals["split"][split] for split in splits},
            "patients_per_split": {split: len(self._patients[split]) for split in splits},
            "view": {view: self._totals["view"][view] for view in VIEWS},
            "sex": {sex: self._totals["sex"][sex] for sex in SEXES},
            "label": label,
            "label_per_split": per_split,
        }
