"""Files that are written in one step: a reader sees the old one or the new one, whole, and a failure leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import FerEdgeError, UsageError


def check_target(file: Path, make_folder: bool = False) -> None:
    """Before hours of work: raise UsageError when a file cannot be written. ``make_folder``: make the folder it lies in."""
    try:
        if file.exists() and not file.is_file():  # /dev/stdout, say; a folder is none either
            if file.is_dir() or not os.access(file, os.W_OK):
                raise PermissionError(0, "it is a folder" if file.is_dir() else "it may not be written to")
            return
        if make_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.touch()
        partial.unlink()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes ``file`` when the block ends well, and vanishes when it does not. Raises
    UsageError for whatever a writer raises on a full or read-only disk."""
    partial = file.with_name(file.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # what outlives a power cut must not be the name of a file that did not
        os.replace(partial, file)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, FerEdgeError) or not isinstance(error, Exception):
            raise
        # torch and safetensors have errors of their own for a full disk.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UsageError(f"{file} cannot be written: {reason}") from error


def write_text(file: Path, text: str) -> None:
    """Write a text file in one step; what is not Unicode, as a file's name may be, is escaped. Raises UsageError."""
    if file.exists() and not file.is_file():  # /dev/stdout is written to, never replaced
        try:
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from error
        return
    with replaced(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
