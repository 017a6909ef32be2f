"""Builds a dataset: a reader's images and labels -> ArrayRecord shards, TFDS metadata and manifest.json.

    python -m data_prep.build --reader=folder --input=DIR --output=DIR
    python -m data_prep.build --reader=folder --input=s3://BUCKET/DIR --output=gs://BUCKET/DIR
    python -m data_prep.build --reader=phantom --num_images=2000 --output=DIR
    python -m data_prep.build --reader=datasets --inputs=A,B --output=DIR
    python -m data_prep.build --reader=folder --help        (all flags of that reader)

list samples -> make parts -> curate -> write shards -> show the folder. Splits are by patient, the order is shuffled by
a seeded hash, and the same input and flags give the same bytes on every run, with any number of workers, on any engine,
after any number of kills: the same command continues what was stopped. Exit codes: 0 done, 2 bad flags, 3 bad data, 130
stopped by Ctrl-C, 143 by SIGTERM; whatever goes wrong, nothing is left that opens as a dataset.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NoReturn

import numpy as np

from cxr_jax.data.records import MANIFEST_NAME, SPLITS, DataError, Manifest, read_manifest
from data_prep import counts as counts_of
from data_prep.atomic import write_bytes
from data_prep.build_flags import parse_flags, rules
from data_prep.building_folder import BuildingFolder, check_apart, check_output, check_reachable
from data_prep.chunks import Thumbs
from data_prep.columns import Columns
from data_prep.curate import DROPPED_NAME, Curated, curate
from data_prep.dataset_writer import SplitShards, write_metadata
from data_prep.images import ImageSettings
from data_prep.listing import Listing, list_samples
from data_prep.parallel import quiet_libraries, run_ordered
from data_prep.phases import Engine, PartMaker, write_shards
from data_prep.readers import FlagError, Source
from data_prep.scratch import local_copy
from data_prep.shards import Shard, Written, plan_shards
from data_prep.storage import images_at_once

TOOL_VERSION = "3"


def build(args: argparse.Namespace) -> Manifest:
    """Builds the dataset the flags describe and returns its manifest; raises DataError for data it cannot use."""
    reader = importlib.import_module(f"data_prep.readers.{args.reader}")
    # Before an hour of listing, and before an input could be replaced by what is made of it.
    check_reachable(args.output)
    check_output(args.output, args.overwrite)
    check_apart(args.output, [getattr(args, "input", None), *getattr(args, "inputs", ())])
    images = ImageSettings(canvas=args.canvas, quality=args.quality, min_side=args.min_side)
    source: Source = reader.open_source(args, images)
    for note in source.notes:
        print(note)
    return build_source(source, args)


def build_source(source: Source, args: argparse.Namespace) -> Manifest:
    """Builds the dataset of a listed source with the flags of every build."""
    print(f"{len(source.samples)} images listed")
    listing = list_samples(source.samples, args.seed, args.split_fractions, args.on_crossing)
    if listing.crossing:
        print(f"{len(listing.crossing)} images are left out: their patient is in another published split too")
    settings = _settings(source, args)
    plan = {"tool_version": TOOL_VERSION, **settings, "samples": len(listing), "listing": listing.digest}
    name = args.name or source.name
    with BuildingFolder(args.output, args.overwrite) as folder:
        folder.claim(json.loads(json.dumps(plan)), args.restart)
        engine = _engine(args, folder)
        threads = images_at_once(getattr(args, "input", None))
        maker = PartMaker(listing, source.make_record, len(source.vocabulary), folder, engine, threads)
        columns = maker.make_all(args.on_error)
        curated = curate(listing, columns, rules(args), Thumbs(folder.parts, listing.chunk_size))
        for note in curated.notes:
            print(note)
        if not curated.kept.any():
            if not columns.made.any():
                folder.drop_work()
            raise DataError(f"no image could be used; the first of {len(listing)}: {_first_reason(columns, curated)}")
        shards = plan_shards(name, listing, columns, curated.kept, args.shard_mb * 2**20)
        written = write_shards(shards, maker, folder, engine)
        kept = np.flatnonzero(curated.kept)
        counts = counts_of.count(columns, kept, listing.split, listing.patient, source.vocabulary)
        manifest = Manifest(
            name=name,
            tool_version=TOOL_VERSION,
            vocabulary=source.vocabulary,
            canvas=counts_of.canvas(columns, kept),
            counts=counts | {"curation": _write_dropped(folder, listing, curated)},
            shards={shard.name: one.sha256 for shard, one in zip(shards, written, strict=True)},
            skipped=tuple(
                {"file": listing.key(row), "reason": reason} for row, reason in sorted(columns.errors.items())
            ),
            settings=settings | _curation_settings(args),
        )
        write_metadata(folder.dataset, manifest, _splits(shards, written))
        folder.show()
    with local_copy(args.output / MANIFEST_NAME) as file:
        return read_manifest(file.parent)


def _settings(source: Source, args: argparse.Namespace) -> dict[str, Any]:
    """What shapes the records; a reader's own settings may replace those of every build."""
    return {
        "reader": args.reader,
        "canvas": args.canvas,
        "quality": args.quality,
        "min_side": args.min_side,
        "split_by": args.split_by,
        "split_fractions": list(args.split_fractions),
        "seed": args.seed,
        **source.settings,
    }


def _curation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides which records stay, for the manifest."""
    flags = dataclasses.asdict(rules(args))
    return {"curation": flags | {"views": list(args.views), "on_crossing": args.on_crossing}}


def _engine(args: argparse.Namespace, folder: BuildingFolder) -> Engine:
    if args.beam_runner is None:
        return functools.partial(run_ordered, workers=args.workers)
    from data_prep.beam_engine import BeamEngine  # Beam is an extra

    return BeamEngine(args.beam_runner, args.beam_options, args.workers, folder.tasks)


def _first_reason(columns: Columns, curated: Curated) -> str:
    reasons = {drop.row: drop.reason for drop in curated.drops} | columns.errors
    return reasons[min(reasons)]


def _write_dropped(folder: BuildingFolder, listing: Listing, curated: Curated) -> dict[str, Any]:
    """Writes the list of what curation left out, where there is any; returns the manifest's summary of it."""
    lines = [
        {"file": listing.samples[index].key, "reason": reason} for index, reason in sorted(listing.crossing.items())
    ]
    for drop in curated.drops:
        copy = {"copy_of": drop.copy_of} if drop.copy_of else {}
        lines.append({"file": listing.key(drop.row), "reason": drop.reason, **copy})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if lines:
        write_bytes(folder.dataset / DROPPED_NAME, text)
    return {
        **curated.summary,
        "crossing_patients_images": len(listing.crossing),
        "dropped_list_sha256": hashlib.sha256(text).hexdigest() if lines else "",
    }


def _splits(shards: Sequence[Shard], written: Sequence[Written]) -> dict[str, SplitShards]:
    splits: dict[str, SplitShards] = {}
    for shard, one in zip(shards, written, strict=True):
        split = splits.setdefault(shard.split, SplitShards())
        split.names.append(shard.name)
        split.lengths.append(one.records)
        split.num_bytes += one.num_bytes
    return {name: splits[name] for name in SPLITS if name in splits}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def _stop_on_sigterm(signum: int, frame: object) -> NoReturn:
    raise _Terminated


def _what_is_left(args: argparse.Namespace) -> str:
    """What to say of the work of a build that stopped, "" if there is none."""
    with contextlib.suppress(DataError, OSError):
        if BuildingFolder(args.output, overwrite=True).holds_work():
            return "; what is finished is kept, the same command continues"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_flags(argv)
    quiet_libraries()
    before = signal.signal(signal.SIGTERM, _stop_on_sigterm)
    start = time.monotonic()
    try:
        manifest = build(args)
    except FlagError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except BrokenProcessPool:
        message = "a worker process died, perhaps for want of memory; try fewer --workers"
        print(f"error: {message}{_what_is_left(args)}", file=sys.stderr)
        return 1
    except OSError as error:
        message = f"{error.filename or args.output}: {error.strerror or error}"
        print(f"error: {message}{_what_is_left(args)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nstopped{_what_is_left(args) or '; nothing was left behind'}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _report(manifest, args, time.monotonic() - start)
    return 0


def _report(manifest: Manifest, args: argparse.Namespace, secs: float) -> None:
    counts = manifest.counts
    splits = ", ".join(f"{split} {number}" for split, number in counts["split"].items())
    print(f"{args.output}: {counts['images']} images of {counts['patients']} patients ({splits}) in {secs:.1f} s")
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped)}; the first: {manifest.skipped[0]['reason']}")
    if counts["curation"]["dropped_list_sha256"]:
        print(f"what was left out, and why: {args.output / DROPPED_NAME}")
    print(f"fingerprint {manifest.fingerprint}")


if __name__ == "__main__":
    sys.exit(main())
