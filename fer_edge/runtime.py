"""What an adapter of an engine offers: it is a module with the functions of :class:`Runtime`, imported when it is used.
``engines.py`` has the table of them."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .cache import Store, announced
from .container import container_limits
from .engines import engine_of, installed_engine
from .errors import BundleError, EngineError, FerEdgeError, UsageError
from .formats import check_model

T = TypeVar("T")

MAX_THREADS = 1024
"""More than any box of ours has processors; engines make as many threads as they are told, until the memory is gone."""


@dataclass(frozen=True)
class Options:
    """How a session is opened. ``precision``: the artefact's; ``device``: the engine's name for it; ``threads`` >= 1;
    ``execution_precision``: None = the artefact's own arithmetic (fp32 for float artefacts), or "bf16"/"fp16" where the
    engine can be asked for it."""

    precision: str
    device: str
    threads: int
    execution_precision: str | None
    store: Store | None = None
    """Where what the engine builds is kept for the next start; None: nowhere."""


@dataclass(frozen=True)
class File(os.PathLike[str]):
    """A file of an artefact as it was read and checked. An engine is given ``content``, so that what was hashed is what runs
    and nothing else is read; ``path`` names it in messages."""

    path: Path
    content: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return self.path.name

    def __fspath__(self) -> str:
        return str(self.path)


def loaded(files: Iterable[File | Path]) -> list[File]:
    """Files as they are, and what paths name, read now."""
    return [file if isinstance(file, File) else File(file, file.read_bytes()) for file in files]


@dataclass(frozen=True)
class TensorType:
    """Shape and type of an input or output. ``dtype``: numpy's name, or the engine's where numpy has none; a number of the
    shape that is not fixed is -1."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives; outputs by name."""

    inputs: tuple[TensorType, ...]
    outputs: Mapping[str, TensorType]


def signature(height: int, width: int, channels: int, feature_dim: int, labels: int) -> Signature:
    """Of an artefact (design: uint8 crop in, float32 ``feature`` (1, D) and ``logits`` (1, K) out)."""
    outputs = {"feature": TensorType((1, feature_dim), "float32"), "logits": TensorType((1, labels), "float32")}
    return Signature((TensorType((1, height, width, channels), "uint8"),), outputs)


@dataclass(frozen=True)
class Operator:
    """An operator as an engine placed it. ``name``, ``kind`` and ``kernel`` in the engine's words ("": it does not tell);
    ``unit``: the compute unit ("CPU", "CPU, XNNPACK", "CUDA"); ``sources``: the names, in the artefact's file, of the matrix
    products and convolutions that became this operator."""

    name: str
    kind: str
    unit: str
    kernel: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatorTime:
    """What an engine's own profiler says of an operator that it ran: milliseconds of one inference."""

    name: str
    kind: str
    unit: str
    ms: float


@dataclass(frozen=True)
class Placement:
    """Where an engine runs an artefact. ``operators``: of the graph that it was given or made, constants aside; ``times``:
    by its profiler, empty without one, and ``call_ms`` what the profiled calls took as seen from outside; ``note``: what the
    engine does not tell, in one line."""

    operators: tuple[Operator, ...]
    times: tuple[OperatorTime, ...] = ()
    call_ms: float | None = None
    note: str = ""


class AdapterSession(Protocol):
    """An artefact opened by an adapter. Not safe to share between threads by itself: the classifier locks it."""

    engine: str
    """Engine and version, as "openvino 2026.4.1"."""
    device: str
    """The device in use, as the engine reports it after opening."""
    execution_precision: str
    """What the engine computes the products in, as far as it tells."""
    signature: Signature
    """What the opened model takes and gives, as the engine tells."""

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One crop (1, H, W, C) uint8, contiguous -> feature (D,) and logits (K,), fresh float32 arrays."""

    def close(self) -> None:
        """Give back what the engine holds."""


class Runtime(Protocol):
    """What an adapter module offers. It may also offer ``place(files, options, crop, calls)``: see :func:`place`."""

    def engine(self) -> str:
        """Engine and version."""

    def devices(self) -> tuple[str, ...]:
        """Names that ``Options.device`` may have on this machine, the default first."""

    def try_device(self, device: str) -> None:
        """Run a model of one operator on a device. Raises whatever the engine raises when the device does not start."""

    # An adapter may have ``least_kept(device, precision) -> float | None``: the bytes of an artefact from which it keeps
    # what it builds in ``Options.store`` by itself; None, or no such function: it has nothing to keep.

    def open(self, files: Sequence[File | Path], options: Options) -> AdapterSession:
        """Open an artefact, the file to begin with first; :func:`loaded` reads those that are paths. Raises EngineError when
        the engine refuses the file, the device or the precision."""


class Owned(Generic[T]):
    """An object of an engine that only the process that made it destroys.

    An engine's threads do not survive a fork: whoever destroys its objects in a child waits for them for ever, or aborts. So
    the object has one reference that Python does not know of, and a child never drops it: not by ``release``, not when
    garbage is collected, not at its end."""

    def __init__(self, value: T) -> None:
        self.value = value
        self._pid = os.getpid()
        self._reference = ctypes.py_object(value)
        ctypes.pythonapi.Py_IncRef(self._reference)

    @property
    def ours(self) -> bool:
        """Whether this process made it."""
        return self._pid == os.getpid()

    # Bound here: at the end of a process the module's names may be gone before its objects.
    def __del__(self, pid: Callable[[], int] = os.getpid, drop: Any = ctypes.pythonapi.Py_DecRef) -> None:
        if self._pid == pid():
            drop(self._reference)


class Session:
    """An artefact, open in an engine, and destroyed by the process that opened it alone."""

    def __init__(self, opened: AdapterSession) -> None:
        self.engine = opened.engine
        self.device = opened.device
        self.execution_precision = opened.execution_precision
        self.signature = opened.signature
        self.run = opened.run
        self.cache = ""
        """What became of the cache: "from the cache", "kept for the next start", ..., "" where none was looked at."""
        self._owned = Owned(opened)

    def close(self) -> None:
        """Give back what the engine holds; in a forked child, where that would wait for the parent's threads, nothing."""
        if self._owned.ours:
            self._owned.value.close()


def load_runtime(name: str) -> Runtime:
    """The adapter of a runtime.

    Raises EngineError for a name that nobody offers, MissingExtraError when its engine is not installed.
    """
    engine = installed_engine(name)
    try:
        return cast(Runtime, import_module(engine.adapter))
    except Exception as error:  # a sick library, or a driver behind it, raises what it likes
        raise EngineError(f"the runtime {name!r} is installed but does not import: {one_line(error)}") from error


def open_model(
    runtime: str,
    files: Sequence[File | Path],
    precision: str,
    device: str | None,
    threads: int,
    execution_precision: str | None = None,
    expected: Signature | None = None,
    store: Store | None = None,
) -> Session:
    """Open an artefact's files, the first one first, in the engine of a runtime; ``device`` None: the engine's CPU;
    ``store``: where what the engine builds may be kept.

    Raises EngineError, MissingExtraError or UsageError, and BundleError when a file is of another format than its ending
    says, or wants data beyond these files, or when what was opened is not of the ``expected`` signature."""
    if threads > MAX_THREADS:
        raise UsageError(f"no engine works with {threads} threads; the limit is {MAX_THREADS}")
    adapter, engine = load_runtime(runtime), engine_of(runtime)
    suffixes = engine.suffixes
    if suffixes and tuple(Path(file).suffix for file in files) != suffixes:
        names = ", ".join(Path(file).name for file in files)
        raise BundleError(f"{names}: an artefact of {runtime} is made of files ending in {' and '.join(suffixes)}")
    try:
        opening = loaded(files)
        for file in opening:
            check_model(file.path, file.content, [other.name for other in opening])
        where = (engine.device or adapter.devices()[0]) if device is None else device
        kept = _store(adapter, runtime, where, precision, opening, store)
        options = Options(precision, where, threads, execution_precision, kept)
        long = kept is not None or where.upper() != "CPU"
        with announced(f"{runtime} opens {opening[0].name} on {where}") if long else nullcontext():
            session = Session(adapter.open(opening, options))
        session.cache = kept.state[-1] if kept and kept.state else ""
        problem = "" if expected is None else _difference(session.signature, expected)
    except FerEdgeError:
        raise
    except Exception as error:  # engines, and adapters of other packages, raise what they like
        raise EngineError(f"{runtime} cannot open {files[0].name}: {one_line(error)}") from error
    if problem:
        session.close()
        raise BundleError(f"{os.fspath(files[0])} is not the model that the manifest promises: {problem}")
    return session


def _store(
    adapter: Runtime, runtime: str, device: str, precision: str, files: Sequence[File], store: Store | None
) -> Store | None:
    """The store that an adapter is given: where it was asked for, or where the model is so large that it pays."""
    if store is None:
        return None
    least: float | None = getattr(adapter, "least_kept", lambda *_: None)(device, precision)
    if least is None and store.asked:
        raise UsageError(f"{runtime} on {device} builds nothing that could be kept: leave the cache out")
    size = sum(len(file.content) for file in files)
    return store if least is not None and (store.asked or size >= least) else None


def place(
    runtime: str,
    files: Sequence[File | Path],
    precision: str,
    device: str | None,
    threads: int,
    execution_precision: str | None,
    crop: NDArray[np.uint8],
    calls: int,
) -> Placement:
    """Open an artefact once more to see where its engine runs each operator. ``crop`` is what it is run on, ``calls`` times
    with the engine's profiler on; 0: no times are asked for. Raises as :func:`open_model` does."""
    adapter, engine = load_runtime(runtime), engine_of(runtime)
    look = getattr(adapter, "place", None)
    if look is None:
        return Placement((), note=f"{runtime} does not tell where its operators run")
    where = (engine.device or adapter.devices()[0]) if device is None else device
    try:
        found: Placement = look(loaded(files), Options(precision, where, threads, execution_precision), crop, calls)
    except FerEdgeError:
        raise
    except Exception as error:  # engines raise what they like
        raise EngineError(f"{runtime} does not tell where {files[0].name} runs: {one_line(error)}") from error
    return found


def _difference(found: Signature, expected: Signature) -> str:
    """What of a model's signature is not as expected, in words; "" when all is."""
    if found.inputs != expected.inputs:
        return f"it takes {' and '.join(map(str, found.inputs))}, not {' and '.join(map(str, expected.inputs))}"
    if problem := _other_outputs(found.outputs):
        return problem
    for name, kind in expected.outputs.items():
        if found.outputs[name] != kind:
            return f"its output {name} is {found.outputs[name]}, not {kind}"
    return ""


def check_outputs(names: Iterable[str]) -> None:
    """Raise ValueError unless a model has the outputs of an artefact, ``feature`` and ``logits``, and no other."""
    if problem := _other_outputs(names):
        raise ValueError(problem)


def _other_outputs(names: Iterable[str]) -> str:
    names = sorted(names)
    return "" if names == ["feature", "logits"] else f"its outputs are {', '.join(names) or 'none'}, not feature and logits"


def run(session: Session | AdapterSession, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
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
