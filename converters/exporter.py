"""What an exporter offers: it is a module with the functions of :class:`Exporter`, imported when it is used. The table of
engines names ours (``to_<runtime>.py``); other packages offer theirs under the entry-point group ``fer_edge.exporters``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fer_edge.engines import RUNTIMES, engine_of
from fer_edge.errors import EngineError, UsageError, importable

from .about import About
from .graph import EdgeGraph


@dataclass(frozen=True)
class Export:
    """What artefacts are made from.

    ``graph`` is the float reference; ``calibration`` uint8 (N, H, W, C); ``architecture`` steers the int8 recipe;
    ``symmetric``: int8 activations with zero point 0, as TensorRT wants; ``scratch``: a folder for files in between, gone
    after the conversion; ``about``: what the artefact says of itself, None: nothing."""

    graph: EdgeGraph
    calibration: NDArray[np.uint8]
    architecture: Literal["vit", "cnn"]
    symmetric: bool
    scratch: Path
    about: About | None = None

    @property
    def example(self) -> NDArray[np.uint8]:
        """One crop (1, H, W, C)."""
        return self.calibration[:1]


class Exporter(Protocol):
    """What an exporter's module offers."""

    def trace(self, export: Export) -> Any:
        """The float model that every precision is made from, in the engine's own form."""

    def write(self, traced: Any, precision: str, export: Export, folder: Path) -> Sequence[str]:
        """Write one artefact into ``folder``; its file names, the one an engine opens first. ``traced`` is left as it is."""

    def calibrated(self, export: Export) -> bool:
        """Whether its int8 depends on the calibration faces."""


def load_exporter(runtime: str) -> Exporter:
    """The exporter of a runtime. Raises UsageError for a runtime that has none."""
    try:
        module = engine_of(runtime).exporter
    except EngineError:
        module = ""
    if not module or not importable(module):
        raise UsageError(f"no artefacts are made for the runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
    return cast(Exporter, import_module(module))


def write_all(exporter: Exporter, export: Export, precisions: Sequence[str], folder: Path) -> dict[str, tuple[str, ...]]:
    """Write an artefact of every precision into ``folder``; precision -> file names."""
    traced = exporter.trace(export)
    return {precision: tuple(exporter.write(traced, precision, export, folder)) for precision in precisions}
