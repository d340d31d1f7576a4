"""What a command of ours owes the system: standard streams that are there, signals that leave no litter, and the exit
status that a shell expects. Imports nothing that takes time: signals are in hand before the package is loaded."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import Any, TextIO, TypeVar, cast

T = TypeVar("T")

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that ask a process to end: of Ctrl-C, of ``timeout``, systemd or a container's end, of a terminal that closes."""

BROKEN_PIPE = 141
"""Exit status of what writes to a reader that has gone, as a shell shows it: 128 + SIGPIPE."""

_SAME_REQUEST = 1.0
"""Seconds in which a second signal is the first one's echo: ``timeout`` sends two."""


class OutputError(Exception):
    """Standard output is closed, full, or a pipe whose reader has gone (``broken_pipe``)."""

    def __init__(self, error: OSError | ValueError) -> None:
        number = error.errno if isinstance(error, OSError) else errno.EBADF  # ValueError: closed by Python
        reason = "is closed" if number == errno.EBADF else f"cannot be written: {os.strerror(number or errno.EIO)}"
        super().__init__(f"standard output {reason}")
        self.broken_pipe = isinstance(error, BrokenPipeError)


@contextmanager
def stoppable() -> Iterator[Sequence[int]]:
    """A block that the signals of ENDING end by KeyboardInterrupt, so that every temporary file goes.

    Then the exit status is 128 + the signal, whatever has become of the exception: an import turns it into an ImportError,
    and a run that keeps what it has swallows it. Signals that the process was told to ignore stay ignored. Yields
    the signals that have come."""
    seen: list[int] = []
    since = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        echo = bool(seen) and time.monotonic() - since < _SAME_REQUEST
        since = time.monotonic()
        seen.append(number)
        if not echo:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    told = False
    try:
        yield seen
    except KeyboardInterrupt:
        seen = seen or [signal.SIGINT]
    except BaseException as error:
        if not seen:
            raise
        told = isinstance(error, SystemExit) and error.code == 128 + signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        if not told:
            _tell("Interrupted." if seen[0] == signal.SIGINT else "Terminated.")
        sys.exit(128 + seen[0])


@contextmanager
def orderly(stop: Callable[[], object], patience: float = 5.0) -> Iterator[None]:
    """Inside :func:`stoppable`, a block that comes to its own end, with its last words, once ``stop`` has been called.

    The first signal calls ``stop`` on a thread of its own (``stop`` may take locks that the block holds), and is raised
    after the block. A second one that is no echo, or the first after ``patience`` seconds, ends the block at once, by
    KeyboardInterrupt as ever."""
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    first: list[tuple[int, float]] = []
    asked, over, late = threading.Event(), threading.Event(), threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append((number, time.monotonic()))
            asked.set()
        elif late.is_set() or time.monotonic() - first[0][1] > _SAME_REQUEST:
            before[number](number, frame)

    def end() -> None:
        asked.wait()
        if over.is_set():
            return
        stop()
        if not over.wait(patience) and main.ident is not None:
            late.set()
            signal.pthread_kill(main.ident, first[0][0])  # to the thread that waits, whose system call then ends

    for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
            signal.signal(number, ask)
    thread = threading.Thread(target=end, name="ending", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)
    if first:
        before[first[0][0]](first[0][0], None)


def _tell(text: str) -> None:
    with suppress(OSError, AttributeError, ValueError):
        # A terminal shows ^C where the cursor is.
        sys.stderr.write(f"\n{text}\n" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()


class _Stream:
    """A text stream whose failures go to ``failed``, the first one again at every later use; everything else is the stream's
    own."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError | ValueError], None]) -> None:
        self._stream, self._failed = stream, failed
        self._failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text), 0)

    def flush(self) -> None:
        self._try(self._stream.flush, None)

    def _try(self, step: Callable[[], T], otherwise: T) -> T:
        try:
            if self._failure is None:
                return step()
        except UnicodeError:
            raise
        except (OSError, ValueError) as error:
            self._failure = error
        if self._failure is not None:
            self._failed(self._failure)
        return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """For a block, stdout fails by OutputError and stderr silently: a note that nobody reads must not end a conversion.

    A closed one of the three is opened on the null device, or the next file of ours would take its number, and what an
    engine prints would land in that file; stdout then still fails at the first write. What a stream cannot encode is
    escaped."""
    kept = sys.stdin, sys.stdout, sys.stderr  # None, where the descriptor was closed when Python started
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    closed = os.open(os.devnull, os.O_RDONLY)  # fails at the first write
    with open(os.devnull, "r+", encoding="utf-8") as null, open(closed, "w", encoding="utf-8") as unwritable:
        out, errors = kept[1] or unwritable, kept[2] or null
        for stream in (out, errors):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

        def lost(error: OSError | ValueError) -> None:
            with suppress(OSError, ValueError):  # or Python tries the rest again at its end, and complains
                os.dup2(null.fileno(), out.fileno())
            raise OutputError(error) from error

        sys.stdin = kept[0] or null
        sys.stdout = cast(TextIO, _Stream(out, lost))
        sys.stderr = cast(TextIO, _Stream(errors, lambda error: None))
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = kept
