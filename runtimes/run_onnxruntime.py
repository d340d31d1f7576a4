"""ONNX Runtime. Artefact: .onnx. A provider that falls back to the CPU is an error, never a slower success."""

from __future__ import annotations

import json
import platform
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fer_edge.container import text_of
from fer_edge.errors import EngineError
from fer_edge.runtime import (
    File,
    Operator,
    OperatorTime,
    Options,
    Placement,
    Signature,
    TensorType,
    check_outputs,
    loaded,
    one_line,
)

_SUFFIX = "ExecutionProvider"
_CUDA, _TENSORRT = "CUDA", "Tensorrt"
_INSTALL = {
    _CUDA: "a build for CUDA: onnxruntime-gpu, on a Jetson the wheel for its JetPack (docs/jetson.md)",
    _TENSORRT: "a build for TensorRT, and TensorRT: onnxruntime-gpu and tensorrt, on a Jetson the wheel for its JetPack "
    "(docs/jetson.md)",
}
"""Provider -> what to install where a build has it not."""
_NOT_DEVICES = ("AzureExecutionProvider",)
_ONE_OPERATOR = bytes.fromhex(
    "080712003a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014204"
    "0a00100d"
)
"""y = x + x of one float32: opset 13 in ONNX's own format, version 7, which every release since 1.5 reads."""


def engine() -> str:
    """Engine and version."""
    return f"onnxruntime {ort.__version__}"


def devices() -> tuple[str, ...]:
    """Providers of this build without their suffix, the CPU first: "CPU", "CUDA", "Tensorrt", ..."""
    found = [name.removesuffix(_SUFFIX) for name in ort.get_available_providers() if name not in _NOT_DEVICES]
    return tuple(sorted(found, key=lambda name: name != "CPU"))


def try_device(device: str) -> None:
    """Open a model of one operator with this provider alone, and run it."""
    name = f"{device}{_SUFFIX}"
    session = ort.InferenceSession(_ONE_OPERATOR, providers=[name], enable_fallback=0)
    if session.get_providers()[0] != name:
        raise EngineError("it falls back to the CPU")
    session.run(None, {"x": np.ones(1, np.float32)})


class _Session:
    def __init__(self, session: ort.InferenceSession, precision: str) -> None:
        self.engine = engine()
        self.signature = Signature(
            tuple(map(_tensor_type, session.get_inputs())),
            {value.name: _tensor_type(value) for value in session.get_outputs()},
        )
        check_outputs(self.signature.outputs)
        self.device = session.get_providers()[0].removesuffix(_SUFFIX)
        self.execution_precision = precision
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        feature, logits = self._session.run(("feature", "logits"), {self._input: crop})
        return feature[0], logits[0]

    def close(self) -> None:
        del self._session


def _tensor_type(value: Any) -> TensorType:
    """onnxruntime's "tensor(float)", and a shape in which a name or None stands for a number that is not fixed."""
    name = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    return TensorType(shape, {"float": "float32", "double": "float64"}.get(name, name))


def open(files: Sequence[File | Path], options: Options) -> _Session:
    """Open an artefact. Raises EngineError for an unknown provider or precision, a fallback, or a refused file."""
    return _open(files, options)


def _open(files: Sequence[File | Path], options: Options, profile: str = "") -> _Session:
    """``profile``: the beginning of the name of the file that onnxruntime's profiler writes; "": none."""
    name = _provider(options.device)
    asked = options.execution_precision
    if asked not in (None, "fp32") and (name, asked) != (_TENSORRT, "fp16"):
        raise EngineError(f"onnxruntime cannot be asked for {asked}: it follows the artefact; use a fp16 or int8 artefact")
    (file,) = loaded(files)
    try:
        session = _opened(file, name, options, profile)
        opened = _Session(session, asked or _execution_precision(options.precision, name))
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        if "install TensorRT" in str(error):
            raise EngineError(f"onnxruntime finds no TensorRT here; install {_INSTALL[_TENSORRT]}") from error
        raise EngineError(f"onnxruntime on {name} refuses {file.name}: {one_line(error)}") from error
    if session.get_providers()[0] != f"{name}{_SUFFIX}":
        raise EngineError(
            f"onnxruntime was asked for {name} and fell back to {opened.device}; check the driver and the libraries that "
            f"'fer-edge doctor' misses, or ask for {opened.device}"
        )
    if name != "CPU":
        opened.device = _device(session, name, file.name)
    return opened


def least_kept(device: str, precision: str) -> float | None:
    """Bytes of an artefact from which what was built is kept: TensorRT's engines always. On the CPU an optimised model
    starts no faster than the artefact."""
    return 0 if _provider(device) == _TENSORRT else None


def _provider(device: str) -> str:
    """The provider that a device names, without its suffix. Raises EngineError where this build has it not."""
    known, asked = devices(), device.lower().removesuffix(_SUFFIX.lower())
    name = next((n for n in known if n.lower() == asked), None)
    if name is not None:
        return name
    cure = next((f"; install {what}" for n, what in _INSTALL.items() if n.lower() == asked), "")
    raise EngineError(f"onnxruntime has no device {device!r} in this build; there are {', '.join(known)}{cure}")


def session_options(threads: int, provider: str, profile: str = "") -> ort.SessionOptions:
    """The session's options, without the provider's. ``profile``: how the name of the profiler's file begins; "": none."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    if provider != "CPU" or profile:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def provider_options(provider: str, precision: str, execution_precision: str | None, shape: Sequence[int]) -> dict[str, str]:
    """What a provider is told, without the places of its caches. ``shape``: of the one input, ``image``.

    The names are those of ONNX Runtime's page "TensorRT Execution Provider" (1.18 to 1.22). An artefact of int8 brings its
    scales (Q and DQ nodes): no calibration table is wanted. Half precision is allowed where the artefact is of it, or it was
    asked for. The shapes are the artefact's own: one engine is built, once."""
    if provider != _TENSORRT:
        return {}
    dims = "image:" + "x".join(map(str, shape))
    return {
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_fp16_enable": "1" if "fp16" in (precision, execution_precision) else "0",
        "trt_profile_min_shapes": dims,
        "trt_profile_opt_shapes": dims,
        "trt_profile_max_shapes": dims,
    }


def cache_options(folder: Path) -> dict[str, str]:
    """Where TensorRT keeps its engines and the times of their parts."""
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _opened(file: File, name: str, options: Options, profile: str) -> ort.InferenceSession:
    settings = session_options(options.threads, name, profile)

    def start(chosen: dict[str, str]) -> ort.InferenceSession:
        # What TensorRT does not take, CUDA does before the CPU has to.
        others = [_CUDA + _SUFFIX] if name == _TENSORRT and _CUDA in devices() else []
        return ort.InferenceSession(file.content, settings, providers=[(name + _SUFFIX, chosen), *others], enable_fallback=0)

    if name != _TENSORRT:
        return start(provider_options(name, options.precision, options.execution_precision, ()))
    chosen = provider_options(name, options.precision, options.execution_precision, _shape(file.content))
    if options.store is None:
        return start(chosen)
    built = {"engine": engine(), "device": name, "options": chosen, "gpu": gpu()}
    try:
        with options.store.folder_of(built) as folder:
            return start(chosen | cache_options(folder))
    except Exception as error:
        if not options.store.has(built):
            raise
        options.store.remove(built, f"onnxruntime refuses it: {one_line(error)}")
    with options.store.folder_of(built) as folder:
        return start(chosen | cache_options(folder))


def _shape(model: bytes) -> tuple[int, ...]:
    """Of an artefact's input, by onnxruntime's own reading of it on the CPU."""
    settings = session_options(1, "CPU")
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, settings, providers=[f"CPU{_SUFFIX}"])
    return _tensor_type(session.get_inputs()[0]).shape


def gpu(root: Path = Path("/")) -> list[str]:
    """What tells one GPU and its driver from another, as the system shows it: a Jetson's board and release, or the driver
    and the cards of a PC. What is built on one is of no use on another."""
    files = [root / "proc/device-tree/model", root / "etc/nv_tegra_release", root / "proc/driver/nvidia/version"]
    files += sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    texts = [" ".join((text_of(file) or "").split())[:300] for file in files]
    return [text.partition(" IRQ:")[0] for text in texts if text]


def _device(session: ort.InferenceSession, name: str, file: str) -> str:
    """The device, with the share of the nodes that stayed on the CPU: onnxruntime puts there, without a word, what a
    provider does not take. Raises EngineError when that is all of them. onnxruntime before 1.24 does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return name
    nodes = [(part.ep_name, len(part.get_nodes())) for part in session.get_provider_graph_assignment_info()]
    every, left = sum(n for _, n in nodes), sum(n for provider, n in nodes if provider == f"CPU{_SUFFIX}")
    if left == every:
        raise EngineError(f"{name} takes no operator of {file}: all of it would run on the CPU; ask for CPU")
    return f"{name} ({left} of {every} operators on CPU)" if left else name


def _execution_precision(artefact: str, device: str) -> str:
    """onnxruntime does not tell; its CPU kernels follow the artefact, except that fp16 is widened to fp32 on x86."""
    if artefact == "int8":
        return "int8+fp32"
    if artefact == "fp16":
        return "fp32" if device == "CPU" and platform.machine() in ("x86_64", "AMD64") else "fp16"
    return "fp32"


_KERNEL = "_kernel_time"
_RUN = "model_run"


def place(files: Sequence[File | Path], options: Options, crop: NDArray[np.uint8], calls: int) -> Placement:
    """Nodes by provider, as onnxruntime assigned them (before 1.24: as its profiler saw them run), and the times of its
    profiler: medians over the calls."""
    with tempfile.TemporaryDirectory(prefix="fer-edge-") as folder:
        session = _open(files, options, f"{folder}/profile")
        try:
            for _ in range(max(calls, 1)):
                session.run(crop)
            events = json.loads(Path(session._session.end_profiling()).read_text())
            assigned = _assigned(session._session)
        finally:
            session.close()
    spent, calls_ms = defaultdict(list), []
    for event in events:
        if event.get("name") == _RUN:
            calls_ms.append(event["dur"] / 1e3)
        elif event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            spent[_ran(event)].append(event["dur"] / 1e3)
    if not assigned:
        assigned = tuple(Operator(name, kind, unit, "", (_before_fusion(name),)) for name, kind, unit in spent)
    if not calls:
        return Placement(assigned)
    times = tuple(OperatorTime(*which, median(values)) for which, values in spent.items())
    return Placement(assigned, times, median(calls_ms))


def _assigned(session: ort.InferenceSession) -> tuple[Operator, ...]:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ()
    return tuple(
        Operator(node.name, node.op_type, part.ep_name.removesuffix(_SUFFIX), "", (_before_fusion(node.name),))
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def _ran(event: Mapping[str, Any]) -> tuple[str, str, str]:
    """Name, kind and unit of an event."""
    told = event["args"]
    return event["name"].removesuffix(_KERNEL), told["op_name"], told["provider"].removesuffix(_SUFFIX)


def _before_fusion(name: str) -> str:
    """onnxruntime numbers what its optimizer makes of a node: "node_conv2d_token_5" of "node_conv2d"."""
    return re.sub(r"_token_\d+$", "", name)
