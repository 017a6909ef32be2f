"""The label-efficiency curve as a figure of the report, and as its table.

In: the rows of `label_efficiency.summarise` by column. Out: HTML.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from cxr_jax.evals import figures

Rows = Sequence[Mapping[str, Any]]


def learning_curve(curves: Mapping[str, Rows]) -> str:
    """AUROC over the number of labelled training patients (logarithmic): mean and spread of the draws, by column.

    The dashed line is chance. Amounts without a defined score are left out.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        axes = figure.add_subplot()
        places: dict[float, str] = {}
        for s, (name, rows) in enumerate(curves.items()):
            known = [row for row in rows if row["mean"] is not None]
            if not known:
                continue
            x = [float(np.mean(row["train_patients"])) for row in known]
            places |= {at: f"{at:g}\n{row['amount']}" for at, row in zip(x, known, strict=True)}
            mean = np.array([row["mean"] for row in known])
            off = np.array([row["spread"] or 0.0 for row in known])
            order = np.argsort(x)
            x, mean, off = np.asarray(x)[order], mean[order], off[order]
            style = {"color": figures.SERIES[s % len(figures.SERIES)]}
            looks = {"linestyle": figures.DASHES[s % len(figures.DASHES)], "linewidth": 1.9 if s == 0 else 1.4}
            axes.plot(
                x, mean, marker=figures.MARKERS[s % len(figures.MARKERS)], markersize=4, label=name, **looks, **style
            )
            axes.fill_between(x, mean - off, mean + off, alpha=0.13, linewidth=0, **style)
        axes.axhline(0.5, color=figures.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        # Amounts that lie close together would write over each other.
        shown: list[float] = []
        for at in sorted(places):
            if not shown or at > 1.35 * shown[-1]:
                shown.append(at)
        axes.set_xticks(shown, [places[at] for at in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="labelled training patients", ylabel="AUROC")
        if len(curves) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(curves), fontsize=8)
        spoken = "; ".join(
            f"{name}: " + ", ".join(f"{row['amount']} {_number(row['mean'])}" for row in rows)
            for name, rows in curves.items()
        )
        return figures.to_svg(figure, f"AUROC over labelled training patients, mean of the draws. {spoken}")


def label_efficiency_section(curves: Mapping[str, Rows], selection: str) -> str:
    """Figure, table, and what the numbers are."""
    names = list(curves)
    rows = []
    for i, row in enumerate(curves[names[0]]):
        cells = "".join(_table_cell(curves[name][i]) for name in names)
        rows.append(
            f'<tr><th scope="row">{row["amount"]}</th><td>{_count(row["train_patients"])}</td>'
            f"<td>{_count(row['train_images'])}</td><td>{_count(row['select_images'])}</td>{cells}</tr>"
        )
    heads = ["Labels", "Training patients", "Training images", "Selection images", *map(html.escape, names)]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    seeds = len(curves[names[0]][0]["seeds"])
    validation = {
        "in_proportion": "The selection split is cut in the same proportion",
        "all": "The whole selection split chooses, so a small amount costs more labels than it says",
    }[selection]
    caption = (
        f"Mean AUROC ± standard deviation over {seeds} draws of training patients; in brackets the bootstrap interval "
        f"of the mean over test patients. {validation}; none of its images is trained on. Draws of a seed are nested; "
        "with all labels they are the same patients, and what differs is the initial weights."
    )
    return (
        f'<div class="stacked"><figure class="card">{learning_curve(curves)}</figure>'
        f'<div class="card scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _count(counts: int | Sequence[int]) -> str:
    return f"{counts:,}" if isinstance(counts, int) else f"{min(counts):,}–{max(counts):,}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table_cell(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "<td>undefined</td>"
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    interval = "" if row["interval"] is None else "[{:.3f}, {:.3f}]".format(*row["interval"])
    return f'<td>{row["mean"]:.3f}{spread} <span class="interval">{interval}</span></td>'
