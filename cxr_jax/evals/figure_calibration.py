"""Reliability diagrams as inline SVG.

In: points of `calibration.reliability` by column. Out: a string of HTML, in the style of `figures`.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from cxr_jax.evals.figures import DASHES, INK, MARKERS, MUTED, SERIES, STYLE, to_svg


def calibration_plot(finding: str, columns: Sequence[tuple[str, Mapping[str, np.ndarray] | None]]) -> str:
    """Observed against predicted, one line per column (None is left out), the first with intervals and its rows
    below."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 3.9), layout="constrained")
        curve, counts = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
        curve.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for s, (_, points) in reversed(list(enumerate(columns))):
            if points is None:
                continue
            style = {"color": SERIES[s % len(SERIES)], "linestyle": DASHES[s % len(DASHES)]}
            style |= {"marker": MARKERS[s % len(MARKERS)], "markersize": 5 if s == 0 else 3.5}
            curve.plot(points["predicted"], points["observed"], linewidth=1.7 if s == 0 else 1.0, **style)
            if s == 0:
                curve.vlines(points["predicted"], points["low"], points["high"], color=style["color"], linewidth=1.4)
        first = columns[0][1]
        if first is not None:
            counts.bar(first["predicted"], first["rows"], width=0.06, color=SERIES[0])
            for x, rows in zip(first["predicted"], first["rows"], strict=True):
                counts.annotate(f"{rows:g}", (x, rows), ha="center", va="bottom", fontsize=7, color=INK)
            counts.set_ylim(0, 1.5 * first["rows"].max())
        counts.grid(visible=False)
        counts.set_yticks([])
        counts.set(xlabel="Predicted probability", ylabel="images", xlim=(-0.04, 1.04))
        curve.set(ylabel="Share with the finding", ylim=(-0.04, 1.04))
        curve.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        curve.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        names = ", ".join(name for name, points in columns if points is not None)
        return to_svg(figure, f"Reliability of the probabilities of {finding} for {names}; dashed: what is predicted")
