"""What an adapter of an engine offers: it is a module with the functions of :class:`Runtime`, imported when it is used.
``engines.py`` has the table of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .container import container_limits
from .engines import engine_of
from .errors import EngineError, MissingExtraError

PRECISIONS = ("int8", "fp16", "fp32")
"""Which precision is taken when none is named: the first that the bundle has for the runtime."""


@dataclass(frozen=True)
class Options:
    """How a session is opened. ``precision``: the artefact's; ``device``: the engine's name for it; ``threads`` >= 1;
    ``execution_precision``: None = the artefact's own arithmetic (fp32 for float artefacts), or "bf16"/"fp16" where the
    engine can be asked for it."""

    precision: str
    device: str
    threads: int
    execution_precision: str | None


class Session(Protocol):
    """An artefact opened by an engine. Not safe to share between threads by itself: the classifier locks it."""

    engine: str
    """Engine and version, as "openvino 2026.4.1"."""
    device: str
    """The device in use, as the engine reports it after opening."""
    execution_precision: str
    """What the engine computes the products in, as far as it tells."""

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One crop (1, H, W, C) uint8, contiguous -> feature (D,) and logits (K,), fresh float32 arrays."""

    def close(self) -> None:
        """Give back what the engine holds."""


class Runtime(Protocol):
    """What an adapter module offers."""

    def engine(self) -> str:
        """Engine and version."""

    def devices(self) -> tuple[str, ...]:
        """Names that ``Options.device`` may have on this machine, the default first."""

    def open(self, files: Sequence[Path], options: Options) -> Session:
        """Open an artefact. Raises EngineError when the engine refuses the file, the device or the precision."""


def load_runtime(name: str) -> Runtime:
    """The adapter of a runtime.

    Raises EngineError for a name that nobody offers, MissingExtraError when its engine is not installed.
    """
    engine = engine_of(name)
    if not engine.installed:
        raise MissingExtraError(f"the engine of the runtime {name!r}", engine.extra)
    try:
        return cast(Runtime, import_module(engine.adapter))
    except Exception as error:  # a sick library, or a driver behind it, raises what it likes
        raise EngineError(f"the runtime {name!r} is installed but does not import: {one_line(error)}") from error


def run(session: Session, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``session.run``, with an engine's own exception (some refuse a model only at its first run) as an EngineError."""
    try:
        return session.run(crop)
    except Exception as error:  # engines raise what they like
        raise EngineError(f"{session.engine} on {session.device} failed while running: {one_line(error)}") from error


def default_threads() -> int:
    """Threads when none are named: the processors this process may use, at most 4. A container's share counts: with more
    threads than that, each inference waits for its next period."""
    share = container_limits()[0]
    return min(4, usable_processors(), 4 if share is None else max(1, math.ceil(share)))


def usable_processors() -> int:
    """Processors that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def one_line(error: BaseException) -> str:
    """The last telling line of an engine's error, shortened: engines print traces of their own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
