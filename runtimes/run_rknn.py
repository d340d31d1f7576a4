"""Rockchip's NPUs. Artefact: .rknn, which gives ``feature``, and an npz with the class constants and what a simulator needs.

Devices: "NPU" (rknn-toolkit-lite2, on the chip: written by its documentation and never run by us) and "simulator"
(rknn-toolkit2, on a host: what the compiler's quantized graph answers)."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import read_npz
from fer_edge.errors import EngineError, importable
from fer_edge.runtime import File, Options, Signature, loaded, one_line, signature

_INT8, _FP16 = ("data", "model", "ranges"), ("graph",)


def engine() -> str:
    """Engine and version: of the board's package, else of the host's."""
    name = "rknn-toolkit-lite2" if importable("rknnlite.api") else "rknn-toolkit2"
    return f"{name} {metadata.version(name)}"


def devices() -> tuple[str, ...]:
    """ "NPU" where the board's package is, "simulator" where the host's is."""
    return tuple(name for name, package in (("NPU", "rknnlite.api"), ("simulator", "rknn.api")) if importable(package))


def try_device(device: str) -> None:
    """Whether the package imports; the NPU itself is tried with the artefact that it is for."""
    with _quiet():
        importlib.import_module("rknnlite.api" if device == "NPU" else "rknn.api")


class _Session:
    def __init__(self, rknn: Any, device: str, precision: str, constants: NDArray[np.float32], shape: Sequence[int]) -> None:
        self.engine = engine()
        self.device = device
        self.execution_precision = precision
        self._rknn, self._constants = rknn, constants
        (width,) = self._feature(np.zeros(shape, np.uint8)).shape
        _, height, across, channels = shape
        self.signature: Signature = signature(height, across, channels, width, len(constants))

    def _feature(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = self._rknn.inference(inputs=[crop], data_format=["nhwc"])
        if not outputs:
            raise ValueError("it gives no output")
        return np.array(outputs[0][0], np.float32)

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        feature = self._feature(crop)
        return feature, self._constants @ (feature / np.sqrt(feature @ feature))

    def close(self) -> None:
        rknn = self.__dict__.pop("_rknn", None)
        if rknn is not None:
            rknn.release()


def open(files: Sequence[File | Path], options: Options) -> _Session:
    """Open an artefact. Raises EngineError for an unknown device or precision, or when the engine refuses the file."""
    known = devices()
    device = next((name for name in known if name.lower() == options.device.lower()), None)
    if device is None:
        raise EngineError(f"rknn has no device {options.device!r} here; there are {', '.join(known) or 'none'}")
    if options.execution_precision not in (None, options.precision):
        raise EngineError(f"rknn cannot be asked for {options.execution_precision}: it follows the artefact")
    model, head = loaded(files)
    arrays = read_npz(head.path, {"constants", "shape"}, {*_INT8, *_FP16}, head.content)
    constants, shape = arrays.pop("constants"), tuple(map(int, arrays.pop("shape").reshape(-1)))
    if constants.ndim != 2 or constants.dtype != np.float32 or len(shape) != 4:
        raise EngineError(f"{head.path} holds no class constants")
    try:
        with _quiet():
            rknn = _on_npu(model.content) if device == "NPU" else _simulated(arrays, shape[3])
            return _Session(rknn, device, options.precision, constants, shape)
    except (EngineError, MemoryError):
        raise
    except Exception as error:  # the toolkit raises what it likes
        raise EngineError(f"{engine()} refuses {model.name}: {one_line(error)}") from error


def _on_npu(content: bytes) -> Any:
    api: Any = importlib.import_module("rknnlite.api")
    rknn = api.RKNNLite()
    with tempfile.NamedTemporaryFile(suffix=".rknn") as file:  # it takes a path alone
        file.write(content)
        file.flush()
        _went_well(rknn.load_rknn(file.name), "load_rknn")
        _went_well(rknn.init_runtime(), "init_runtime")
    return rknn


def _simulated(parts: dict[str, NDArray[Any]], channels: int) -> Any:
    """The toolkit simulates what it has just built, so it builds again: the same numbers from the same parts."""
    api: Any = importlib.import_module("rknn.api")
    rknn = api.RKNN(verbose=False)
    with tempfile.TemporaryDirectory() as work:
        for name, content in parts.items():
            (Path(work) / f"{name}.onnx").write_bytes(content.tobytes())
        at = {name: os.path.join(work, f"{name}.onnx") for name in parts}
        if set(parts) == set(_INT8):
            code = rknn.hybrid_quantization_step2(
                model_input=at["model"], data_input=at["data"], model_quantization_cfg=at["ranges"]
            )
            _went_well(code, "hybrid_quantization_step2")
        else:
            pixels = {"mean_values": [[0] * channels], "std_values": [[1] * channels]}
            _went_well(rknn.config(target_platform="rk3588", **pixels), "config")
            _went_well(rknn.load_onnx(model=at["graph"]), "load_onnx")
            _went_well(rknn.build(do_quantization=False), "build")
        _went_well(rknn.init_runtime(), "init_runtime")
    return rknn


def _went_well(code: int, step: str) -> None:
    if code != 0:
        raise ValueError(f"{step} ended with {code}")


@contextmanager
def _quiet() -> Iterator[None]:
    """What the toolkit prints on stdout goes to stderr: stdout is for answers."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
