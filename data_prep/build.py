"""Builds a dataset: a reader's images and labels -> ArrayRecord shards, TFDS metadata and manifest.json.

    python -m data_prep.build --reader=folder --input=DIR --output=DIR
    python -m data_prep.build --reader=phantom --num_images=2000 --output=DIR
    python -m data_prep.build --reader=folder --help        (all flags of that reader)

Splits are by patient, the order is shuffled by a seeded hash, and the same input and flags give the same bytes on
every run with any number of workers. Exit codes: 0 done, 2 bad flags, 3 bad data, 130 stopped by Ctrl-C,
143 by SIGTERM; whatever goes wrong, nothing is left that opens as a dataset.
"""

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from cxr_jax.data.records import SPLITS, DataError, Manifest
from data_prep.counts import Counter
from data_prep.dataset_writer import DatasetWriter
from data_prep.images import ImageSettings
from data_prep.parallel import Made, make_all, quiet_libraries
from data_prep.readers import READERS, FlagError, Sample, Source
from data_prep.splits import draw_split, stable_hash

TOOL_VERSION = "1"
PROGRESS_LINES = 10


class _Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of the chosen reader and of every build; exits with 2 and one line if they are bad."""
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--reader", choices=READERS)
    reader = first.parse_known_args(argv)[0].reader
    parser = _Parser(
        prog="python -m data_prep.build",
        description="Builds a dataset of ArrayRecord shards. The reader's own flags are listed once it is named.",
        allow_abbrev=False,
    )
    parser.add_argument("--reader", choices=READERS, required=True, help="where the images come from")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--name", type=_name, help="dataset name (default: from the input)")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished dataset at --output")
    parser.add_argument("--canvas", type=_at_least(16), default=512, help="largest stored side in pixels")
    parser.add_argument("--quality", type=_quality, default=92, help="JPEG quality of images encoded anew")
    parser.add_argument("--min_side", type=_at_least(1), default=16, help="refuse images with a shorter side below")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="what a broken image does")
    parser.add_argument("--split_by", choices=("patient",), default="patient", help="what never crosses splits")
    parser.add_argument(
        "--split_fractions", type=_fractions, default=(0.8, 0.1, 0.1), help="train,val,test; their sum is 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the order and the phantom")
    parser.add_argument("--shard_mb", type=_at_least(1), default=256, help="size at which a shard is closed, MiB")
    parser.add_argument("--workers", type=_at_least(0), default=_num_cores(), help="processes (0 or 1: in this one)")
    if reader:
        importlib.import_module(f"data_prep.readers.{reader}").add_flags(parser)
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> Manifest:
    """Builds the dataset the flags describe and returns its manifest; raises DataError for data it cannot use."""
    reader = importlib.import_module(f"data_prep.readers.{args.reader}")
    images = ImageSettings(canvas=args.canvas, quality=args.quality, min_side=args.min_side)
    source: Source = reader.open_source(args, images)
    for note in source.notes:
        print(note)
    order = _ordered(source.samples, args.seed, args.split_fractions)
    name = args.name or source.name
    counter = Counter(source.vocabulary)
    total = len(source.samples)
    # One run over all splits keeps the workers busy across their borders.
    samples = (source.samples[int(i)] for split in SPLITS for i in order[split])
    splits = (split for split in SPLITS for _ in order[split])
    with (
        DatasetWriter(args.output, name, args.shard_mb * 2**20, args.overwrite) as writer,
        contextlib.closing(make_all(samples, source.make_record, args.workers)) as made,
    ):
        for split, one in zip(splits, _with_progress(made, total), strict=True):
            if one.error and args.on_error == "stop":
                raise DataError(f"{one.error}; repair or remove it, or give --on_error=skip")
            counter.add(one, split)
            if not one.error:
                writer.add(split, one.payload)
        if not counter.images:
            raise DataError(f"no image could be used; the first of {total}: {counter.skipped[0]['reason']}")
        manifest = Manifest(
            name=name,
            tool_version=TOOL_VERSION,
            vocabulary=source.vocabulary,
            canvas=counter.canvas,
            counts=counter.counts(),
            shards={},
            skipped=tuple(counter.skipped),
            settings={
                "reader": args.reader,
                "canvas": args.canvas,
                "quality": args.quality,
                "min_side": args.min_side,
                "split_by": args.split_by,
                "split_fractions": list(args.split_fractions),
                "seed": args.seed,
                **source.settings,
            },
        )
        return writer.finish(manifest)


def _ordered(samples: Sequence[Sample], seed: int, fractions: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Indices into `samples` per split, each in the order of the keys' hashes."""
    splits = np.empty(len(samples), np.uint8)
    hashes = np.empty(len(samples), np.uint64)
    for index, sample in enumerate(samples):
        split = sample.split or draw_split(sample.patient_id, seed, fractions)
        splits[index] = SPLITS.index(split)
        hashes[index] = stable_hash(sample.key, seed)
    order = np.argsort(hashes, kind="stable")
    return {split: order[splits[order] == code] for code, split in enumerate(SPLITS)}


def _with_progress(made: Iterable[Made], total: int) -> Iterator[Made]:
    """A progress bar on a terminal, else one line every tenth of the way."""
    if sys.stderr.isatty():
        yield from tqdm(made, total=total, unit="image", smoothing=0.05)
        return
    start, printed = time.monotonic(), 0
    for done, one in enumerate(made, 1):
        yield one
        if done * PROGRESS_LINES // total > printed:
            printed = done * PROGRESS_LINES // total
            rate = done / max(time.monotonic() - start, 1e-9)
            print(f"{done}/{total} images, {rate:.0f} a second", file=sys.stderr, flush=True)


def _at_least(low: int):
    def integer(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {low}")
        return int(text)

    return integer


def _quality(text: str) -> int:
    value = _at_least(1)(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be at most 100")
    return value


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be lower case letters, digits and _, a letter first")
    return text


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r} must be three numbers from 0 to 1 with the sum 1, as 0.8,0.1,0.1")
    return values


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stop_on_sigterm(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_flags(argv)
    quiet_libraries()
    signal.signal(signal.SIGTERM, _stop_on_sigterm)
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
        print("error: a worker process died, perhaps for want of memory; try fewer --workers", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was left behind", file=sys.stderr)
        return 130
    counts, secs = manifest.counts, time.monotonic() - start
    splits = ", ".join(f"{split} {number}" for split, number in counts["split"].items())
    print(f"{args.output}: {counts['images']} images of {counts['patients']} patients ({splits}) in {secs:.1f} s")
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped)}; the first: {manifest.skipped[0]['reason']}")
    print(f"fingerprint {manifest.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
