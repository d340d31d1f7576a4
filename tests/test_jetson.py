"""What ONNX Runtime is told on a Jetson, as far as a box without a GPU can show it."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

import fer_edge
from fer_edge.cache import announced
from fer_edge.cli import main

pytest.importorskip("onnxruntime")

from fer_edge.runtimes import run_onnxruntime as adapter

SHAPES = {f"trt_profile_{which}_shapes": "image:1x224x224x3" for which in ("min", "opt", "max")}


@pytest.mark.parametrize(
    ("precision", "asked", "int8", "fp16"),
    [("int8", None, "1", "0"), ("int8", "fp16", "1", "1"), ("fp16", None, "0", "1"), ("fp32", None, "0", "0")],
)
def test_what_tensorrt_is_told(precision: str, asked: str | None, int8: str, fp16: str) -> None:
    """Recorded from ONNX Runtime's page "TensorRT Execution Provider"."""
    told = adapter.provider_options("Tensorrt", precision, asked, (1, 224, 224, 3))
    assert told == {"trt_int8_enable": int8, "trt_fp16_enable": fp16, **SHAPES}
    assert adapter.cache_options(Path("/own")) == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/own",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/own",
    }
    assert adapter.provider_options("CUDA", precision, None, (1, 224, 224, 3)) == {}


def test_a_build_with_tensorrt_knows_every_name() -> None:
    """Its library holds them as text."""
    package = importlib.util.find_spec("onnxruntime")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("this build of onnxruntime has no TensorRT")
    text = library.read_bytes()
    names = {**adapter.provider_options("Tensorrt", "int8", None, (1,)), **adapter.cache_options(Path("/own"))}
    assert [name for name in names if b"\0" + name.encode() + b"\0" not in text] == []


def test_a_build_takes_what_the_session_is_told(portrait: Path) -> None:
    """The options of a session for a GPU, given to this build's CPU; a name that no build knows is refused."""
    import onnxruntime as ort

    settings = adapter.session_options(2, "Tensorrt")
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (2, 1)
    assert settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    session = ort.InferenceSession(adapter._ONE_OPERATOR, settings, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == 2
    with pytest.raises(AttributeError):
        settings.no_such_option = 1


def test_the_shape_is_the_artefacts_own() -> None:
    file = Path(fer_edge.__file__).parent / "default" / "onnxruntime-int8.onnx"
    assert adapter._shape(file.read_bytes()) == (1, 48, 48, 1)


@pytest.mark.parametrize(("device", "install"), [("tensorrt", "onnxruntime-gpu and tensorrt"), ("cuda", "onnxruntime-gpu")])
def test_a_provider_that_is_not_there_says_what_to_install(
    device: str, install: str, capsys: pytest.CaptureFixture[str], portrait: Path
) -> None:
    """In one line, and nothing runs on the CPU instead."""
    if len(adapter.devices()) > 1:
        pytest.skip("this build has providers beside the CPU")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(portrait), "--runtime", "onnxruntime", "--device", device])
    told = capsys.readouterr()
    assert (end.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert f"has no device '{device}' in this build; there are CPU; install a build for" in told.err
    assert f"{install}, on a Jetson the wheel for its JetPack (docs/jetson.md)" in told.err


def test_only_tensorrt_is_asked_for_half_precision() -> None:
    with pytest.raises(fer_edge.EngineError, match="onnxruntime cannot be asked for fp16"):
        fer_edge.load(runtime="onnxruntime", execution_precision="fp16")


def test_what_tells_a_gpu_from_another(tmp_path: Path) -> None:
    """A board and its release; a driver and its cards, without what a boot changes."""
    assert adapter.gpu(tmp_path) == []
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, BOARD: generic\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.1\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H100\nIRQ:   \t\t 42\nBus Type: PCIe\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert adapter.gpu(tmp_path) == [
        "NVIDIA Jetson Orin Nano Developer Kit",
        "# R36 (release), REVISION: 4.7, BOARD: generic",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module 575.1",
        "Model: NVIDIA H100",
    ]


def test_tensorrt_always_keeps_what_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter.least_kept("CPU", "int8") is None
    monkeypatch.setattr(adapter, "devices", lambda: ("CPU", "Tensorrt", "CUDA"))
    assert adapter.least_kept("tensorrt", "int8") == 0
    assert adapter.least_kept("cuda", "int8") is None


def test_a_long_build_is_announced_within_two_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """And its time is told when it has ended; a short one says nothing."""
    with caplog.at_level(logging.WARNING, "fer_edge"):
        with announced("short", patience=5.0):
            pass
        assert caplog.messages == []
        with announced("onnxruntime opens a.onnx on Tensorrt", patience=0.02):
            end = time.monotonic() + 10
            while not caplog.messages and time.monotonic() < end:
                time.sleep(0.01)
            assert caplog.messages == ["onnxruntime opens a.onnx on Tensorrt; the first time it may take minutes"]
    assert caplog.messages[1].startswith("onnxruntime opens a.onnx on Tensorrt: 0.")
    assert announced.__wrapped__.__defaults__[0] <= 1.6  # type: ignore[attr-defined]


def test_a_jetsons_bundle_is_symmetric(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """convert --target jetson: signed activations whose zero is zero, as TensorRT wants, and no other engine's artefact."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    checkpoint = root / "converters" / "student" / "student48.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["convert", str(checkpoint), "-o", str(tmp_path / "b"), "--target", "jetson", "--json"])
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [(a["runtime"], a["precision"]) for a in told["artefacts"]] == [("onnxruntime", "int8")]
    graph = onnx.load(tmp_path / "b" / "onnxruntime-int8.onnx").graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    points = [values[node.input[2]] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    small = [point for point in points if point.dtype != np.int32]
    assert small
    assert {point.dtype for point in small} == {np.dtype(np.int8)}
    assert all((point == 0).all() for point in small)
