"""One self-contained HTML file: no script, no font, no picture from elsewhere; readable on a phone, printable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .plots import plots
from .results import Results
from .tables import interleaved_text, remarks, rows_of, sustained_text

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
TEXT_COLUMNS = {"bundle", "runtime", "precision", "device", "scenario", "answers"}
ENVIRONMENT = {
    "cpu": "processor",
    "features": "features",
    "board": "board",
    "system": "system",
    "usable_cores": "cores in use",
    "cpu_limit": "container's processors",
    "memory_mb": "memory MB",
    "governors": "governor",
    "frequencies_mhz": "MHz at the start",
    "temperatures_c": "degrees C at the start",
    "power_mode": "power mode",
    "load_average": "load at the start",
    "engines": "engines",
    "energy": "energy from",
    "no_energy": "energy",
    "python": "Python",
    "fer_edge": "fer-edge",
}


def report(results: Results) -> str:
    """The whole page."""
    when, cpu = results.environment.get("time", ""), results.environment.get("cpu", "")
    bundles = sorted({f"{row.bundle_name} ({row.digest[:12]})" for row in results.rows})
    parts = [
        "<h1>fer-edge benchmark</h1>",
        f'<p class="soft">{escape(f"{cpu}, {when}")}<br>{escape("; ".join(bundles))}</p>',
        _list([*_verdicts(results), *remarks(results)]),
    ]
    if results.rows:
        head, rows = rows_of(results)
        parts += ["<h2>Results</h2>", _table(head, rows)]
    parts += [_plot(anchor, title, picture) for anchor, title, picture in plots(results)]
    parts += ["<h2>The box</h2>", _table(["", ""], _environment(results.environment))]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fer-edge benchmark</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _verdicts(results: Results) -> list[str]:
    texts = [interleaved_text(entry) for entry in results.extras.get("interleaved", ())]
    if "sustained" in results.extras:
        texts.append(sustained_text(results.extras["sustained"]))
    return texts


def _list(lines: Sequence[str]) -> str:
    items = "".join(
        f"<li>{escape(line)}</li>" if "\n" not in line else f"<li><pre>{escape(line)}</pre></li>" for line in lines
    )
    return f"<ul>{items}</ul>" if items else ""


def _plot(anchor: str, title: str, picture: str) -> str:
    return f'<h2 id="{anchor}">{escape(title)}</h2>\n<figure aria-label="{escape(title)}">{picture}</figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        marked = (
            f"<{tag}{' class=text' if head[i] in TEXT_COLUMNS or not head[i] else ''}>{escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr{kind}>{''.join(marked)}</tr>"

    body = "".join(line(row, "td", ' class="wrong"' if row[-1] == "WRONG" else "") for row in rows)
    top = line(head, "th") if any(head) else ""
    return f'<div class="wide"><table>{top}{body}</table></div>'


def _environment(found: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, words in ENVIRONMENT.items():
        value = found.get(name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{v}" if name == "engines" else f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(f"{v:.0f}" if isinstance(v, float) else str(v) for v in value)
        if value not in (None, ""):
            rows.append([words, str(value)])
    return rows
