"""Reports as one self-contained HTML file: no script, no font, no picture from elsewhere; readable on a phone, printable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; } .soft { color: #52606d; font-size: .9rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } th { background: #f5f7fa; }
tr.wrong td { color: #c92a2a; font-weight: 600; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; max-width: 46rem; }
ul { padding-left: 1.2rem; } pre { overflow-x: auto; font-size: .85rem; background: #f5f7fa; padding: .75rem; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page; ``parts`` are HTML."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def bullets(lines: Sequence[str]) -> str:
    """Texts as a list; one of several lines is set as it is."""
    items = "".join(f"<li>{escape(x)}</li>" if "\n" not in x else f"<li><pre>{escape(x)}</pre></li>" for x in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[str] = (), wrong: Sequence[bool] | None = None
) -> str:
    """Texts as a table. ``texts``: columns that are no numbers; ``wrong``: rows that are marked."""

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        marked = (
            f"<{tag}{' class=text' if head[i] in texts or not head[i] else ''}>{escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr{kind}>{''.join(marked)}</tr>"

    flags = wrong or [False] * len(rows)
    body = "".join(line(row, "td", ' class="wrong"' if bad else "") for row, bad in zip(rows, flags, strict=True))
    top = line(head, "th") if any(head) else ""
    return f'<div class="wide"><table>{top}{body}</table></div>'
