"""The report of a benchmark as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fer_edge.page import bullets, page, plot, table

from ..environment import WORDS, in_words
from ..results import Results
from .plots import plots
from .tables import accuracy_lines, remarks, rows_of, verdict_texts

TEXT_COLUMNS = {"bundle", "runtime", "precision", "device", "scenario", "answers"}


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
    for anchor, title, figure in plots(results):
        parts += [f'<h2 id="{anchor}">{escape(title)}</h2>', plot(figure, title)]
    parts += ["<h2>The box</h2>", table(["", ""], _environment(results.environment))]
    return page("fer-edge benchmark", parts)


def _environment(found: Mapping[str, Any]) -> list[list[str]]:
    shown = [[words, in_words(name, found[name])] for name, words in WORDS.items() if found.get(name) is not None]
    return [row for row in shown if row[1]]
