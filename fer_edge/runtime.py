"""Runtimes by name. An adapter is a module with the functions of :class:`Runtime`; it is imported when it is used.

A new runtime is one file in ``runtimes/``, one line in RUNTIMES and one extra. Other packages offer theirs under the
entry-point group ``fer_edge.runtimes`` (name = module)."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .container import container_limits
from .errors import EngineError, MissingExtraError, importable

RUNTIMES = {
    "openvino": "fer_edge.runtimes.run_openvino",
    "litert": "fer_edge.runtimes.run_litert",
    "onnxruntime": "fer_edge.runtimes.run_onnxruntime",
    "null": "fer_edge.runtimes.run_null",
}
ORDER_X86 = ("openvino", "onnxruntime", "litert")
ORDER_ARM = ("litert", "onnxruntime", "openvino")
"""Which installed runtime is taken when none is named. OpenVINO on ARM runs int8 as fp16, so it comes last there."""

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


PACKAGES = {
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert", "tflite_runtime"),
    "onnxruntime": ("onnxruntime",),
    "null": (),
}
"""Import names of each engine, any one of which is enough."""


def installed(name: str) -> bool:
    """Whether a runtime's engine is there, found without importing it; of a third party's runtime, whether it is offered."""
    if name not in PACKAGES:
        return name in _offered()
    packages = PACKAGES[name]
    return not packages or any(map(importable, packages))


def _offered() -> dict[str, str]:
    """Third parties' runtimes and their modules."""
    from importlib import metadata  # a tenth of a device's start-up, and only third parties' runtimes need it

    return {point.name: point.value for point in metadata.entry_points(group="fer_edge.runtimes")}


def preferred_order() -> tuple[str, ...]:
    """The runtimes in the order in which one is chosen on this machine."""
    return ORDER_ARM if platform.machine().lower() in ("aarch64", "arm64", "armv7l", "armv8l") else ORDER_X86


def load_runtime(name: str) -> Runtime:
    """The adapter of a runtime.

    Raises EngineError for a name that nobody offers, MissingExtraError when its engine is not installed.
    """
    module = RUNTIMES.get(name)
    if module is None:
        offered = _offered()
        if name not in offered:
            raise EngineError(f"no runtime {name!r}; there are {', '.join([*RUNTIMES, *sorted(offered)])}")
        module = offered[name]
    if not installed(name):
        raise MissingExtraError(f"the engine of the runtime {name!r}", name)
    try:
        return cast(Runtime, import_module(module))
    except Exception as error:  # a sick library, or a driver behind it, raises what it likes
        raise EngineError(f"the runtime {name!r} is installed but does not import: {one_line(error)}") from error


def silence_openvino_telemetry() -> None:
    """Call before importing openvino or nncf: selects the stubs of their telemetry modules, so that neither calls out.

    Where an application imported openvino before us, its real telemetry is there already: then its messages are dropped.
    """
    loaded = sys.modules.get("openvino_telemetry")
    for name in ("start_session", "end_session", "send_event", "send_error", "send_stack_trace"):
        if loaded is not None and hasattr(loaded.Telemetry, name):
            setattr(loaded.Telemetry, name, lambda *_, **__: None)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


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
