"""Which records stay: limits of quality, the wanted views, duplicates, and patients who are one person.

In: the listing and the columns of all its rows; no image. Out: `Curated`: the rows kept, why each other row is not, and
a summary for the manifest. The order is: unreadable, quality, views, duplicates, linked patients; the first reason
counts. Everything is a function of the columns, so it does not depend on workers or kills.
"""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from cxr_jax.data.records import SPLITS, UNKNOWN_LABEL, VIEWS
from data_prep.columns import Columns
from data_prep.dedup import Thumbs, copies
from data_prep.listing import Listing
from data_prep.quality import Limits, judge, summary

# Each image that curation left out, and why: one JSON object a line, in the dataset folder.
DROPPED_NAME = "dropped.jsonl"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What curation does: the flags of the same names."""

    limits: Limits | None
    views: tuple[str, ...]
    dedup: str
    dedup_distance: int
    dedup_correlation: float
    linked_patients: str


@dataclasses.dataclass(frozen=True)
class Drop:
    """A row of the listing left out by curation: the `kind` that is counted, why, and the key of the copy kept."""

    row: int
    kind: str
    reason: str
    copy_of: str = ""


@dataclasses.dataclass(frozen=True)
class Curated:
    """`kept` bool [n]; `drops` in the order of rows; `summary` for the manifest; `notes` for the screen."""

    kept: Bool[np.ndarray, " n"]
    drops: tuple[Drop, ...]
    summary: dict[str, Any]
    notes: tuple[str, ...]


def curate(
    listing: Listing,
    columns: Columns,
    rules: Rules,
    thumbs: Thumbs,
) -> Curated:
    """Applies the rules; `thumbs` gives the thumbnails of rows of the listing."""
    kept, drops, notes = columns.made.copy(), [], []
    for kind, reason, rows in _judged(columns, rules):
        for row in np.flatnonzero(kept & rows).tolist():
            drops.append(Drop(row, kind, reason))
        kept &= ~rows
    duplicates = {}
    if rules.dedup != "none":
        copy_of = _copies(listing, columns, np.flatnonzero(kept), rules, thumbs)
        repeated = _duplicates(listing, columns, copy_of)
        drops += repeated
        kept[[drop.row for drop in repeated]] = False
        linked = _linked(listing, copy_of, kept)
        duplicates = _crossings(listing, copy_of) | {
            "contradictory_labels": _contradictory(columns, copy_of),
            "linked_patients_images": len(linked),
        }
        if linked and rules.linked_patients == "drop":
            drops += linked
            kept[[drop.row for drop in linked]] = False
        notes += _duplicate_notes(duplicates, rules.linked_patients)
    kinds = Counter(drop.kind for drop in drops)
    measured = {
        "dropped": dict(sorted(kinds.items())),
        "duplicates": duplicates,
        "quality": summary(columns.quality[columns.made]),
    }
    if drops:
        notes.insert(0, "left out: " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
    return Curated(kept, tuple(sorted(drops, key=lambda drop: drop.row)), measured, tuple(notes))


def _judged(columns: Columns, rules: Rules):
    """Kind, reason and bool [n] of each rule that looks at one row alone."""
    if rules.limits is not None:
        for reason, rows in judge(columns.quality, rules.limits):
            yield reason.split(":")[0], reason, rows
    if rules.views:
        wanted = [VIEWS.index(view) for view in rules.views]
        for code, view in enumerate(VIEWS):
            if code not in wanted:
                yield "other view", f"view is {view}", columns.view == code


def _copies(
    listing: Listing, columns: Columns, rows: Int64[np.ndarray, " m"], rules: Rules, thumbs: Thumbs
) -> Int64[np.ndarray, " n"]:
    """For each row of the listing the kept row that stands for it, itself where it is no duplicate.

    Preferred are: the split that comes first in test, val, train, so that published test sets stay whole; then the
    larger picture; then the first in the order.
    """
    area = columns.size[rows].prod(1, dtype=np.int64)
    best = rows[np.lexsort((rows, -area, -listing.split[rows].astype(np.int64)))]
    found = copies(
        columns.pixels[best],
        columns.dhash[best],
        lambda some: thumbs(best[some]),
        near=rules.dedup == "near",
        distance=rules.dedup_distance,
        correlation=rules.dedup_correlation,
    )
    copy_of = np.arange(len(listing))
    copy_of[best] = best[found]
    return copy_of


def _repeated(copy_of: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    return np.flatnonzero(copy_of != np.arange(len(copy_of)))


def _duplicates(listing: Listing, columns: Columns, copy_of: Int64[np.ndarray, " n"]) -> list[Drop]:
    drops = []
    for row in _repeated(copy_of).tolist():
        copy = int(copy_of[row])
        exact = (columns.pixels[row] == columns.pixels[copy]).all()
        bits = int(np.bitwise_count(columns.dhash[row] ^ columns.dhash[copy]).sum())
        how = "equal pixels" if exact else f"{bits} of 256 bits apart"
        where = f"{SPLITS[listing.split[row]]}, the copy kept in {SPLITS[listing.split[copy]]}"
        whose = "the same patient" if listing.patient[row] == listing.patient[copy] else "another patient"
        kind = "exact duplicate" if exact else "near duplicate"
        drops.append(Drop(row, kind, f"{kind} ({how}) of {whose}, in {where}", listing.key(copy)))
    return drops


def _crossings(listing: Listing, copy_of: Int64[np.ndarray, " n"]) -> dict[str, int]:
    row = _repeated(copy_of)
    copy = copy_of[row]
    return {
        "images": len(row),
        "across_splits": int((listing.split[row] != listing.split[copy]).sum()),
        "across_patients": int((listing.patient[row] != listing.patient[copy]).sum()),
    }


def _linked(listing: Listing, copy_of: Int64[np.ndarray, " n"], kept: Bool[np.ndarray, " n"]) -> list[Drop]:
    """Kept images of patients linked to a patient of a split that comes before theirs in test, val, train.

    One picture under two patient ids is one person under two ids, as in collections made from one another; links are
    followed through any number of ids. The person's images stay in the first of these splits that holds one.
    """
    row = _repeated(copy_of)
    ids, code = np.unique(listing.patient, return_inverse=True)
    person = _components(len(ids), code[row], code[copy_of[row]])[code]
    best = np.zeros(len(ids), np.uint8)
    np.maximum.at(best, person[kept], listing.split[kept])
    # Of each person the first kept image in that split, to name.
    winners = np.flatnonzero(kept & (listing.split == best[person]))[::-1]
    winner_of = dict(zip(person[winners].tolist(), winners.tolist(), strict=True))
    drops = []
    for one in np.flatnonzero(kept & (listing.split < best[person])).tolist():
        winner = winner_of[int(person[one])]
        reason = (
            f"its patient shares a picture, at once or through other ids, with one in {SPLITS[listing.split[winner]]}"
        )
        drops.append(Drop(one, "linked patient", reason, listing.key(winner)))
    return drops


def _components(
    count: int, first: Int64[np.ndarray, " m"], second: Int64[np.ndarray, " m"]
) -> Int64[np.ndarray, " count"]:
    """The smallest node that each of `count` nodes is connected to by the edges first-second."""
    lowest = np.arange(count)
    while True:
        before = lowest.copy()
        np.minimum.at(lowest, first, lowest[second])
        np.minimum.at(lowest, second, lowest[first])
        lowest = lowest[lowest]
        if (lowest == before).all():
            return lowest


def _contradictory(columns: Columns, copy_of: Int64[np.ndarray, " n"]) -> int:
    """Duplicates one of whose labels is known and is known otherwise of the copy kept."""
    row = _repeated(copy_of)
    one, two = columns.labels[row], columns.labels[copy_of[row]]
    return int(((one != two) & (one != UNKNOWN_LABEL) & (two != UNKNOWN_LABEL)).any(1).sum())


def _duplicate_notes(duplicates: dict[str, int], policy: str) -> list[str]:
    notes = []
    if duplicates["across_splits"] or duplicates["across_patients"]:
        notes.append(
            f"of the duplicates {duplicates['across_splits']} were in another split than the copy kept, "
            f"{duplicates['across_patients']} of another patient"
        )
    if duplicates["contradictory_labels"]:
        notes.append(
            f"{duplicates['contradictory_labels']} duplicates have other labels than the copy kept, whose labels stay"
        )
    linked = duplicates["linked_patients_images"]
    if linked:
        done = "left out" if policy == "drop" else "kept; --linked_patients=drop leaves them out"
        notes.append(f"{linked} images of patients who share a picture with a patient of another split: {done}")
    return notes
