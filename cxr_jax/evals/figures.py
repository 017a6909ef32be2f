"""Figures of a report as inline SVG, and attention maps as small images.

In: arrays and numbers. Out: strings of HTML that need nothing from outside: no scripts, no addresses, no fonts.

Figures are drawn by matplotlib in placeholder colours that are then replaced by CSS variables, so that one drawing
serves a light and a dark page. Series differ by dash and marker as well as by colour.
"""

import base64
import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, MUTED, GRID = "#000101", "#000102", "#000103"
SERIES = ("#000110", "#000111", "#000112", "#000113", "#000114")
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "^", "v")
MARKER_SIGNS = "●■◆▲▼"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
MAX_CURVE_POINTS = 300
AMBER, FULL_VEIL = np.array([255.0, 150.0, 0.0]), 4.0

Curve = Mapping[str, np.ndarray]


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element with `description` as its alternative text."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]+)"', text).group(1)
    body = text[text.index(">") + 1 :].replace("xlink:href", "href")
    # Several figures share one page: their ids must not collide.
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{prefix}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    label = html.escape(description, quote=True)
    return f'<svg class="figure" role="img" aria-label="{label}" viewBox="{view_box}"><title>{label}</title>{body}'


def forest(
    class_names: Sequence[str],
    columns: Sequence[tuple[str, Sequence[tuple[float | None, Sequence[float] | None]]]],
    *,
    metric: str,
) -> str:
    """Points with intervals: one row per class, one marker per column.

    Args:
      columns: (name, one (value, [low, high]) per class); None where undefined.
    """
    with matplotlib.rc_context(STYLE):
        height = 0.7 + len(class_names) * (0.22 + 0.13 * len(columns))
        figure = Figure(figsize=(8.6, height), layout="constrained")
        axes = figure.add_subplot()
        lowest = 0.5
        for s, (name, values) in enumerate(columns):
            offset = (s - (len(columns) - 1) / 2) * 0.68 / len(columns)
            for row, (value, interval) in enumerate(values):
                if value is None:
                    if s == 0:
                        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
                        axes.annotate("undefined", (0.5, row), color=MUTED, **place)
                    continue
                y = row + offset
                style = {"color": SERIES[s % len(SERIES)], "label": name if _first_defined(values) == row else None}
                axes.plot([value], [y], MARKERS[s % len(MARKERS)], markersize=5, **style)
                if interval is not None:
                    axes.plot(interval, [y, y], linewidth=1.8, solid_capstyle="butt", color=style["color"])
                    lowest = min(lowest, interval[0])
                lowest = min(lowest, value)
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(class_names)), class_names)
        axes.set_ylim(len(class_names) - 0.4, -0.6)
        axes.set_xlim(max(0.0, lowest - 0.03), 1.005)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{metric} with bootstrap interval; the dashed line is chance")
        if len(columns) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(columns))
        spoken = "; ".join(
            f"{name}: " + ", ".join(f"{c} {_spoken(v)}" for c, (v, _) in zip(class_names, values, strict=True))
            for name, values in columns
        )
        return to_svg(figure, f"{metric} per finding with intervals. {spoken}")


def roc_and_precision_recall(finding: str, columns: Sequence[tuple[str, Curve | None]], prevalence: float) -> str:
    """ROC and precision-recall curves of one finding side by side, one line per column (None is left out)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.75), layout="constrained")
        roc, pr = figure.subplots(1, 2)
        roc.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        pr.axhline(prevalence, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for s, (name, curve) in reversed(list(enumerate(columns))):
            if curve is None:
                continue
            style = {"color": SERIES[s % len(SERIES)], "linestyle": DASHES[s % len(DASHES)], "label": name}
            style["linewidth"] = 1.9 if s == 0 else 1.4
            roc.plot(*_thinned(curve["fpr"], curve["tpr"]), **style)
            # Average precision sums precision times the recall gained to reach it: a staircase, not a line.
            recall, precision = _thinned(curve["recall"], curve["precision"])
            staircase = np.concatenate([[0], recall]), np.concatenate([precision[:1], precision])
            pr.step(*staircase, where="pre", **style)
        for axes, x, y in ((roc, "False positive rate", "True positive rate"), (pr, "Recall", "Precision")):
            axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        names = ", ".join(name for name, curve in columns if curve is not None)
        return to_svg(figure, f"ROC and precision-recall curves of {finding} for {names}; dashed: chance")


def lines(
    title: str,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
    log: bool = False,
) -> str:
    """Curves over training steps; gaps where values are missing. `bands` are intervals (steps, low, high) by series."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for s, (name, (steps, values)) in enumerate(series.items()):
            style = {"color": SERIES[s % len(SERIES)], "linestyle": DASHES[s % len(DASHES)]}
            style |= {"marker": "o", "markersize": 3} if len(steps) < 3 else {}
            axes.plot(steps, values, linewidth=1.4, label=name, **style)
            if bands and name in bands:
                axes.fill_between(*bands[name], color=style["color"], alpha=0.12, linewidth=0)
        if log:
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.set_xlabel("step")
        if len(series) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        ends = ", ".join(f"{name} from {v[0]:.4g} to {v[-1]:.4g}" for name, (_, v) in series.items())
        return to_svg(figure, f"{title} over training steps: {ends}")


def line_key(series: int) -> str:
    """A short piece of the line that stands for column `series` in the curves, for a legend in the text."""
    dash = DASHES[series % len(DASHES)]
    pattern = "" if dash == "-" else f' stroke-dasharray="{" ".join(str(1.6 * length) for length in dash[1])}"'
    colour = f"var({_VARIABLES[SERIES[series % len(SERIES)]]})"
    line = f'<line x1="0" y1="5" x2="30" y2="5" stroke="{colour}" stroke-width="2"{pattern}/>'
    return f'<svg class="key" width="30" height="10" aria-hidden="true">{line}</svg>'


def plain_image(image: UInt8[np.ndarray, "h w"], *, side: int = 320) -> str:
    """Data address of the grey image, longest side `side` px."""
    return _data_address(_resized(image, side))


def attention_overlay(
    image: UInt8[np.ndarray, "h w"], weights: Float[np.ndarray, "gh gw"], *, side: int = 320
) -> tuple[str, float]:
    """The image under an amber veil where patches get more than an even share, and the peak relative to an even share.

    The veil is full at the peak, or at `FULL_VEIL` times an even share if the peak is lower: a map that singles out
    nothing looks like nothing, instead of being stretched until it looks like something.
    """
    grey = _resized(image, side)
    share = weights / max(float(weights.mean()), 1e-30)
    peak = float(share.max())
    veil = np.clip((share - 1.0) / (max(peak, FULL_VEIL) - 1.0), 0.0, 1.0).astype(np.float32)
    veil = np.asarray(Image.fromarray(veil).resize(grey.size, Image.Resampling.BICUBIC))
    alpha = 0.75 * np.clip(veil, 0.0, 1.0)[..., None]
    colour = (1 - alpha) * np.asarray(grey, dtype=np.float32)[..., None] + alpha * AMBER
    return _data_address(Image.fromarray(colour.round().astype(np.uint8))), peak


OUTLINES = (np.array([0.0, 225.0, 255.0]), AMBER)  # the true mask, the predicted one
OUTLINE_PX = 2


def outlined(image: UInt8[np.ndarray, "h w"], masks: Sequence[Bool[np.ndarray, "_ _"]], *, side: int = 320) -> str:
    """Data address of the image with the outlines of at most two masks, the first cyan, the second amber."""
    grey = _resized(image, side)
    colour = np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
    for mask, ink in zip(masks, OUTLINES, strict=False):
        inside = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(grey.size)) > 127
        deep = inside
        for _ in range(OUTLINE_PX):
            padded = np.pad(deep, 1)
            deep = deep & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        colour[inside & ~deep] = ink
    return _data_address(Image.fromarray(colour))


def _resized(image, side: int) -> Image.Image:
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    return picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.LANCZOS)


def _data_address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_CURVE_POINTS` points, evenly spaced along the curve, ends kept."""
    if len(x) <= MAX_CURVE_POINTS:
        return x, y
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    kept = np.searchsorted(travelled, np.linspace(0, travelled[-1], MAX_CURVE_POINTS))
    kept = np.unique(np.clip(kept, 0, len(x) - 1))
    return x[kept], y[kept]


def _first_defined(values) -> int:
    return next((row for row, (value, _) in enumerate(values) if value is not None), -1)


def _spoken(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
