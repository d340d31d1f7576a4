"""Every error that fer-edge raises on purpose, in one tree.

::

    FerEdgeError
    ├── BundleError       a bundle (or one of its files) is missing, altered, truncated, newer or malformed
    │   └── IntegrityError    ... in particular: a file is not the one that the manifest, or its digest, promises
    ├── ImageError        an input cannot be read as one face crop
    │   └── SourceError       ... in particular: a video, stream or camera cannot be opened, or stopped delivering
    ├── LabelError        a label, label set, prompt file or text encoder does not fit
    ├── EngineError       an inference engine is missing, refuses the artefact or device, or answers with NaN
    ├── ConversionError   a source cannot be converted, or an artefact misses its parity bars
    ├── MissingExtraError a command or function needs an extra that is not installed
    └── UsageError        arguments that contradict each other or the state of an object

A message is one line: what is wrong, in which file, and what to do about it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class FerEdgeError(Exception):
    """Base class: ``except fer_edge.FerEdgeError`` catches everything that fer-edge raises on purpose.

    Every error of the tree travels between processes with class, message and attributes, whatever its ``__init__`` takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[E], args: tuple[object, ...]) -> E:
    """An exception as it was, without its ``__init__``."""
    return kind.__new__(kind, *args)


class BundleError(FerEdgeError):
    """A bundle, or a file of it, is missing, altered, truncated, newer or malformed. The message names the file."""


class IntegrityError(BundleError):
    """A file of a bundle is missing, altered or truncated: it is not what the manifest or its digest promises."""


class ImageError(FerEdgeError):
    """An input cannot be read as one face crop."""


class SourceError(ImageError):
    """A source of frames (a video, a stream, a camera) cannot be opened, cannot be read further, or has given none. The
    message names it without user, password or query."""


class LabelError(FerEdgeError):
    """A label, a label set, a prompt file or a text encoder does not fit."""


class EngineError(FerEdgeError):
    """An engine is missing, refuses an artefact, a device or a precision, or answers with something that is not a
    number."""


class ConversionError(FerEdgeError):
    """A source cannot be converted, or a converted artefact misses its parity bars."""


class MissingExtraError(FerEdgeError):
    """A package that an extra would have installed is not there. The message is the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed here; install it with: pip install 'fer-edge[{extra}]'")
        self.extra = extra


def importable(package: str) -> bool:
    """Whether a package is there, found without importing it. A mere folder of that name (of models, say) is none: Python
    would take it for a namespace package."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # of "a.b", when there is no "a"
        return False
    return spec is not None and spec.origin is not None


class UsageError(FerEdgeError):
    """Arguments contradict each other, or an object is used after close or in a forked child."""
