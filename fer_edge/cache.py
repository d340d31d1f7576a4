"""What engines have built of an artefact, kept for the next start in a folder that nobody else may write.

An entry is a folder: a record of what it was built from, and the files that the engine gave, with their hashes. What does
not fit to the last byte is thrown away and built anew. Nothing in it is a pickle: the record is JSON, the files are read as
bytes and handed to the engine that wrote them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any

from .errors import FerEdgeError, UsageError, importable
from .files import clear_partials, disk_errors, locked, open_file, partial_folder, user_cache

LIMIT = 2 << 30
"""Bytes of all entries together. What was used longest ago goes first; a larger one is not kept."""
LARGE = 16 << 20
"""Bytes of an artefact from which a start from what was kept saves a tenth of a second and more. For less than that nobody's
home need be written to."""
RECORD = "record.json"
_RECORD_LIMIT = 1 << 16
_SCHEMA = 1
_NAME = re.compile(r"[0-9a-f]{64}")
_PATIENCE = 10.0

log = logging.getLogger("fer_edge")
"""Reaches stderr where an application has set up no logging (logging.lastResort), and where it wants them where it has."""


def user_folder() -> Path:
    """Where the entries of this user lie, whether there are any or not. Raises UsageError where that cannot be told."""
    if not importable("platformdirs"):  # a box with an engine of its own, which no extra may touch
        raise UsageError(
            "the package platformdirs, which knows the user's cache, is missing: pip install platformdirs, or "
            "name a folder: --cache FOLDER"
        )
    folder = user_cache()
    if folder is None:
        raise UsageError("this user has no home, so there is no cache; name a folder, or go without: --cache off")
    return folder / "engines"


@dataclass
class Store:
    """Entries of one artefact. ``facts``: what identifies it (bundle, digest, hashes); ``asked``: whether the user asked for
    a cache, so that small models are kept, too; ``folder``: None: the user's."""

    facts: Mapping[str, Any]
    folder: Path | None = None
    asked: bool = False
    state: list[str] = field(default_factory=list)
    """What has happened, in words, the last at the end."""
    _ahead: dict[Path, tuple[bytes, str]] = field(default_factory=dict)
    _reader: threading.Thread | None = None

    def look_ahead(self) -> None:
        """Begin to read and hash, on a thread, the entry of this artefact that was used last, while the artefact is hashed:
        together the two take nearly as long as the engine does then."""
        self._reader = threading.Thread(target=self._look_ahead, name="cache", daemon=True)
        self._reader.start()

    def _look_ahead(self) -> None:
        with suppress(FerEdgeError, OSError, ValueError):  # which are met again, and said, where the entry is wanted
            folder = user_folder() if self.folder is None else self.folder
            mine = [e for e in entries(folder) if all(e.facts.get(key) == value for key, value in self.facts.items())]
            for file in sorted(mine[0].folder.iterdir()) if mine else ():
                content = _read(file, LIMIT)
                self._ahead[file] = content, hashlib.sha256(content).hexdigest()

    def read(self, built: Mapping[str, Any]) -> dict[str, bytes] | None:
        """The files of the entry for these facts of an engine, or None. An entry that does not fit is removed, with a line
        that says so."""
        try:
            entry = self._entry(built)
            if not entry.parent.exists():
                return None
            _check_private(entry.parent)
            return self._content(entry, built) if entry.exists() else None
        except (FerEdgeError, OSError) as error:
            self._without(error)
            return None

    def write(self, built: Mapping[str, Any], files: Mapping[str, bytes], seconds: float) -> None:
        """Keep what an engine built in ``seconds``. A folder that cannot be written costs the time of the next start, and
        one line says so."""
        try:
            _put(self._entry(built), self._key(built), files, seconds)
            self.state.append("kept for the next start")
        except (FerEdgeError, OSError) as error:
            self._without(error)

    def has(self, built: Mapping[str, Any]) -> bool:
        """Whether there is an entry for these facts, good or bad."""
        try:
            return self._entry(built).exists()
        except (FerEdgeError, OSError):
            return False

    def refused(self, why: str) -> None:
        """An engine gives nothing that could be kept; one line says so."""
        self._without(UsageError(why))

    def remove(self, built: Mapping[str, Any], why: str) -> None:
        """Throw away the entry for these facts."""
        try:
            entry = self._entry(built)
            _remove(entry)
        except (FerEdgeError, OSError) as error:
            self._without(error)
        else:
            self.state.append(f"thrown away: {why}")
            _say(f"what was kept in {entry} is thrown away ({why}); the model is built anew")

    @contextmanager
    def folder_of(self, built: Mapping[str, Any]) -> Iterator[Path]:
        """A private folder for an engine that reads and writes its files by itself: with those of the entry for these facts,
        checked, or empty. What the engine has left there when the block ends well is kept."""
        from tempfile import TemporaryDirectory

        found, began = self.read(built), time.monotonic()
        with TemporaryDirectory(prefix="fer-edge-") as name:  # nobody else may enter it
            folder = Path(name)
            for file, content in (found or {}).items():
                _write(folder / file, content)
            yield folder
            left = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        if left and left != found:
            if found:
                self.remove(built, "the engine took another way")
            self.write(built, left, time.monotonic() - began)

    def _key(self, built: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.facts, **built, "processor": processor()}

    def _entry(self, built: Mapping[str, Any]) -> Path:
        folder = user_folder() if self.folder is None else self.folder
        return folder / hashlib.sha256(_canonical(self._key(built))).hexdigest()

    def _content(self, entry: Path, built: Mapping[str, Any]) -> dict[str, bytes] | None:
        try:
            record = _record(entry)
            if record["key"] != json.loads(_canonical(self._key(built))):
                raise ValueError("it was built from something else")
            files = {name: self._checked(entry / name, **promised) for name, promised in record["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FileNotFoundError) and not entry.exists():  # another process has cleared it meanwhile
                return None
            self.remove(built, getattr(error, "strerror", None) or str(error))
            return None
        os.utime(entry)
        self.state.append("from the cache")
        return files

    def _checked(self, file: Path, sha256: str, bytes: int) -> bytes:
        """The content of a file. Raises OSError, or ValueError where it is not the one that was recorded."""
        if self._reader is not None:
            self._reader.join()
        content, digest = self._ahead.pop(file, (b"", ""))
        if not digest:
            content = _read(file, LIMIT)
            digest = hashlib.sha256(content).hexdigest()
        if len(content) != bytes or digest != sha256:
            raise ValueError(f"{file.name} was altered or truncated")
        return content

    def _without(self, error: FerEdgeError | OSError) -> None:
        text = (
            str(error) if isinstance(error, FerEdgeError) else f"{getattr(error, 'filename', '')}: {error.strerror or error}"
        )
        self.state.append(f"not kept: {text}")
        _say(f"what the engine builds is not kept, and every start takes its time: {text}")


@dataclass(frozen=True)
class Entry:
    """``facts``: what it was built from, {} where that cannot be read; ``seconds`` it took; ``used``: seconds since 1970."""

    folder: Path
    facts: Mapping[str, Any]
    bytes: int
    seconds: float
    used: float


def entries(folder: Path) -> list[Entry]:
    """What is kept in a folder, the last used first. Raises UsageError for a folder that cannot be read, or that others may
    write."""
    if not folder.exists():
        return []
    found = []
    try:
        _check_private(folder)
        for entry in folder.iterdir():
            if _NAME.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                try:
                    record = _record(entry)
                except (OSError, ValueError):
                    record = {"key": {}, "seconds": 0.0}
                size = sum(file.lstat().st_size for file in entry.iterdir())
                found.append(Entry(entry, record["key"], size, record["seconds"], entry.stat().st_mtime))
    except FileNotFoundError:  # cleared by another process meanwhile
        return entries(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda entry: -entry.used)


def clear(folder: Path, older_than: float = 0.0) -> list[Entry]:
    """Remove what was not used for ``older_than`` seconds, and what killed writers left; returns what is gone. Nothing else
    in the folder is touched. Raises UsageError."""
    gone = [entry for entry in entries(folder) if time.time() - entry.used >= older_than]
    if folder.exists():
        with locked(folder, _PATIENCE), disk_errors(folder):
            clear_partials(folder)
            for entry in gone:
                _remove(entry.folder)
    return gone


@once
def processor() -> str:
    """The processor's model and a hash of all its features: what was built for another one may not run, or not as fast."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                fields.setdefault(name.strip().lower(), value.strip())
                if not line.strip() and ("flags" in fields or "features" in fields):  # the first one is like the others
                    break
    except OSError:
        pass
    parts = ("vendor_id", "cpu family", "model", "model name", "stepping", "cpu part", "flags", "features")
    told = json.dumps([fields.get(name, "") for name in parts])
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {hashlib.sha256(told.encode()).hexdigest()[:16]}"


@contextmanager
def announced(what: str, patience: float = 1.5) -> Iterator[None]:
    """A line when a block takes longer than ``patience`` seconds, and one with its time when it has ended."""
    began, over, told = time.monotonic(), threading.Event(), threading.Event()

    def tell() -> None:
        if not over.wait(patience):
            told.set()
            log.warning("%s; the first time it may take minutes", what)

    thread = threading.Thread(target=tell, name="announcement", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if told.is_set():
            log.warning("%s: %.1f s", what, time.monotonic() - began)


@once
def _say(text: str) -> None:
    """A line, once in a process."""
    from .console import printable

    log.warning("%s", printable(text))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False).encode()


def _record(entry: Path) -> dict[str, Any]:
    """The record of an entry. Raises OSError or ValueError."""
    record = json.loads(_read(entry / RECORD, _RECORD_LIMIT))
    if not isinstance(record, dict) or not isinstance(record.get("key"), dict) or not isinstance(record.get("files"), dict):
        raise ValueError("its record is none of ours")
    digest = record.pop("digest", None)
    if record.get("schema") != _SCHEMA or digest != hashlib.sha256(_canonical(record)).hexdigest():
        raise ValueError("its record was altered")
    if any(Path(name).name != name or name == RECORD for name in record["files"]):
        raise ValueError("its record names files outside of it")
    return record


def _read(file: Path, limit: int) -> bytes:
    """The content of a plain file of ours that nobody else may write. Raises OSError or ValueError."""
    with open_file(file) as stream:
        state = os.fstat(stream.fileno())
        if state.st_size > limit:
            raise ValueError(f"{file.name} has {state.st_size:,} bytes")
        if problem := _problem(state):
            raise ValueError(f"{file.name} {problem}")
        return stream.read(state.st_size)


def _problem(state: os.stat_result) -> str:
    """Why what is kept in a file or folder could be somebody else's work; "" when it could not."""
    if not hasattr(os, "geteuid"):
        return ""
    if state.st_uid != os.geteuid():
        return "belongs to another user"
    return "may be written by others" if state.st_mode & 0o022 else ""


def _check_private(folder: Path) -> None:
    """Raise UsageError for a folder that somebody else may write, or exchange for another one."""
    state = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(state.st_mode):
        raise UsageError(f"{folder} is no folder, so nothing is kept there; name another one for the cache")
    if problem := _problem(state):
        raise UsageError(f"{folder} {problem}, so nothing is kept there: chmod 700 {folder}, or name another one")
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if hasattr(os, "geteuid") and mode & 0o002 and not mode & stat.S_ISVTX:
            raise UsageError(f"{parent} may be written by others, so nothing is kept in {folder}: chmod o-w {parent}")


def _made(folder: Path) -> Path:
    if not folder.exists():
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(0o700, exist_ok=True)
    return folder


def _put(entry: Path, key: Mapping[str, Any], files: Mapping[str, bytes], seconds: float) -> None:
    """A whole entry under its name, in one step; one that is there is left, it was built from the same."""
    import shutil

    folder, size = _made(entry.parent), sum(map(len, files.values()))
    _check_private(folder)
    if size > LIMIT:
        raise UsageError(f"it has {size:,} bytes, and {LIMIT:,} are kept in {folder}")
    hashes = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    record = {"schema": _SCHEMA, "key": key, "files": hashes, "seconds": round(seconds, 3)}
    record["digest"] = hashlib.sha256(_canonical(record)).hexdigest()
    with locked(folder, _PATIENCE), disk_errors(entry):
        clear_partials(folder)
        _make_room(folder, size)
        partial = partial_folder(entry)
        partial.mkdir(0o700)
        try:
            for name, content in {**files, RECORD: _canonical(record)}.items():
                _write(partial / name, content)
            if not entry.exists():
                partial.rename(entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(file: Path, content: bytes) -> None:
    """A new file of ours that nobody else may read or write. It is not forced onto the disk: what a power cut leaves of it
    has another hash."""
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(opened, "wb") as stream:
        stream.write(content)


def _make_room(folder: Path, size: int) -> None:
    kept = entries(folder)
    total = size + sum(entry.bytes for entry in kept)
    while kept and total > LIMIT:
        oldest = kept.pop()
        _remove(oldest.folder)
        total -= oldest.bytes


def _remove(entry: Path) -> None:
    """An entry, at once: under another name first, so that nobody reads half of it."""
    import shutil

    gone = partial_folder(entry)
    try:
        entry.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone)
