"""The engines: one table, and the names that modules, artefacts and extras follow from it.

A runtime of ours is one file (``runtimes/run_NAME.py``), one line in ENGINES and one extra of its name; its artefacts are
made by ``converters/to_NAME.py``. Other packages offer theirs by entry points: ``fer_edge.runtimes`` (name = adapter module)
and, for ``fer-edge convert``, ``fer_edge.exporters`` (name = exporter module)."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import EngineError, MissingExtraError, importable


@dataclass(frozen=True)
class Engine:
    """One line of the table.

    ``adapter`` and ``exporter``: modules; ``extra``: of fer-edge, "" for a third party's; ``imports``: import names, any one
    of which is enough, whatever distribution gives it; ``suffixes``: endings of an artefact's files, the first file's
    first (empty: any); ``device``: where it runs when none is named ("": the first that it finds); ``place_x86`` and
    ``place_arm``: in the order in which an engine is chosen, None: only when it is named; ``environment`` and ``stubs``:
    variables to set and modules to hide before its import, so that it calls nobody."""

    name: str
    adapter: str
    exporter: str
    extra: str
    imports: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    device: str = ""
    place_x86: int | None = None
    place_arm: int | None = None
    environment: tuple[tuple[str, str], ...] = ()
    stubs: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether the engine is there, found without importing it."""
        return not self.imports or any(map(importable, self.imports))


def _ours(
    name: str,
    imports: tuple[str, ...] = (),
    suffixes: tuple[str, ...] = (),
    device: str = "CPU",
    places: tuple[int | None, int | None] = (None, None),
    environment: tuple[tuple[str, str], ...] = (),
    stubs: tuple[str, ...] = (),
    general: bool = True,
) -> Engine:
    exporter = f"fer_edge.converters.to_{name}" if suffixes and general else ""
    return Engine(
        name, f"fer_edge.runtimes.run_{name}", exporter, name, imports, suffixes, device, *places, environment, stubs
    )


ENGINES = {
    engine.name: engine
    for engine in (
        # OpenVINO on ARM runs int8 as fp16, so it comes last there. Without its telemetry package it selects a stub.
        _ours("openvino", ("openvino",), (".xml", ".bin"), places=(0, 2), stubs=("openvino_telemetry",)),
        _ours("litert", ("ai_edge_litert", "tflite_runtime"), (".tflite",), places=(2, 0)),
        # From 1.29 on it reports to its maker unless the variable stands before the import (its docs/Privacy.md).
        _ours("onnxruntime", ("onnxruntime",), (".onnx",), places=(1, 1), environment=(("ORT_DISABLE_TELEMETRY", "1"),)),
        # Its artefacts are made for one chip, by fer-edge compile, and it runs where it is named.
        _ours("rknn", ("rknnlite.api", "rknn.api"), (".rknn", ".npz"), device="", general=False),
        _ours("null", device="echo"),
    )
}
"""Runtimes by name. ``null`` answers from the golden set."""

RUNTIMES = tuple(name for name, engine in ENGINES.items() if engine.exporter)
"""Names of our runtimes that open models which are made for any box."""


PRECISIONS = ("int8", "fp16", "fp32")
"""Of artefacts. When none is named, the first of these that the bundle has for the runtime is taken."""


def engine_of(runtime: str) -> Engine:
    """The engine of a runtime, ours or a third party's. Raises EngineError for a name that nobody offers."""
    found = ENGINES.get(runtime) or offered().get(runtime)
    if found is None:
        raise EngineError(f"no runtime {runtime!r}; there are {', '.join([*ENGINES, *sorted(offered())])}")
    return found


def installed_engine(runtime: str) -> Engine:
    """As :func:`engine_of`. Raises MissingExtraError, too, when the engine is not installed."""
    engine = engine_of(runtime)
    if not engine.installed:
        raise MissingExtraError(f"the engine of the runtime {runtime!r}", engine.extra)
    return engine


def installed(runtime: str) -> bool:
    """Whether a runtime's engine is there, found without importing it; of a third party's, whether it is offered."""
    found = ENGINES.get(runtime) or offered().get(runtime)
    return found is not None and found.installed


def offered() -> dict[str, Engine]:
    """Third parties' runtimes."""
    from importlib import metadata  # a tenth of a device's start-up, and only third parties' runtimes need it

    exporters = {point.name: point.value for point in metadata.entry_points(group="fer_edge.exporters")}
    points = metadata.entry_points(group="fer_edge.runtimes")
    return {point.name: Engine(point.name, point.value, exporters.get(point.name, ""), "") for point in points}


def preferred_order(machine: str = "") -> tuple[str, ...]:
    """The runtimes in the order in which one is chosen on a machine (its name as uname(2) has it), on this one without a
    name."""
    arm = (machine or platform.machine()).lower() in ("aarch64", "arm64", "armv7l", "armv8l")
    places = {name: engine.place_arm if arm else engine.place_x86 for name, engine in ENGINES.items()}
    return tuple(sorted((name for name in places if places[name] is not None), key=lambda name: places[name] or 0))


def silence(engines: Iterable[Engine] = ENGINES.values()) -> None:
    """Let no engine call anybody. ``import fer_edge`` calls this, and so it comes before every import of an engine, in every
    room and worker.

    An engine that the application imported before us has read its variable already; of its Python telemetry the messages are
    dropped."""
    for engine in engines:
        os.environ.update(engine.environment)
        for stub in engine.stubs:
            loaded = getattr(sys.modules.get(stub), "Telemetry", None)
            for name in ("start_session", "end_session", "send_event", "send_error", "send_stack_trace"):
                if hasattr(loaded, name):
                    setattr(loaded, name, lambda *_, **__: None)
            sys.modules[stub] = None  # type: ignore[assignment]
