"""A self-contained page, and the pieces of HTML that its sections are made of.

In: a title, what stands at the top, sections. Out: one HTML file that loads nothing from outside.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_page(path: str | Path, *, title: str, top: str, sections: Sequence[tuple[str, str, str]]) -> Path:
    """Write the page and return its path. `top` and the last of (key, heading, HTML) are HTML; empty sections go."""
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{text(heading)}</a>' for key, heading, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{text(head)}</h2>{part}</section>' for key, head, part in sections)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><h1>{text(title)}</h1><nav aria-label="Sections">{links}</nav></header>
{top}
{body}
<footer class="muted">Written by cxr_jax. For research; not a medical device.</footer>
</main>
</body>
</html>
"""
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def facts(known: Mapping[str, object]) -> str:
    """Names and values as a list."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in known.items())
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def table(heads: Sequence[str], rows: Sequence[str], caption: str) -> str:
    """Rows are `<tr>` elements; heads and caption are HTML."""
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="card scroll"><table><caption>{caption}</caption><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def text(value: object) -> str:
    """Escaped for HTML."""
    return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
    """Three decimals, a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def with_sign(value: float) -> str:
    """Three decimals with their sign."""
    return f"{value:+.3f}".replace("-", "−")


def interval(bounds, *, signed: bool = False) -> str:
    """`[low, high]`, nothing for None."""
    if bounds is None:
        return ""
    low, high = (with_sign(value) if signed else f"{value:.3f}" for value in bounds)
    return f'<span class="interval">[{low}, {high}]</span>'
