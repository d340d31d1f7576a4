"""ONNX Runtime. Artefact: .onnx. A provider that falls back to the CPU is an error, never a slower success."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fer_edge.errors import EngineError
from fer_edge.runtime import File, Options, Signature, TensorType, check_outputs, loaded, one_line

_SUFFIX = "ExecutionProvider"
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
    known = devices()
    name = next((n for n in known if n.lower() == options.device.lower().removesuffix(_SUFFIX.lower())), None)
    if name is None:
        raise EngineError(f"onnxruntime has no device {options.device!r} in this build; there are {', '.join(known)}")
    if options.execution_precision not in (None, "fp32"):
        raise EngineError(
            f"onnxruntime cannot be asked for {options.execution_precision}: "
            "it follows the artefact; use a fp16 or int8 artefact"
        )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    if name != "CPU":
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    wanted = f"{name}{_SUFFIX}"
    try:
        (file,) = loaded(files)
        session = ort.InferenceSession(file.content, settings, providers=[wanted], enable_fallback=0)
        opened = _Session(session, _execution_precision(options.precision, name))
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise EngineError(f"onnxruntime on {name} refuses {files[0].name}: {one_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise EngineError(
            f"onnxruntime was asked for {name} and fell back to {opened.device}; "
            f"check the driver, or ask for {opened.device}"
        )
    if name != "CPU":
        opened.device = _device(session, name, files[0].name)
    return opened


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
