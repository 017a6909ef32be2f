"""All curves of many runs in one figure, and what came of them against what was varied.

In: runs, metrics, the varied keys. Out: a matplotlib figure; PNG and SVG.

The first varied key is the colour, the second the dash of a line. Curves of more than `MAX_POINTS` points are means of
equally many neighbours. Values are put on a logarithmic axis where they span more than `LOG_SPAN`.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from launch.collecting.runs import Found
from launch.collecting.table import summarise, value_of, varied

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e8ee",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "collect",
}
DASHES: Any = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "^", "v")
# Okabe and Ito's colours, told apart by most eyes; for runs that no number orders.
DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
NEUTRAL = "#5b6675"
UNKNOWN, NOT_SET = NOT_SAID = ("unknown", "not set")
MAX_POINTS, LOG_SPAN, MAX_PANELS, MAX_KEYS = 300, 30.0, 12, 14
PANEL_INCHES = (4.4, 3.1)


class Looks:
    """How each of `runs`, all of which are drawn, looks: colour by the first varied key, dash and marker by the second.

    A run that does not say what it has there is grey, and stands behind the others.
    """

    def __init__(self, runs: Sequence[Found]):
        self.keys = varied(runs)[:2]
        self.values = [_distinct(runs, key) for key in self.keys]
        self.names = [run.name for run in runs]
        if self.keys:
            known = [value for value in self.values[0] if value not in NOT_SAID]
            count = len(known)
            ordered = all(_is_number(value) for value in known)
            scale = matplotlib.colormaps["plasma"](np.linspace(0.02, 0.82, max(count, 2)))
            self.colours = (
                [matplotlib.colors.to_hex(c) for c in scale[:count]] if ordered or count > len(DISTINCT) else DISTINCT
            )
            self.colours = [*self.colours[:count], *[NEUTRAL] * (len(self.values[0]) - count)]
        else:
            self.colours = DISTINCT

    def place(self, run: Found) -> tuple[int, int]:
        """Which of the first and of the second key's values a run has."""
        if not self.keys:
            return self.names.index(run.name), self.names.index(run.name) // len(DISTINCT)
        at = [values.index(_said(run, key)) for key, values in zip(self.keys, self.values, strict=True)]
        return at[0], at[1] if len(at) > 1 else 0

    def style(self, run: Found) -> dict[str, Any]:
        """Arguments of `plot`."""
        first, second = self.place(run)
        return {"color": self.colours[first % len(self.colours)], "linestyle": DASHES[second % len(DASHES)]}

    def legend(self) -> list[Line2D]:
        """A line per value of a key (or per run), with its name."""
        if not self.keys:
            return [
                Line2D([], [], color=DISTINCT[i % len(DISTINCT)], linestyle=DASHES[i // len(DISTINCT) % 5], label=name)
                for i, name in enumerate(self.names[:MAX_KEYS])
            ]
        lines = [
            Line2D([], [], color=self.colours[i % len(self.colours)], linewidth=3, label=_label(self.keys[0], value))
            for i, value in enumerate(self.values[0][:MAX_KEYS])
        ]
        for i, value in enumerate(self.values[1][:MAX_KEYS] if len(self.keys) > 1 else ()):
            style: dict[str, Any] = {
                "linestyle": DASHES[i % len(DASHES)],
                "marker": MARKERS[i % len(MARKERS)],
                "markersize": 4,
            }
            lines.append(Line2D([], [], color=NEUTRAL, label=_label(self.keys[1], value), **style))
        return lines


def draw(runs: Sequence[Found], metrics: Sequence[str]) -> Figure | None:
    """The figure; None where no run has anything to draw."""
    drawn = [run for run in runs if any(summarise(run, name) for name in metrics)]
    looks = Looks(drawn)
    panels = [("curve", name) for name in metrics if any(_points(run, name) > 1 for run in drawn)]
    panels += [("end", name) for name in metrics]
    panels = [panel for panel in panels if any(summarise(run, panel[1]) for run in drawn)][:MAX_PANELS]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1] + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for number, (axes, (kind, name)) in enumerate(zip(grid, panels, strict=False)):
            (_curves if kind == "curve" else _ends)(axes, drawn, name, looks, number)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles = looks.legend()
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=min(len(handles), 2 * columns),
            fontsize=8,
            handlelength=3.5,
        )
    return figure


def _curves(axes: Axes, runs: Sequence[Found], name: str, looks: Looks, panel: int) -> None:
    shown = []
    for number, run in enumerate(runs):
        if not _points(run, name):
            continue
        curve = run.curves[name]
        steps, values = _thinned(curve.steps, curve.values)
        style = looks.style(run) | ({"marker": "o", "markersize": 3} if len(steps) < 3 else {})
        axes.plot(steps, values, linewidth=1.3, gid=f"p{panel}run-{number}", **style)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.steps, curve.low, curve.high, color=style["color"], alpha=0.08, linewidth=0)
        shown.append(values)
    _log_if_wide(axes, np.concatenate(shown))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set(title=name, xlabel="step")


def _ends(axes: Axes, runs: Sequence[Found], name: str, looks: Looks, panel: int) -> None:
    """The last value (or score) with its interval: over the first varied key, or a row per run."""
    found = [(number, run, summary) for number, run in enumerate(runs) if (summary := summarise(run, name))]
    groups = len(looks.values[1]) if len(looks.keys) > 1 else 1
    lines: dict[int, list[tuple[float, float]]] = {}
    for number, run, summary in found:
        first, second = looks.place(run)
        style = looks.style(run)
        x = first + (second - (groups - 1) / 2) * 0.3 / max(groups, 1) if looks.keys else float(number)
        bars = None
        if summary.low is not None and summary.high is not None and summary.own_interval:
            bars = [[max(summary.last - summary.low, 0)], [max(summary.high - summary.last, 0)]]
        marker = MARKERS[(second if looks.keys else 0) % len(MARKERS)]
        style = {"color": style["color"], "marker": marker, "markersize": 5, "elinewidth": 1.6, "linestyle": "none"}
        axes.errorbar([x], [summary.last], yerr=bars, gid=f"p{panel}run-{number}", **style)
        if looks.keys and looks.values[0][first] not in NOT_SAID:
            lines.setdefault(second, []).append((x, summary.last))
    for second, points in lines.items():
        axes.plot(
            *zip(*sorted(points), strict=True), color=NEUTRAL, linewidth=0.9, linestyle=DASHES[second % 5], zorder=1
        )
    values = [s.last for *_, s in found]
    _log_if_wide(axes, np.array(values))
    labels = [_text(value) for value in looks.values[0]] if looks.keys else [str(number + 1) for number, *_ in found]
    axes.set_xticks(range(len(labels)) if looks.keys else [number for number, *_ in found], labels)
    if max(map(len, labels), default=0) > 8:
        axes.tick_params(axis="x", labelrotation=30)
    axes.grid(axis="x", visible=False)
    intervals = any(summary.own_interval and summary.low is not None for *_, summary in found)
    ending = "with its interval" if intervals else "last value"
    axes.set(title=f"{name}, {ending}", xlabel=looks.keys[0] if looks.keys else "run")


def _points(run: Found, name: str) -> int:
    return len(run.curves[name].values) if name in run.curves else 0


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def _log_if_wide(axes: Axes, values: np.ndarray) -> None:
    if len(values) and values.min() > 0 and values.max() / values.min() > LOG_SPAN:
        axes.set_yscale("log")


def _distinct(runs: Sequence[Found], key: str) -> list[Any]:
    """The values of a key, numbers in order; what stands for none comes last."""
    values: list[Any] = []
    for run in runs:
        if _said(run, key) not in values:
            values.append(_said(run, key))
    known = [value for value in values if value not in NOT_SAID]
    return (sorted(known) if all(map(_is_number, known)) else known) + [v for v in NOT_SAID if v in values]


def _said(run: Found, key: str) -> Any:
    """What a run has for a key; of one without a readable run.json nothing is known, and a config may lack a key."""
    if not run.config or (key == "config" and not run.file):
        return UNKNOWN
    return value_of(run, key) if key in ("config", *run.config) else NOT_SET


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(key: str, value: Any) -> str:
    return f"{key.split('.')[-1]} {_text(value)}"


def _text(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value).removeprefix("configs/")


def to_svg(figure: Figure, runs: Sequence[Found], metrics: Sequence[str]) -> str:
    """The figure as an `<svg>` element that names a run under the pointer."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    names = [run.name for run in runs if any(summarise(run, name) for name in metrics)]

    def titled(match: re.Match) -> str:
        return f"{match[0]}<title>{html.escape(names[int(match[1])])}</title>"

    return re.sub(r'<g id="p\d+run-(\d+)">', titled, text)
