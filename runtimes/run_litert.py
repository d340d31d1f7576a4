"""LiteRT (TensorFlow Lite): ai-edge-litert, else the older tflite_runtime; ``engine`` says which. Artefact: .tflite.

Devices: "CPU" (XNNPACK) and "delegate:PATH" for a vendor's external delegate (an NPU's shared library). What a delegate
leaves runs in LiteRT's own kernels; a delegate that takes nothing is an error, never a slower success.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import EngineError
from fer_edge.runtime import File, Options, Signature, TensorType, check_outputs, loaded, one_line

try:
    import ai_edge_litert as package
    from ai_edge_litert import interpreter as tflite

    _NAME = "ai-edge-litert"
except ModuleNotFoundError as error:
    if error.name != "ai_edge_litert":  # it is there and broken: that is worth an error, not an older engine
        raise
    import tflite_runtime as package
    from tflite_runtime import interpreter as tflite

    _NAME = "tflite_runtime"

_DELEGATE = "delegate:"
_ONE_OPERATOR = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA4AAAAAMAAAABAAAABAAAACj///8BAAAAEAAAAAwAFAAQAAwACAAEAAwAAAAQAAAAUAAAAF"
    "QAAABYAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABAAAAAAAAALDAAAABAAAACA////AQAAAAEAAAACAAAAAAAAAAAAAAABAAAAAQAAAAEAAAAA"
    "AAAAAgAAADAAAAAEAAAA5P///wgAAAAMAAAAAQAAAHkAAAABAAAAAQAAAAwADAAIAAAAAAAEAAwAAAAIAAAADAAAAAEAAAB4AAAAAQAAAAEAAAABAAAACA"
    "AAAAQABAAEAAAA"
)
"""y = x + x of one float32, as TensorFlow Lite has read it since its first release."""
_WITHOUT_XNNPACK = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def engine() -> str:
    """Engine and version, with the package's name: tflite_runtime 2.14 answers some models with NaN."""
    return f"{_NAME} {package.__version__}"


def devices() -> tuple[str, ...]:
    """The CPU. An external delegate is named by its file: delegate:/usr/lib/libvx_delegate.so."""
    return ("CPU",)


def try_device(device: str) -> None:
    """Run a model of one operator on the CPU; a delegate is tried with the artefact that it is for."""
    interpreter = tflite.Interpreter(model_content=_ONE_OPERATOR)
    interpreter.allocate_tensors()
    interpreter.invoke()


class _Session:
    def __init__(self, interpreter: Any, device: str, precision: str) -> None:
        self.engine = engine()
        self.device = device
        self.execution_precision = precision
        self._interpreter = interpreter
        # The signature names the outputs; the tensor indices behind it are read once, which is faster per call.
        inputs, outputs = interpreter.get_input_details(), interpreter.get_signature_runner().get_output_details()
        self.signature = Signature(
            tuple(map(_tensor_type, inputs)), {name: _tensor_type(value) for name, value in outputs.items()}
        )
        check_outputs(outputs)
        self._input = inputs[0]["index"]
        self._feature, self._logits = int(outputs["feature"]["index"]), int(outputs["logits"]["index"])

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, crop)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._feature)[0], self._interpreter.get_tensor(self._logits)[0]

    def close(self) -> None:
        del self._interpreter


def _tensor_type(details: Any) -> TensorType:
    return TensorType(tuple(map(int, details["shape_signature"])), np.dtype(details["dtype"]).name)


def open(files: Sequence[File | Path], options: Options) -> _Session:
    """Open an artefact. Raises EngineError for an unknown device or precision, or when the engine refuses the file."""
    file, device = files[0], options.device
    if device.upper() != "CPU" and not device.startswith(_DELEGATE):
        raise EngineError(f"litert has no device {device!r}; there are CPU and delegate:PATH (a vendor's delegate library)")
    if options.execution_precision not in (None, "fp32"):
        raise EngineError(
            f"litert cannot be asked for {options.execution_precision}: it follows the artefact; use a fp16 or int8 artefact"
        )
    try:
        delegates = [tflite.load_delegate(device.removeprefix(_DELEGATE))] if device.startswith(_DELEGATE) else None
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"litert cannot load the delegate {device.removeprefix(_DELEGATE)}: {one_line(error)}") from error
    try:
        (content,) = (each.content for each in loaded(files))
        interpreter = tflite.Interpreter(
            model_content=content,
            num_threads=options.threads,
            experimental_delegates=delegates,
            # Without XNNPACK, which would be one delegate more, it shows whether the vendor's took anything.
            experimental_op_resolver_type=_WITHOUT_XNNPACK if delegates else tflite.OpResolverType.AUTO,
        )
        interpreter.allocate_tensors()
        if delegates and not any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details()):
            raise EngineError(
                f"the delegate {device.removeprefix(_DELEGATE)} takes no operator of {file.name}: all of it would run on "
                "the CPU; ask for CPU, or check that the delegate fits this device"
            )
        return _Session(interpreter, device if delegates else "CPU", "int8+fp32" if options.precision == "int8" else "fp32")
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise EngineError(f"{engine()} refuses {file.name}: {one_line(error)}") from error
