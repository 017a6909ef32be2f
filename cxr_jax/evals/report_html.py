"""Pieces of a report's HTML that all sections share: numbers with intervals, tables, facts, marks.

In: values. Out: escaped HTML. Whatever comes from outside goes through `text`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cxr_jax.evals import figures
from cxr_jax.evals.page import interval, number, text

# Below 20 positive patients a 95 % percentile interval covers the truth in 91 % of trials (10), 87 % (5), 72 % (3).
SPARSE_PATIENTS, SPARSE_MARK = 20, "†"
DASH = "–"


def share(value: float | None) -> str:
    """A share as per cent."""
    return DASH if value is None else f"{100 * value:.1f} %"


def p_value(value: float | None) -> str:
    """A p-value, never smaller than anyone can mean."""
    return DASH if value is None else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def value_cell(value: float | None, bounds: Sequence[float] | None, *, style: str = "") -> str:
    """A table cell with a number and, below it, its interval."""
    return f"<td{style and f' class={style!r}'}>{number(value)} {interval(bounds)}</td>"


def cell(entry: Mapping[str, Any], metric: str) -> str:
    """The cell of a metric that an entry of results.json holds."""
    return value_cell(entry[metric], entry[f"{metric}_interval"])


def row(head: str, cells: Sequence[str], *, style: str = "") -> str:
    """A table row; `head` is HTML, `cells` are `<td>` elements."""
    return f'<tr{style and f" class={style!r}"}><th scope="row">{head}</th>{"".join(cells)}</tr>'


def plain(*values: object) -> list[str]:
    """Cells of escaped text."""
    return [f"<td>{text(value)}</td>" for value in values]


def bullets(items: Sequence[str]) -> str:
    """A list of HTML sentences; nothing where there are none."""
    return f'<ul class="reading">{"".join(f"<li>{item}</li>" for item in items)}</ul>' if items else ""


def muted(sentence: str) -> str:
    """A remark in small print; `sentence` is HTML."""
    return f'<p class="muted">{sentence}</p>'


def sparse_mark(entry: Mapping[str, Any]) -> str:
    """The mark of a class whose bootstrap has too few positive patients to draw from."""
    sparse = not entry["undefined"] and entry["counts"]["positive_patients"] < SPARSE_PATIENTS
    return f"&nbsp;{SPARSE_MARK}" if sparse else ""


def sparse_note(marked: bool, patients: int = SPARSE_PATIENTS) -> str:
    """What the mark means, for the caption of a table that has one."""
    return f" {SPARSE_MARK} Fewer than {patients} positive patients: the interval is too narrow to trust." * marked


def marker(series: int) -> str:
    """The sign of a column in the charts."""
    sign, variable = (s[series % len(s)] for s in (figures.MARKER_SIGNS, range(len(figures.SERIES))))
    return f'<span class="key" style="color: var(--series-{variable})" aria-hidden="true">{sign}</span>'
