"""collected.html: the figure and the table of many runs on one page that loads nothing from outside.

In: runs, metrics, the figure as SVG, differences if two runs were named. Out: HTML.
"""

import html
from collections.abc import Sequence
from typing import Any

from launch.collecting.differences import Section
from launch.collecting.runs import Found
from launch.collecting.table import columns_of, higher_is_better, same, summarise, value_of

STYLE = """
:root { color-scheme: light; --ink: #16202c; --muted: #667487; --line: #e1e6ec; --good: #14764a; --bad: #b03030; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans"; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; }
.muted, caption { color: var(--muted); font-size: 13px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; overflow-x: auto; }
.card svg { width: 100%; height: auto; }
.card svg g[id*="run-"]:hover path { stroke-width: 4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
caption { text-align: left; padding-bottom: 6px; }
td:first-child code { white-space: nowrap; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { white-space: nowrap; }
.interval { color: var(--muted); } .best { color: var(--good); font-weight: 650; } .bad { color: var(--bad); }
code { font: 12.5px/1.4 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
"""
ENDED_WELL = ("finished", "running")


def page(
    title: str,
    runs: Sequence[Found],
    metrics: Sequence[str],
    svg: str | None,
    *,
    notes: Sequence[str] = (),
    compared: tuple[Found, Found] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """The page as text."""
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="muted">{len(runs)} runs</p>']
    parts += [f'<div class="card">{svg}</div>'] if svg else ['<p class="muted">No run has logged anything yet.</p>']
    parts += ["<h2>Runs</h2>", _table(runs, metrics)]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems] + list(notes)
    if problems:
        items = "".join(f"<li>{_text(problem)}</li>" for problem in problems)
        parts += ["<h2>What could not be read</h2>", f'<ul class="card bad">{items}</ul>']
    if compared:
        parts += [f"<h2>{_text(compared[0].name)} and {_text(compared[1].name)}</h2>", _differences(compared, sections)]
    shared = same(runs)
    if shared:
        rows = "".join(f"<tr><td><code>{_text(k)}</code></td><td>{_text(v)}</td></tr>" for k, v in shared.items())
        parts += ["<h2>Overrides that all runs share</h2>", f'<div class="card"><table>{rows}</table></div>']
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _table(runs: Sequence[Found], metrics: Sequence[str]) -> str:
    keys = columns_of(runs)
    summaries = {name: [summarise(run, name) for run in runs] for name in metrics}
    leaders = {}
    for name, found in summaries.items():
        ends = [summary.last for summary in found if summary]
        leaders[name] = (max if higher_is_better(name) else min)(ends) if ends else None
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in [*keys, "state", *metrics])
    body = []
    for number, run in enumerate(runs):
        cells = "".join(f'<td title="{_text(run.name)}">{_value(value_of(run, key))}</td>' for key in keys)
        style = "" if run.state in ENDED_WELL else ' class="bad"'
        cells += f"<td{style}>{_text(run.state)}</td>"
        cells += "".join(_cell(summaries[name][number], leaders[name]) for name in metrics)
        body.append(f"<tr>{cells}</tr>")
    caption = (
        "Last value with its interval; of a curve without intervals, the range of its last tenth. Below it the best "
        "value and its step. The best last value of a column is green."
    )
    return (
        f'<div class="card"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(summary, leader: float | None) -> str:
    if summary is None:
        return "<td>–</td>"
    style = ' class="best"' if summary.last == leader else ""
    text = f"<span{style}>{summary.last:.4g}</span>"
    if summary.low is not None:
        text += f' <span class="interval">[{summary.low:.4g}, {summary.high:.4g}]</span>'
    if summary.best_step is not None:
        text += f'<br><span class="interval">best {summary.best:.4g} at {summary.best_step}</span>'
    return f"<td>{text}</td>"


def _differences(compared: tuple[Found, Found], sections: Sequence[Section]) -> str:
    rows = []
    for title, entries in sections:
        rows.append(f'<tr><th colspan="3">{_text(title)}{"" if entries else ": no difference"}</th></tr>')
        for key, *values in entries:
            cells = "".join(f"<td><code>{_text(value)}</code></td>" for value in values)
            rows.append(f"<tr><td><code>{_text(key)}</code></td>{cells}</tr>")
    head = "".join(f"<th>{_text(text)}</th>" for text in ("", *(run.name for run in compared)))
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
