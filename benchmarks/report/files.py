"""Files that a run is asked to write: JSON, CSV, Markdown, HTML. Each appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fer_edge.errors import UsageError
from fer_edge.files import write_text

from ..results import Results
from .tables import flat_csv, markdown


def write_all(
    results: Results, output: Path | None, csv_file: Path | None, markdown_file: Path | None, html_file: Path | None
) -> list[str]:
    """Write what has a name. What cannot be written is returned in words, and the rest is written."""
    texts: tuple[tuple[Path | None, Callable[[Results], str]], ...] = (
        (output, lambda found: json.dumps(found.as_json(), allow_nan=False) + "\n"),
        (csv_file, flat_csv),
        (markdown_file, markdown),
        (html_file, _html),
    )
    problems = [try_write(file, text(results)) for file, text in texts if file is not None]
    return [problem for problem in problems if problem]


def _html(results: Results) -> str:
    from .page import report  # and with it the plotting library

    return report(results)


def try_write(file: Path, text: str) -> str | None:
    """Write a file; None, or why not."""
    try:
        write_text(file, text)
    except UsageError as error:
        return str(error)
    return None
