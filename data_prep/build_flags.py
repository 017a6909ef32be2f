"""The flags of `data_prep.build`: of every build, and of the chosen reader.

In: the command line. Out: a Namespace; a bad flag ends the command with exit code 2 and one line.
"""

import argparse
import dataclasses
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cxr_jax.data.records import VIEWS
from data_prep.curate import Rules
from data_prep.dedup import MAX_DISTANCE
from data_prep.quality import Limits
from data_prep.readers import READERS
from data_prep.storage import location

BEAM_RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of the chosen reader and of every build; exits with 2 and one line if they are bad."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--reader", choices=READERS)
    reader = first.parse_known_args(argv)[0].reader
    parser = Parser(
        prog="python -m data_prep.build",
        description="Builds a dataset of ArrayRecord shards. The reader's own flags are listed once it is named.",
        allow_abbrev=False,
    )
    parser.add_argument("--reader", choices=READERS, required=True, help="where the images come from")
    parser.add_argument("--output", type=location, required=True, help="folder to make, on disk or in a bucket")
    parser.add_argument("--name", type=_name, help="dataset name (default: from the input)")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished dataset at --output")
    parser.add_argument("--restart", action="store_true", help="drop what an interrupted build left at --output")
    parser.add_argument("--canvas", type=at_least(16), default=512, help="largest stored side in pixels")
    parser.add_argument("--quality", type=_quality, default=92, help="JPEG quality of images encoded anew")
    parser.add_argument("--min_side", type=at_least(1), default=16, help="refuse images with a shorter side below")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="what a broken image does")
    parser.add_argument("--split_by", choices=("patient",), default="patient", help="what never crosses splits")
    parser.add_argument(
        "--split_fractions", type=_fractions, default=(0.8, 0.1, 0.1), help="train,val,test; their sum is 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the order and the phantom")
    parser.add_argument("--shard_mb", type=at_least(1), default=256, help="size at which a shard is closed, MiB")
    parser.add_argument("--workers", type=at_least(0), default=num_cores(), help="processes (0 or 1: in this one)")
    _add_curation_flags(parser)
    parser.add_argument("--beam_runner", choices=BEAM_RUNNERS, help="run on Apache Beam instead of local processes")
    parser.add_argument("--beam_options", default="", help="Beam's own flags, as '--project=P --region=R'")
    if reader:
        importlib.import_module(f"data_prep.readers.{reader}").add_flags(parser)
    return parser.parse_args(argv)


def _add_curation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("curation")
    group.add_argument("--dedup", choices=("none", "exact", "near"), default="near", help="which duplicates go")
    group.add_argument(
        "--dedup_distance", type=distance, default=14, help=f"bits of 256 in which hashes may differ, 0-{MAX_DISTANCE}"
    )
    group.add_argument(
        "--dedup_correlation", type=correlation, default=0.98, help="least correlation of near duplicates' thumbnails"
    )
    group.add_argument(
        "--linked_patients",
        choices=("drop", "report"),
        default="drop",
        help="what becomes of a patient whose picture is found under another patient id in another split",
    )
    group.add_argument(
        "--on_crossing", choices=("stop", "drop"), default="stop", help="what a patient in two published splits does"
    )
    group.add_argument("--views", type=_views, default=(), help=f"keep these views only, of {','.join(VIEWS)}")
    group.add_argument("--quality_filter", choices=("on", "off"), default="on", help="whether the limits below hold")
    for field in dataclasses.fields(Limits):
        group.add_argument(f"--{field.name}", type=_limit, default=field.default, help="see README, Curation")


def rules(args: argparse.Namespace) -> Rules:
    """What the curation flags say."""
    limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
    return Rules(
        limits=limits if args.quality_filter == "on" else None,
        views=args.views,
        dedup=args.dedup,
        dedup_distance=args.dedup_distance,
        dedup_correlation=args.dedup_correlation,
        linked_patients=args.linked_patients,
    )


def at_least(low: int) -> Callable[[str], int]:
    """A type of flag: a whole number of at least `low`."""

    def integer(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {low}")
        return int(text)

    return integer


def distance(text: str) -> int:
    """A type of flag: a Hamming distance that the hash buckets can find."""
    value = at_least(0)(text)
    if value > MAX_DISTANCE:
        raise argparse.ArgumentTypeError(f"{text!r} must be at most {MAX_DISTANCE}")
    return value


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quality(text: str) -> int:
    value = at_least(1)(text)
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


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0")
    return value


def correlation(text: str) -> float:
    """A type of flag: a number from 0 to 1."""
    value = _limit(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def _views(text: str) -> tuple[str, ...]:
    views = tuple(view.strip().upper() for view in text.split(",") if view.strip())
    if not set(views) <= set(VIEWS):
        raise argparse.ArgumentTypeError(f"{text!r} must be some of {','.join(VIEWS)}")
    return views
