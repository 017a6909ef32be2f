"""Does a manifest say what it may, and does it agree with the list of what was left out?

In: a manifest whose fingerprint is right, which only tells that whoever wrote it last could add. Out: faults as texts.
No file that it names is opened here, and none may be before `form_faults` has found nothing.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from cxr_jax.data.records import MANIFEST_NAME, SPLITS, Manifest
from cxr_jax.data.remote import LOCK_NAME, SHARD_NAME
from data_prep.curate import DROPPED_NAME
from data_prep.splits import stable_hash

METADATA = (MANIFEST_NAME, DROPPED_NAME, LOCK_NAME, "dataset_info.json", "features.json")
_CROSSING = "crossing patient"
# How a reason begins whose kind is not what stands before its colon.
_KINDS = {
    "exact duplicate (": "exact duplicate",
    "near duplicate (": "near duplicate",
    "view is ": "other view",
    "its patient shares a picture": "linked patient",
    "its patient is in ": _CROSSING,
}


def form_faults(manifest: Manifest) -> list[str]:
    """What no builder writes: other types, sizes that are none, names of shards that are none."""
    faults = []

    def need(legal: bool, name: str, found: Any, what: str) -> None:
        if not legal:
            text = json.dumps(found)
            faults.append(f"{MANIFEST_NAME}: {name} is {text if len(text) < 60 else text[:60] + '...'}; legal: {what}")

    different = len(set(manifest.vocabulary)) == len(manifest.vocabulary)
    need(different, "vocabulary", manifest.vocabulary, "different texts")
    canvas = manifest.canvas
    size = set(canvas) == {"height", "width"} and min(canvas.values()) > 0
    need(size, "canvas", canvas, "height and width, whole numbers from 1 on")
    need(bool(manifest.shards), "shards", manifest.shards, "at least one")
    for name, sha256 in manifest.shards.items():
        need(bool(SHARD_NAME.fullmatch(name)), "the name of a shard", name, "NAME-SPLIT.array_record-NUMBER-of-NUMBER")
        need(bool(re.fullmatch("[0-9a-f]{64}", sha256)), f"the sha256 of {name!a}", sha256, "64 hexadecimal digits")
    split = manifest.counts.get("split")
    legal = isinstance(split, dict) and set(split) <= {*SPLITS} and all(map(_is_count, split.values()))
    need(legal, "counts.split", split, f"numbers of records of {', '.join(SPLITS)}")
    curation = manifest.counts.get("curation", {})
    need(isinstance(curation, dict), "counts.curation", curation, "what curation counted")
    for entry in manifest.skipped:
        need(set(entry) == {"file", "reason"}, "an entry of skipped", entry, "file and reason")
    return faults


def dropped_faults(folder: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Faults of dropped.jsonl, as far as it, `counts.curation` and `skipped` say the same; and the files left out."""
    curation = manifest.counts.get("curation", {})
    file = folder / DROPPED_NAME
    content = file.read_bytes() if file.is_file() else b""
    skipped = [entry["file"] for entry in manifest.skipped]
    found = hashlib.sha256(content).hexdigest() if file.is_file() else ""
    if curation.get("dropped_list_sha256", "") != found:
        return [f"{DROPPED_NAME}: was changed, added or removed after the build"], skipped
    files, kinds = [], Counter()
    for number, line in enumerate(content.splitlines(), 1):
        try:
            entry = json.loads(line)
            kinds[_kind(entry["reason"])] += 1
            files.append(str(entry["file"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{DROPPED_NAME}: line {number} is no file with a reason"], skipped
    pairs = [("crossing_patients_images", kinds.pop(_CROSSING, 0)), ("dropped", dict(sorted(kinds.items())))]
    faults = [
        f"counts.curation.{name}: the manifest says {json.dumps(curation[name])}, {DROPPED_NAME} {json.dumps(value)}"
        for name, value in pairs
        if name in curation and curation[name] != value
    ]
    left_out = skipped + files
    twice = [name for name, number in Counter(left_out).items() if number > 1]
    return faults + [f"{name!a}: is left out twice (skipped, {DROPPED_NAME})" for name in twice], left_out


def kept_all_the_same(left_out: list[str], images: UInt64[np.ndarray, " n"]) -> list[str]:
    """Faults: files that are said to be left out and are records; `images` are hashes of the ids of all records."""
    here = np.isin(np.array([stable_hash(name, 0) for name in left_out], np.uint64), images)
    return [
        f"{name!a}: is a record, and is said to be left out"
        for name, is_here in zip(left_out, here, strict=True)
        if is_here
    ]


def strays(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in the folder and is no part of a dataset, shards apart."""
    names = sorted(path.name for path in folder.iterdir())
    return [
        name for name in names if name not in manifest.shards and name not in METADATA and ".array_record" not in name
    ]


def _kind(reason: str) -> str:
    begun = [kind for start, kind in _KINDS.items() if reason.startswith(start)]
    return begun[0] if begun else reason.split(":")[0]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
