"""The report of a benchmark as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fer_edge.page import bullets, page, table

from .plots import plots
from .results import Results
from .tables import accuracy_lines, remarks, rows_of, verdict_texts

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
        bullets([*accuracy_lines(results), *verdict_texts(results), *remarks(results)]),
    ]
    if results.rows:
        head, rows = rows_of(results)
        parts += ["<h2>Results</h2>", table(head, rows, TEXT_COLUMNS, wrong=[row[-1] == "WRONG" for row in rows])]
    parts += [_plot(anchor, title, picture) for anchor, title, picture in plots(results)]
    parts += ["<h2>The box</h2>", table(["", ""], _environment(results.environment))]
    return page("fer-edge benchmark", parts)


def _plot(anchor: str, title: str, picture: str) -> str:
    return f'<h2 id="{anchor}">{escape(title)}</h2>\n<figure aria-label="{escape(title)}">{picture}</figure>'


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
