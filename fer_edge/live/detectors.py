"""The face detectors: one table, and those of other packages.

A detector is a module with a function :func:`DetectorModule.open`. Ours are in DETECTORS; other packages offer theirs by the
entry point ``fer_edge.detectors`` (name = module)."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import EngineError, FerEdgeError, UsageError
from fer_edge.runtime import one_line

DEFAULT = "yunet"
DETECTORS = {DEFAULT: "fer_edge.live.yunet"}
"""Name -> module."""
GROUP = "fer_edge.detectors"


@runtime_checkable
class Detector(Protocol):
    """Finds faces. Used by one thread at a time."""

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Faces (N, 15) of a picture (H, W, 3) RGB, contiguous, in its pixels: left, top, width and height of the box; x and
        y of the right eye, the left eye, the nose, the right and the left corner of the mouth (right and left of the person
        seen); and how sure it is, in [0, 1]."""

    def close(self) -> None:
        """Give back what it holds."""


class DetectorModule(Protocol):
    """What a module of DETECTORS, or behind an entry point, offers."""

    def open(self, file: Path | None, least_score: float) -> Detector:
        """``file``: the detector's weights as a user named them, None: its own; faces below ``least_score`` are none.
        Raises an error of fer-edge's tree."""


def open_detector(which: str | os.PathLike[str] | Detector | None, least_score: float) -> Detector:
    """A detector by its name (None: DEFAULT), a file of weights of DEFAULT's kind, or a detector that is open already.

    Raises EngineError for one that does not import or open, MissingExtraError, or UsageError for what is neither a name
    nor a file."""
    if which is not None and not isinstance(which, (str, os.PathLike)):
        return which
    name, file = DEFAULT if which is None else os.fspath(which), None
    modules = DETECTORS if name in DETECTORS else {**offered(), **DETECTORS}
    if name not in modules:
        name, file = DEFAULT, Path(name)
        if not file.is_file():
            raise UsageError(f"{file} is neither a file nor the name of a detector ({', '.join(modules)})")
    try:
        return cast(DetectorModule, import_module(modules[name])).open(file, least_score)
    except FerEdgeError:
        raise
    except Exception as error:  # a sick library, or another package's module, raises what it likes
        raise EngineError(f"the face detector {name!r} does not open: {one_line(error)}") from error


def detector_name(which: str | os.PathLike[str] | Detector | None) -> str:
    """What a detector is called: its name, or that of its file or class."""
    if which is None:
        return DEFAULT
    return Path(which).name if isinstance(which, (str, os.PathLike)) else type(which).__name__


def offered() -> dict[str, str]:
    """Other packages' detectors: name -> module."""
    from importlib import metadata

    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}
