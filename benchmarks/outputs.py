"""Files that a run is asked to write: JSON, CSV, Markdown, HTML. Each appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fer_edge.errors import UsageError

from .results import Results
from .tables import flat_csv, markdown


def write_all(
    results: Results, output: Path | None, csv_file: Path | None, markdown_file: Path | None, html_file: Path | None
) -> None:
    """Write what has a name. Raises UsageError when a file cannot be written."""
    if output is not None:
        _write(output, json.dumps(results.as_json(), allow_nan=False) + "\n")
    if csv_file is not None:
        _write(csv_file, flat_csv(results))
    if markdown_file is not None:
        _write(markdown_file, markdown(results))
    if html_file is not None:
        from .page import report

        _write(html_file, report(results))


def check_targets(files: Iterable[Path | None]) -> None:
    """Before hours of work: whether they can be written. Raises UsageError."""
    for file in files:
        # A file is replaced, so its folder must be writable; what is no file (/dev/stdout) is written to.
        if file is not None and not os.access(
            file if file.exists() and not file.is_file() else file.absolute().parent, os.W_OK
        ):
            raise UsageError(f"{file} cannot be written: its folder does not exist, or may not be written to")


def _write(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    try:
        if file.exists() and not file.is_file():  # /dev/stdout is written to, never replaced
            file.write_text(text, encoding="utf-8")
            return
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
