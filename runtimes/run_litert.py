"""LiteRT (TensorFlow Lite): ai-edge-litert, else the older tflite_runtime; ``engine`` says which. Artefact: .tflite.

Devices: "CPU" (XNNPACK); "delegate:PATH" for a vendor's external delegate (an NPU's shared library); "GPU" and "NPU" by the
package's CompiledModel, where it has one. What a delegate leaves runs in LiteRT's own kernels; a delegate that takes
nothing, and an accelerator that does not take all, is an error, never a slower success.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import EngineError
from fer_edge.runtime import (
    File,
    Operator,
    Options,
    Placement,
    Signature,
    TensorType,
    check_outputs,
    loaded,
    one_line,
)

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
_ACCELERATORS = ("GPU", "NPU")
_WITHOUT_XNNPACK = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def engine() -> str:
    """Engine and version, with the package's name: tflite_runtime 2.14 answers some models with NaN."""
    return f"{_NAME} {package.__version__}"


def devices() -> tuple[str, ...]:
    """The CPU. An external delegate is named by its file: delegate:/usr/lib/libvx_delegate.so. GPU and NPU are taken by name
    too, and tried with the artefact that they are for: the package finds out only then whether the box has one."""
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


class _CompiledSession:
    """By the package's CompiledModel. ``accelerators``: names of its HardwareAccelerator. Raises EngineError where the
    package has none, or when the engine says that something would run elsewhere."""

    def __init__(self, content: bytes, accelerators: Sequence[str], threads: int, precision: str) -> None:
        self.engine = f"{engine()} CompiledModel"
        self.device = "+".join(accelerators)
        self.execution_precision = precision
        try:
            compiled = import_module(f"{package.__name__}.compiled_model")
            named = [getattr(compiled.HardwareAccelerator, name) for name in accelerators]
        except (ImportError, AttributeError) as error:
            raise EngineError(
                f"{engine()} has no CompiledModel, by which {self.device} is reached; take 2.1 or newer"
            ) from error
        chosen = named[0]
        for more in named[1:]:
            chosen |= more
        cpu = compiled.CpuOptions(num_threads=threads)
        self._model = compiled.CompiledModel.from_buffer(
            content, options=compiled.Options(hardware_accelerators=chosen, cpu_options=cpu)
        )
        if "CPU" not in accelerators and not self._model.is_fully_accelerated():
            raise EngineError(f"LiteRT says that {self.device} would not take every operator: the rest would run on the CPU")
        key = next(iter(self._model.get_signature_list()))
        inputs, outputs = self._model.get_input_tensor_details(key), self._model.get_output_tensor_details(key)
        self.signature = Signature(
            tuple(map(_compiled_type, inputs.values())), {name: _compiled_type(value) for name, value in outputs.items()}
        )
        check_outputs(outputs)
        (name,) = inputs
        self._key = key
        self._input = self._model.create_input_buffer_by_name(key, name)
        self._inputs = {name: self._input}
        self._outputs = {name: self._model.create_output_buffer_by_name(key, name) for name in outputs}
        self._sizes = {name: self.signature.outputs[name].shape[-1] for name in outputs}

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if crop.shape != self.signature.inputs[0].shape:
            raise ValueError(f"a crop of {crop.shape}, and it takes {self.signature.inputs[0].shape}")
        self._input.write(crop)
        self._model.run_by_name(self._key, self._inputs, self._outputs)
        feature, logits = (self._outputs[name].read(self._sizes[name], np.float32) for name in ("feature", "logits"))
        return feature, logits

    def close(self) -> None:
        for buffer in (self._input, *self._outputs.values()):
            with suppress(AttributeError):
                buffer.destroy()
        self._model.close()
        del self._input, self._inputs, self._outputs


def _compiled_type(details: Mapping[str, Any]) -> TensorType:
    return TensorType(tuple(map(int, details["shape"])), np.dtype(details["dtype"]).name)


def _tensor_type(details: Any) -> TensorType:
    return TensorType(tuple(map(int, details["shape_signature"])), np.dtype(details["dtype"]).name)


def open(files: Sequence[File | Path], options: Options) -> _Session | _CompiledSession:
    """Open an artefact. Raises EngineError for an unknown device or precision, or when the engine refuses the file."""
    device = options.device
    if device.upper() not in ("CPU", *_ACCELERATORS) and not device.startswith(_DELEGATE):
        raise EngineError(
            f"litert has no device {device!r}; there are CPU, GPU and NPU (by CompiledModel) and delegate:PATH (a vendor's "
            "delegate library)"
        )
    if options.execution_precision not in (None, "fp32"):
        raise EngineError(
            f"litert cannot be asked for {options.execution_precision}: it follows the artefact; use a fp16 or int8 artefact"
        )
    if device.upper() in _ACCELERATORS:
        return _open_compiled(files, device.upper(), options)
    return _open_interpreter(files, options)


def _open_compiled(files: Sequence[File | Path], device: str, options: Options) -> _CompiledSession:
    (content,) = (each.content for each in loaded(files))
    try:
        return _CompiledSession(content, (device,), options.threads, "unknown")
    except EngineError as error:
        raise EngineError(f"{files[0].name}: {error}") from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise EngineError(
            f"{engine()} does not run {files[0].name} on {device} alone ({one_line(error).lstrip('└ ')}); there is no "
            f"{device} here that it can use, or it does not take every operator: ask for CPU"
        ) from error


def _open_interpreter(files: Sequence[File | Path], options: Options) -> _Session:
    file, device = files[0], options.device
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


_NO_TIMES = "LiteRT's Python package has no profiler of operators: their times are not known"
_OWN_KERNELS = "CPU, LiteRT's kernels"


def place(files: Sequence[File | Path], options: Options, crop: NDArray[np.uint8], calls: int) -> Placement:
    """Operators by the delegate that took them: XNNPACK or the vendor's. By CompiledModel an artefact that opens is whole on
    its accelerator. There are no times: the package has a profiler in C++ only."""
    note = _NO_TIMES if calls else ""
    opened = open(files, options)
    try:
        if isinstance(opened, _CompiledSession):
            (content,) = (each.content for each in loaded(files))
            plain = tflite.Interpreter(model_content=content, experimental_op_resolver_type=_WITHOUT_XNNPACK)
            whole = (_operator(op, opened.device) for op in plain._get_ops_details())
            return Placement(tuple(whole), note=note)
        opened.run(crop)
        every = opened._interpreter._get_ops_details()
        taken = _delegated(every)
        unit = "CPU, XNNPACK" if opened.device == "CPU" else opened.device
        operators = (op for op in every if op["op_name"] != "DELEGATE")
        return Placement(tuple(_operator(op, unit if op["index"] in taken else _OWN_KERNELS) for op in operators), note=note)
    finally:
        opened.close()


def _operator(op: Mapping[str, Any], unit: str) -> Operator:
    return Operator(f"{op['op_name']} {op['index']}", op["op_name"], unit, "", (str(op["index"]),))


def _delegated(operators: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the operators that some delegate took: what lies between its outputs and its inputs. The interpreter keeps
    them in its list, and adds one operator DELEGATE for each part that was taken."""
    plain = [op for op in operators if op["op_name"] != "DELEGATE"]
    makers = {int(tensor): op for op in plain for tensor in op["outputs"]}
    taken: set[int] = set()
    for part in operators:
        if part["op_name"] != "DELEGATE":
            continue
        given = {int(tensor) for tensor in part["inputs"]}
        wanted = [int(tensor) for tensor in part["outputs"]]
        while wanted:
            tensor = wanted.pop()
            op = makers.get(tensor)
            if tensor in given or op is None or op["index"] in taken:
                continue
            taken.add(int(op["index"]))
            wanted += [int(each) for each in op["inputs"]]
    return taken
