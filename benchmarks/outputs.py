"""Files that a run is asked to write: JSON, CSV, Markdown, HTML. Each appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from fer_edge.errors import UsageError

from .results import Results
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
    problems = [_write(file, text(results)) for file, text in texts if file is not None]
    return [problem for problem in problems if problem]


def _html(results: Results) -> str:
    from .page import report  # and with it the plotting library

    return report(results)


def check_targets(files: Iterable[Path | None]) -> None:
    """Before hours of work: whether they can be written. Raises UsageError."""
    for file in files:
        if file is None:
            continue
        try:
            if _replaced(file):  # what is no file (/dev/stdout) is written to
                partial = _partial(file)
                partial.touch()
                partial.unlink()
            elif not os.access(file, os.W_OK):
                raise PermissionError(0, "it may not be written to")
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _replaced(file: Path) -> bool:
    return file.is_file() or not file.exists()


def _partial(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


def _write(file: Path, text: str) -> str | None:
    """None, or why not."""
    partial = _partial(file)
    try:
        if not _replaced(file):
            file.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file name need not be Unicode
            return None
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return f"{file} cannot be written: {error.strerror}"
    return None
