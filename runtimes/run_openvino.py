"""OpenVINO. Artefact: .xml and .bin. The CPU plug-in would compute float artefacts in bf16 where it can; here it is
told not to."""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from math import inf
from pathlib import Path
from weakref import WeakSet

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from fer_edge.cache import LARGE, Store
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

_IMPORTED_BY = os.getpid()
_OPEN: WeakSet[_Session] = WeakSet()
"""Sessions that were opened and not closed. A child never destroys those that it inherits."""
_BLOB = "model.blob"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_PRODUCTS = (
    "Convolution",
    "FullyConnected",
    "MatMul",
    "Subgraph_MatMul",
    "Deconvolution",
    "ScaledDotProductAttention",
    "MHA",
)


def engine() -> str:
    """Engine and version."""
    return f"openvino {ov.__version__.split('-')[0]}"


def devices() -> tuple[str, ...]:
    """Devices of this machine, the CPU first."""
    return _devices(ov.Core())


def _devices(core: ov.Core) -> tuple[str, ...]:
    return tuple(sorted(core.available_devices, key=lambda name: name != "CPU"))


def try_device(device: str) -> None:
    """Compile a model of one operator for this device, and run it."""
    _one_operator(device)([np.ones((1, 8), np.float32)])


def _one_operator(device: str) -> ov.CompiledModel:
    x = ov.opset8.parameter([1, 8], np.float32)
    return ov.Core().compile_model(ov.Model([ov.opset8.relu(x)], [x]), device)


@cache
def _stay(process: int) -> None:
    """Keep a small model to the end of a forked child. TBB, OpenVINO's pool of threads, ends with its last user, and aborts
    in a child, where the threads that the parent began are missing."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_one_operator("CPU")))


def _stay_to_the_end() -> None:
    """In a forked child that inherits no open session, and with it no user of TBB: be one before the libraries end, whether
    or not the child uses OpenVINO itself. Any thread that it began may have taken the place of one that is missing."""
    if not _OPEN:
        atexit.register(lambda: _stay(os.getpid()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_to_the_end)


def _where_they_lie(weights: bytes) -> ov.Tensor:
    """Weights as a tensor on the memory that they are in. OpenVINO would copy bytes, and takes no memory that cannot be
    written; weights it only reads (those of a file are mapped so)."""
    if not weights:
        return ov.Tensor(np.zeros(1, np.uint8))
    memory = np.frombuffer(weights, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    return ov.Tensor(np.ctypeslib.as_array(memory, (len(weights),)), shared_memory=True)


class _Session:
    def __init__(self, compiled: ov.CompiledModel, execution_precision: str, memory: object) -> None:
        self.engine = engine()
        self.signature = Signature(tuple(map(_tensor_type, compiled.inputs)), dict(map(_output, compiled.outputs)))
        check_outputs(self.signature.outputs)
        self.device = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        self.execution_precision = execution_precision
        self._request = compiled.create_infer_request()
        # A preset input tensor saves 80 us over infer([x]): the crop is copied into memory that the engine already knows.
        self._input = self._request.get_input_tensor().data
        self._shape = self._input.shape
        self._feature = self._request.get_tensor("feature").data
        self._logits = self._request.get_tensor("logits").data
        self._memory = memory  # the engine reads it as long as it lives
        _OPEN.add(self)

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if crop.shape != self._shape:  # numpy would repeat one channel for three
            raise ValueError(f"a crop of {crop.shape}, and it takes {self._shape}")
        self._input[:] = crop
        self._request.infer()
        return self._feature[0].copy(), self._logits[0].copy()

    def close(self) -> None:
        _OPEN.discard(self)
        del self._request, self._input, self._feature, self._logits, self._memory


def _tensor_type(port: ov.ConstOutput) -> TensorType:
    shape = tuple(n.get_length() if n.is_static else -1 for n in port.get_partial_shape())
    name = port.get_element_type().get_type_name()
    return TensorType(shape, {"u8": "uint8", "f32": "float32"}.get(name, name))


def _output(port: ov.ConstOutput) -> tuple[str, TensorType]:
    names = sorted(port.get_names(), key=lambda name: (name not in ("feature", "logits"), name))
    return names[0] if names else "one without a name", _tensor_type(port)


def open(files: Sequence[File | Path], options: Options) -> _Session:
    """Compile an artefact. Raises EngineError for an unknown device or precision, or when OpenVINO refuses the file."""
    return _open(files, options, {})


def _open(files: Sequence[File | Path], options: Options, settings: Mapping[str, object]) -> _Session:
    # One for each session, and gone with it: while a Core lives, the threads of closed sessions wait to be used again, and
    # after a fork a child would take them for its own.
    core = ov.Core()
    if os.getpid() != _IMPORTED_BY:
        _stay(os.getpid())
    device, wanted = options.device.upper(), options.execution_precision or "fp32"
    base = device.split(".")[0]
    # Listing them asks the drivers of GPUs and NPUs, which takes longer than a small model's start. AUTO and its kin are no
    # devices: they choose one without a word.
    known = ("CPU",) if device == "CPU" else _devices(core)
    if base not in {name.split(".")[0] for name in known}:
        raise EngineError(f"openvino has no device {device!r} here; there are {', '.join(known)}")
    if wanted not in _HINTS:
        raise EngineError(f"openvino cannot be asked for {wanted!r}; choose one of {', '.join(_HINTS)}")
    config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", **settings}
    if base != "NPU" or options.execution_precision:
        config["INFERENCE_PRECISION_HINT"] = _HINTS[wanted]
    if base == "CPU":
        config |= {"INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
    try:
        compiled, memory = _compiled(core, files, device, config, options.store)
        session = _Session(compiled, _execution_precision(compiled), memory)
        got = _hint(compiled) if options.execution_precision else wanted
    except (RuntimeError, ValueError, TypeError) as error:
        raise EngineError(f"openvino on {device} refuses {files[0].name}: {one_line(error)}") from error
    if got != wanted:
        raise EngineError(f"openvino on {session.device} was asked for {wanted} and would compute in {got}")
    return session


def _compiled(
    core: ov.Core, files: Sequence[File | Path], device: str, config: dict[str, object], store: Store | None
) -> tuple[ov.CompiledModel, object]:
    """The compiled model, from the store or else into it, and the memory that it reads."""
    built = {"engine": engine(), "build": ov.__version__, "device": device, "options": dict(config)}
    if store is not None:
        built["device_name"] = str(core.get_property(device, "FULL_DEVICE_NAME"))
        found = store.read(built)
        if found is not None:
            try:
                return _imported(core, found[_BLOB], device, config), found[_BLOB]
            except (KeyError, RuntimeError) as error:
                store.remove(built, f"openvino refuses it: {one_line(error)}")
    # From bytes: by its name OpenVINO would take any .bin that lies beside the .xml.
    model, weights = (file.content for file in loaded(files))
    began = time.monotonic()
    compiled = core.compile_model(core.read_model(model.decode(), _where_they_lie(weights)), device, config)
    if store is not None:
        seconds = time.monotonic() - began
        try:
            store.write(built, {_BLOB: compiled.export_model().getvalue()}, seconds)
        except RuntimeError as error:  # a plug-in that exports nothing
            store.refused(f"openvino on {device} gives nothing away: {one_line(error)}")
    return compiled, weights


def _imported(core: ov.Core, blob: bytes, device: str, config: dict[str, object]) -> ov.CompiledModel:
    """A compiled model from the memory that it lies in; OpenVINO 2025 takes a stream alone, and copies it."""
    try:
        return core.import_model(_where_they_lie(blob), device, config)
    except TypeError:
        return core.import_model(BytesIO(blob), device, config)


def least_kept(device: str, precision: str) -> float:
    """Bytes of an artefact from which a compiled model is kept by itself. On a CPU it is what int8 needs that takes long: a
    float model starts as soon as its copy has been hashed."""
    return LARGE if precision == "int8" or not device.upper().startswith("CPU") else inf


def _hint(compiled: ov.CompiledModel) -> str:
    name = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return _NAMES.get(name, str(name))


def _execution_precision(compiled: ov.CompiledModel) -> str:
    """Precisions of the layers that hold the products, most frequent first, as the compiled graph tells: "int8+fp32"."""
    seen: Counter[str] = Counter()
    try:
        operations = compiled.get_runtime_model().get_ops()
    except RuntimeError:  # not every plug-in shows its graph
        return "unknown"
    for op in operations:
        info = op.get_rt_info()
        if "layerType" in info and str(info["layerType"].astype(str)) in _PRODUCTS:
            precision = str(info["runtimePrecision"].astype(str))
            seen[_NAMES.get(precision, precision)] += 1
    return "+".join(name for name, _ in seen.most_common()) or "unknown"


_NO_OPERATORS = ("Input", "Output", "Const")


def place(files: Sequence[File | Path], options: Options, crop: NDArray[np.uint8], calls: int) -> Placement:
    """Nodes of the compiled graph, and their times by ``PERF_COUNT``: means over all calls, in whole microseconds each."""
    session = _open(files, options, {"PERF_COUNT": True} if calls else {})
    try:
        try:
            nodes = session._request.get_compiled_model().get_runtime_model().get_ordered_ops()
        except RuntimeError:
            return Placement((), note=f"openvino does not show the compiled graph of {session.device}")
        operators = tuple(found for node in nodes if (found := _operator(node, session.device)) is not None)
        if not calls:
            return Placement(operators)
        session.run(crop)
        began = time.perf_counter()
        for _ in range(calls):
            session._request.infer()
        call_ms = (time.perf_counter() - began) * 1e3 / calls
        times = tuple(
            OperatorTime(info.node_name, info.node_type, session.device, info.real_time.total_seconds() * 1e3)
            for info in session._request.get_profiling_info()
            if info.real_time.total_seconds()
        )
        return Placement(operators, times, call_ms)
    finally:
        session.close()


def _operator(node: ov.Node, device: str) -> Operator | None:
    info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
    kind = info.get("layerType", node.get_type_name())
    if kind in _NO_OPERATORS:
        return None
    # OpenVINO calls a product "NAME_original" when the scaling after it takes its name over.
    layers = info.get("originalLayersNames", "").split(",") if kind in _PRODUCTS else ()
    sources = tuple(layer.removesuffix("_original") for layer in layers)
    return Operator(node.get_friendly_name(), kind, device, info.get("primitiveType", ""), sources)
