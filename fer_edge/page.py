"""Reports as one self-contained HTML file: no script, no font, no picture from elsewhere; readable on a phone, printable."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2933"
"""The colour of text, and of the axes of plots."""
MANY_COLUMNS = 8
"""A table with more is shown as cards, one for each row, where the screen is too narrow for it."""
LONG_TEXT = 13
"""A cell with more characters may be broken over lines."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; box-sizing: border-box; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 60rem; } p { margin: .25rem 0 .75rem; } .soft { color: #52606d; font-size: .9rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
td { white-space: nowrap; } .text { text-align: left; } td.long { white-space: normal; }
th { background: #f5f7fa; overflow-wrap: normal; } tr.wrong td { color: #c92a2a; font-weight: 600; }
table.many { font-size: .8rem; width: 100%; } table.many th, table.many td { padding: .3rem .25rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; max-width: 46rem; }
ul { padding-left: 1.2rem; } pre { font-size: .85rem; background: #f5f7fa; padding: .75rem; white-space: pre-wrap; }
.faces { display: flex; flex-wrap: wrap; gap: .5rem; font-size: .85rem; text-align: center; }
@media (max-width: 70rem) {
  table.many, table.many tbody { display: block; } table.many thead { display: none; }
  table.many tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); column-gap: 1rem; }
  table.many tr { border: 1px solid #cbd2d9; border-radius: .3rem; margin: 0 0 .75rem; padding: .4rem .6rem; }
  table.many td { display: flex; justify-content: space-between; gap: .5rem; }
  table.many td { border: 0; padding: .1rem 0; text-align: right; }
  table.many td::before { content: attr(data-head); color: #52606d; font-weight: 400; white-space: nowrap; }
}
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
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
    kinds = ["text" if name in texts or not name else "number" for name in head]

    def line(cells: Sequence[str], bad: bool) -> str:
        inside = []
        for name, kind, cell in zip(head, kinds, map(str, cells), strict=True):
            long = " long" if len(cell) > LONG_TEXT else ""
            inside.append(f'<td class="{kind}{long}" data-head="{escape(name)}">{escape(cell)}</td>')
        return f"<tr{' class=wrong' if bad else ''}>{''.join(inside)}</tr>"

    top = "".join(f"<th class={kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    flags = wrong or [False] * len(rows)
    body = "".join(line(row, bad) for row, bad in zip(rows, flags, strict=True))
    opening = "<table class=many>" if len(head) > MANY_COLUMNS else "<table>"
    return f"{opening}{f'<thead><tr>{top}</tr></thead>' if any(head) else ''}<tbody>{body}</tbody></table>"


def plot(figure: Figure, title: str) -> str:
    """A plot by matplotlib, which the caller's extra installs, as an <svg> element that scales with the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
        stream, metadata={"Date": None, "Creator": None}
    )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for size in ("height", "width"):
        text = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    return f'<figure aria-label="{escape(title)}">{text}</figure>'
