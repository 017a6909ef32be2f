"""Runs compared: a table of overrides against metrics, all curves in one figure, the difference of two runs.

    python -m launch.collect --runs=DIR [--metrics=loss,view/auroc_macro] [--diff=RUN,RUN] [--output=DIR]

In: folders with run directories below them, whole or half-written. Out: the table on the terminal; in OUTPUT
collected.csv, collected.parquet, collected.html and collected.png.

Exit codes: 0 written, 2 wrong flags or nothing found.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.collecting import differences, figure, page, table
from launch.collecting.runs import Found, find
from launch.sweeping.flags import Parser


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, Parser]:
    """The flags, and the parser that complains about what shows itself later."""
    parser = Parser(prog="python -m launch.collect", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", required=True, metavar="DIR[,DIR]", help="folders to search for run directories")
    add("--metrics", default="", metavar="NAME[,NAME]", help=f"names or patterns (default: {','.join(table.DEFAULT)})")
    add("--diff", default="", metavar="RUN,RUN", help="two runs whose configs and environments to compare")
    add("--output", metavar="DIR", help="where to write (default: the first folder of --runs)")
    flags = parser.parse_args(argv)
    flags.roots = split_folders(flags.runs)
    if not flags.roots:
        parser.error("--runs is empty; name a folder that holds run directories")
    for root in flags.roots:
        if not root.is_dir():
            parser.error(f"--runs={root}: no such folder")
    flags.wanted = [name for name in flags.metrics.split(",") if name]
    return flags, parser


def split_folders(text: str) -> list[Path]:
    """The folders of `A,B`; a name that holds commas, as those of a sweep's runs do, is one where it exists."""
    folders, words = [], [word for word in text.split(",") if word]
    while words:
        lengths = range(len(words), 0, -1)
        length = next((n for n in lengths if Path(",".join(words[:n])).is_dir()), 1)
        folders.append(Path(",".join(words[:length])))
        del words[:length]
    return folders


def pick(runs: Sequence[Found], names: str) -> tuple[Found, Found]:
    """The two runs that --diff names, by whole name or folder, or by an unambiguous part. Raises ValueError."""
    # A run's name may hold commas itself, so every comma is tried.
    for at in (i for i, character in enumerate(names) if character == ","):
        first, second = _named(runs, names[:at]), _named(runs, names[at + 1 :])
        if first and second:
            return first, second
    legal = "; ".join(run.name for run in runs)
    raise ValueError(f"--diff={names}: names no two of the runs; legal are two of: {legal}")


def _named(runs: Sequence[Found], text: str) -> Found | None:
    whole = [run for run in runs if text in (run.name, str(run.path))]
    part = [run for run in runs if text and text in run.name]
    return whole[0] if whole else part[0] if len(part) == 1 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Find, tabulate, draw, write; returns the exit code."""
    flags, parser = parse_flags(sys.argv[1:] if argv is None else argv)
    runs, notes = find(flags.roots)
    if not runs:
        parser.error(f"--runs={flags.runs}: no run directories (run.json or metrics.jsonl) below")
    try:
        metrics = table.choose(runs, flags.wanted)
        compared = pick(runs, flags.diff) if flags.diff else None
    except ValueError as error:
        parser.error(str(error))
    print(table.as_text(runs, metrics))
    for text in [*(f"{run.name}: {problem}" for run in runs for problem in run.problems), *notes]:
        print(f"warning: {text}", file=sys.stderr)
    if compared:
        print(differences.as_text(*compared))

    output = Path(flags.output) if flags.output else flags.roots[0]
    output.mkdir(parents=True, exist_ok=True)
    entries = table.rows(runs, metrics)
    table.write_csv(output / "collected.csv", entries)
    written = ["collected.csv"]
    if table.write_parquet(output / "collected.parquet", entries):
        written.append("collected.parquet")
    drawn = figure.draw(runs, metrics)
    if drawn:
        drawn.savefig(output / "collected.png", dpi=150)
        written.append("collected.png")
    text = page.page(
        ", ".join(root.resolve().name for root in flags.roots),
        runs,
        metrics,
        figure.to_svg(drawn, runs, metrics) if drawn else None,
        notes=notes,
        compared=compared,
        sections=differences.differences(*compared) if compared else (),
    )
    (output / "collected.html").write_text(text)
    print(f"written to {output}: {', '.join([*written, 'collected.html'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
