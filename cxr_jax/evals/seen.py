"""Whether a run has learnt from the rows that it is scored on.

In: runs, and the rows of an evaluation by role. Out: by run what it was trained on, for results.json and the report. A
run that learnt labels or masks of a patient among the test rows is refused, and so is one whose backbone came from such
a run. Images that a pretraining saw without labels are told, not refused.

Patients decide, read from the run's own rows: the split and the choice of rows in its checkpoint. Where these cannot
be read, names do: the same dataset (its fingerprint or its path), a split in common, and no field that tells the two
choices of rows apart.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.data.source import Split, open_split
from cxr_jax.evals.columns import MODES, SPOKEN_HEADS, Source, backbone_mode, open_source
from cxr_jax.evals.features import identities

LABELLED = ("supervised", "segmentation")  # objectives that learn what an evaluation scores
LINEAGE = 8  # runs that stand on one another; more are not followed


@dataclass(frozen=True)
class Scored:
    """The rows of an evaluation by role, and where those of `test` are from: dataset, choice of rows, cache."""

    splits: Mapping[str, Split]
    path: str
    where: Mapping[str, str]
    cache_dir: str = ""


def require_unseen(sources: Iterable[Source], scored: Scored) -> dict[str, dict[str, Any]]:
    """By run: what `training_of` says, and `pretraining`, the same of the runs that its backbone came from.

    Raises DataError when labels of a test patient were learnt.
    """
    patients = identities(scored.splits["test"], "patient_id")
    found = {}
    for source in sources:
        own, *before = (training_of(one, scored, patients) for one in lineage(source))
        found[source.run] = own | {"pretraining": before}
    return found


def lineage(source: Source) -> Iterator[Source]:
    """The run, and as far as they can be read those that its backbone came from."""
    for _ in range(LINEAGE):
        yield source
        before = source.meta.get("pretrained") or {}
        if not before.get("run") or before.get("network") == "random":
            return
        try:
            source = open_source(before["run"], before.get("step"))
        except (ConfigError, DataError):
            return


def training_of(source: Source, scored: Scored, patients: np.ndarray) -> dict[str, Any]:
    """What a run was trained on, and whether the test `patients` are among it.

    Returns:
      `run`, `path`, `split`, `where`, `targets`, `rows` (None: not counted), `labelled`, `test_patients`: how many of
      those scored (None: unknown), and `unchecked`: why that is unknown, or None.

    Raises DataError when labels of a test patient were learnt.
    """
    data = source.meta["config"]["data"]
    facts = {
        "run": source.run,
        "path": data["path"],
        "split": data.get("split", ""),
        "where": {field: value for field, value in data.get("where", {}).items() if value},
        "targets": list(source.meta.get("targets", ())),
        "labelled": source.meta["objective"] in LABELLED,
    }
    if not facts["path"]:
        return facts | {"rows": None, "test_patients": None, "unchecked": "converted weights do not say on what"}
    if not facts["labelled"]:
        # Reading who is who in a whole pretraining set costs more than a remark is worth.
        apart = not by_name(source, facts, scored)
        return facts | {"rows": None, "test_patients": 0 if apart else None, "unchecked": None}
    try:
        split = _open(source, facts, scored)
        shared = _shared(split, scored, patients)
    except (DataError, ConfigError, ValueError, OSError) as error:
        if by_name(source, facts, scored):
            raise DataError(refusal(facts, scored, "which is scored here")) from None
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return facts | {"rows": None, "test_patients": None, "unchecked": why}
    if len(shared):
        many = f"with {len(shared)} of the {len(np.unique(patients))} test patients, e.g. {', '.join(shared[:3])}"
        raise DataError(refusal(facts, scored, many))
    changed = split.manifest.fingerprint != source.meta["fingerprint"]
    why = None
    if changed:
        why = f"{facts['path']} is not what it was then (another fingerprint), though no patient is shared now"
    return facts | {"rows": len(split), "test_patients": None if why else 0, "unchecked": why}


def refusal(facts: Mapping[str, Any], scored: Scored, why: str) -> str:
    """The line that refuses a run."""
    return (
        f"{facts['run']} was trained on split {facts['split']!r} of {facts['path']}, {why}: a score on seen patients "
        f"is not a test score; take a run that was trained without split {scored.splits['test'].name!r}, or score "
        "other rows (config.data.split, config.data.where, config.data.only_images)"
    )


def by_name(source: Source, facts: Mapping[str, Any], scored: Scored) -> bool:
    """Whether a run and the test rows share dataset and split, and no field tells their choices of rows apart."""
    test = scored.splits["test"]
    same = source.meta["fingerprint"] == test.manifest.fingerprint or _folders(facts["path"]) & _folders(scored.path)
    apart = any(scored.where.get(field, value) != value for field, value in facts["where"].items())
    return bool(same and set(facts["split"].split("+")) & set(test.name.split("+")) and not apart)


def _folders(path: str) -> set[str]:
    names = (name.strip() for name in path.split(",") if name.strip())
    return {name.rstrip("/") if "://" in name else str(Path(name).expanduser().resolve()) for name in names}


def _open(source: Source, facts: Mapping[str, Any], scored: Scored) -> Split:
    """The very rows that the run was trained on; a dataset that has moved is the one of the test rows."""
    data = source.meta["config"]["data"]
    same = source.meta["fingerprint"] == scored.splits["test"].manifest.fingerprint
    path = scored.path if same else data["path"]
    if "://" in path and not same:
        raise DataError(f"{path} is not at hand")
    masks = source.meta["objective"] == "segmentation"
    return open_split(
        path,
        data["split"],
        where=facts["where"],
        targets=() if masks else facts["targets"],
        weights=tuple(data.get("weights", ())),
        cache_dir=scored.cache_dir,
        masks=masks,
    )


def _shared(split: Split, scored: Scored, patients: np.ndarray) -> list[str]:
    """Patients of both; nothing is read where the rows are training or selection rows of the evaluation itself."""
    for role in ("train", "select"):
        ours = scored.splits[role]
        same = ours.manifest.fingerprint == split.manifest.fingerprint and ours.name == split.name
        if same and np.isin(np.asarray(split.rows), np.asarray(ours.rows)).all():
            return []
    return [str(patient) for patient in np.intersect1d(identities(split, "patient_id"), patients)]


def sentences(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader has to know of the runs' own training rows: what could not be checked, and test images seen."""
    said = []
    for run, own in found.items():
        for one in (own, *own["pretraining"]):
            if one["unchecked"]:
                which = run if one is own else f"{one['run']}, which {run} stands on,"
                said.append(f"Whether {which} was trained on test patients could not be checked: {one['unchecked']}.")
            elif not one["labelled"] and one["test_patients"] is None:
                said.append(f"{one['run']} saw images of the test rows in its training, without labels.")
    return said


def spoken(own: Mapping[str, Any]) -> str:
    """The rows of a run's training in words."""
    if not own["path"]:
        return "images not known (converted weights)"
    chosen = "".join(f", {field} {value}" for field, value in own["where"].items())
    rows = "" if own["rows"] is None else f", {own['rows']:,} rows"
    return f"split {own['split']}{chosen} of {own['path']}{rows}"


def origin(source: Source, found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Facts for the top of a report: the rows a run was trained on, its head, and what its backbone came from."""
    meta, own = source.meta, found[source.run]
    facts = {"the run was trained on": spoken(own)}
    if own["labelled"]:
        facts["test patients among these"] = "not checked" if own["test_patients"] is None else "none"
    if "head" in meta:
        name = meta["head"]["name"]
        facts["head"] = f"{SPOKEN_HEADS.get(name, name)}, backbone {MODES[backbone_mode(meta)]}"
    before = meta.get("pretrained")
    if before:
        random = before["network"] == "random"
        said = "none: a random network" if random else f"{before['run']}, step {before['step']}, {before['network']}"
        facts["pretraining"] = said
        if own["pretraining"]:
            facts["pretrained on"] = spoken(own["pretraining"][0])
    return facts
