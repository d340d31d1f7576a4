"""One test over all runtimes with one expected answer, and what each does with devices, precisions and files it cannot
take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge import runtime as rt
from fer_edge.bundle import golden_set, label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE, choose_artefact, open_session

ENGINES = [name for name in rt.RUNTIMES if name != "null"]
BOX = (168, 56, 112, 112)


def need(runtime: str) -> None:
    """Skip where an engine is not installed: a bare device runs what it has."""
    if not rt.installed(runtime):
        pytest.skip(f"the engine of {runtime} is not installed")


@pytest.mark.parametrize("runtime", [*ENGINES, "null"])
def test_every_runtime_gives_the_recorded_answer(runtime: str) -> None:
    """The golden crops, one by one: the float reference's label and, within what int8 costs, its feature."""
    need(runtime)
    opened = open_bundle(DEFAULT_BUNDLE)
    golden, labels = golden_set(opened), label_set(opened, "ferplus8")
    crops = golden.crops[..., 0]
    expected = labels.scores(golden.features)
    with fer_edge.load(runtime=runtime) as clf:
        assert clf.runtime == runtime
        features = clf.features(crops)
        got = [p.label for p in clf.predict_batch(crops)]
    sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 0.3
    assert sure.sum() >= 16
    assert [g for g, s in zip(got, sure, strict=True) if s] == [labels.labels[k] for k in expected[sure].argmax(1)]
    mean = golden.features.mean(0)
    a, b = features - mean, golden.features - mean
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.mean() > (0.95 if runtime != "null" else 0.999999)


@pytest.mark.parametrize("runtime", ENGINES)
def test_a_photo_is_labelled_and_says_what_ran(runtime: str, portrait: Path) -> None:
    need(runtime)
    with fer_edge.load(runtime=runtime, threads=1) as clf:
        answer = clf.predict(portrait, box=BOX)
        assert answer.label == "happiness"
        assert answer.scores["happiness"] > 0.8
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert (clf.device, clf.precision, clf.threads) == ("CPU", "int8", 1)
        assert clf.execution_precision.startswith("int8")
        assert clf.engine.split()[0] in ("openvino", "ai-edge-litert", "tflite_runtime", "onnxruntime")
        rgb = np.asarray(Image.open(portrait).convert("RGB"))
        assert clf.predict(rgb, box=BOX).scores == answer.scores


def test_label_sets_switch_at_load_time(portrait: Path) -> None:
    with fer_edge.load(labels="rafdb7") as clf:
        assert clf.label_set == "rafdb7"
        assert clf.labels == ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
        assert clf.predict(portrait, box=BOX).label == "happiness"
    with fer_edge.load() as clf:
        assert clf.label_set == "ferplus8"
        assert len(clf.labels) == 8


def test_the_order_of_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """x86 and ARM prefer differently; an engine that is not there is passed over; null is never chosen."""
    for machine, order in (("x86_64", rt.ORDER_X86), ("aarch64", rt.ORDER_ARM)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert rt.preferred_order() == order
    monkeypatch.undo()
    present = [name for name in rt.preferred_order() if rt.installed(name)]
    if len(present) < 2:
        pytest.skip("needs two engines")
    monkeypatch.setitem(rt.PACKAGES, present[0], ("no_such_package",))
    with fer_edge.load() as clf:
        assert clf.runtime == present[1]


@pytest.mark.parametrize("runtime", ENGINES)
def test_a_missing_engine_names_its_extra(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rt.PACKAGES, runtime, ("no_such_package",))
    with pytest.raises(fer_edge.MissingExtraError, match=rf"pip install 'fer-edge\[{runtime}\]'"):
        fer_edge.load(runtime=runtime)


def test_without_any_engine_the_error_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENGINES:
        monkeypatch.setitem(rt.PACKAGES, name, ("no_such_package",))
    with pytest.raises(fer_edge.MissingExtraError, match=r"pip install 'fer-edge\["):
        fer_edge.load()


@pytest.mark.parametrize("runtime", ENGINES)
def test_a_device_that_is_not_there_is_an_error_that_lists_those_that_are(runtime: str) -> None:
    need(runtime)
    with pytest.raises(fer_edge.EngineError, match="CPU"):
        fer_edge.load(runtime=runtime, device="NPU9")


def test_a_missing_delegate_is_one_error() -> None:
    need("litert")
    with pytest.raises(fer_edge.EngineError, match=r"/nowhere/libnpu\.so"):
        fer_edge.load(runtime="litert", device="delegate:/nowhere/libnpu.so")


def test_a_gpu_provider_is_never_replaced_by_the_cpu() -> None:
    need("onnxruntime")
    for device in ("CUDA", "CUDAExecutionProvider", "TensorRT"):
        with pytest.raises(fer_edge.EngineError, match="no device"):
            fer_edge.load(runtime="onnxruntime", device=device)


@pytest.mark.parametrize("runtime", ENGINES)
def test_a_file_that_the_engine_refuses_is_one_error_that_names_it(runtime: str, tmp_path: Path) -> None:
    need(runtime)
    suffix = {"openvino": ".xml", "litert": ".tflite", "onnxruntime": ".onnx"}[runtime]
    file = tmp_path / f"model-int8{suffix}"
    file.write_bytes(b"<net>" + bytes(range(256)) * 8)
    with pytest.raises(fer_edge.EngineError, match=f"model-int8{suffix}") as caught:
        rt.load_runtime(runtime).open([file], rt.Options("int8", "CPU", 1, None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_precision_that_cannot_be_asked_for_is_an_error(runtime: str) -> None:
    need(runtime)
    with pytest.raises(fer_edge.EngineError, match="bf16"):
        fer_edge.load(runtime=runtime, execution_precision="bf16")


def test_unknown_names() -> None:
    with pytest.raises(fer_edge.EngineError, match="openvino, litert, onnxruntime, null"):
        fer_edge.load(runtime="tensorrt")
    with pytest.raises(fer_edge.UsageError, match="int8, fp16, fp32"):
        fer_edge.load(precision="int4")
    with pytest.raises(fer_edge.BundleError, match="it has openvino int8"):
        fer_edge.load(precision="fp32")


def test_null_spins_for_the_time_it_is_told() -> None:
    import time

    with fer_edge.load(runtime="null", device="spin:30") as clf:
        assert clf.device == "spin:30"
        began = time.perf_counter()
        clf.predict(np.zeros((48, 48), np.uint8))
        assert time.perf_counter() - began >= 0.030
    for device in ("spin", "spin:0", "spin:-1", "spin:nan", "gpu"):
        with pytest.raises(fer_edge.EngineError, match="spin:MS"):
            fer_edge.load(runtime="null", device=device)


@pytest.mark.parametrize("device", ["AUTO", "HETERO:CPU", "MULTI:CPU", "AUTO:CPU"])
def test_openvino_never_chooses_a_device_by_itself(device: str) -> None:
    need("openvino")
    with pytest.raises(fer_edge.EngineError, match="there are CPU"):
        fer_edge.load(runtime="openvino", device=device)


@pytest.mark.parametrize("runtime", ENGINES)
def test_an_engine_that_fails_while_running_is_one_error(runtime: str) -> None:
    """A crop of the wrong shape is refused by every engine in its own way; users see an EngineError."""
    need(runtime)
    opened = open_bundle(DEFAULT_BUNDLE)
    name, artefact = choose_artefact(opened, runtime, "int8")
    session = open_session(opened, name, artefact, None, 1, None)
    with pytest.raises(fer_edge.EngineError, match="failed while running") as caught:
        rt.run(session, np.zeros((1, 7, 7, 1), np.uint8))
    assert "\n" not in str(caught.value)
    session.close()


def test_arguments_of_a_wrong_type() -> None:
    with pytest.raises(fer_edge.UsageError, match="path of its folder"):
        fer_edge.load(123)  # type: ignore[arg-type]
    with pytest.raises(fer_edge.LabelError):
        fer_edge.load(labels="")
    with pytest.raises(fer_edge.EngineError):
        fer_edge.load(device="")


def test_nan_is_an_error_and_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old engines answer with NaN and no error; the classifier does not pass that on."""
    with fer_edge.load(runtime="null") as clf:
        answers = clf._session._answers  # type: ignore[union-attr]
        clf._session._first = next(iter(answers.values())) * np.float32("nan")  # type: ignore[union-attr]
        with pytest.raises(fer_edge.EngineError, match="NaN"):
            clf.predict(np.zeros((48, 48), np.uint8))


@pytest.mark.parametrize("runtime", ENGINES)
def test_a_device_needs_no_other_package(runtime: str, portrait: Path) -> None:
    """Predicting imports the engine, numpy, Pillow and nothing of the host side."""
    need(runtime)
    code = (
        f"import sys, fer_edge; fer_edge.load(runtime={runtime!r}).predict({str(portrait)!r});"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'rich', 'click', 'onnx', 'nncf') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_a_runtime_that_nobody_offers_is_not_installed() -> None:
    """A bundle may have an artefact for another package's runtime, which this box lacks."""
    assert rt.installed("null")
    assert not rt.installed("no-such-runtime")
