"""One test over all runtimes with one expected answer, and what each does with devices, precisions and files it cannot
take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from absence import replaced, without
from PIL import Image

import fer_edge
from fer_edge import runtime as rt
from fer_edge.bundle import golden_set, label_set, open_bundle, write_manifest
from fer_edge.classifier import DEFAULT_BUNDLE, choose_artefact, open_session
from fer_edge.doctor import diagnose
from fer_edge.engines import ENGINES, RUNTIMES, installed, preferred_order
from fer_edge.verify import verify

BOX = (168, 56, 112, 112)


def need(runtime: str) -> None:
    """Skip where an engine is not installed: a bare device runs what it has."""
    if not installed(runtime):
        pytest.skip(f"the engine of {runtime} is not installed")


@pytest.mark.parametrize("runtime", [*RUNTIMES, "null"])
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


@pytest.mark.parametrize("runtime", RUNTIMES)
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
    for machine, order in (
        ("x86_64", ("openvino", "onnxruntime", "litert")),
        ("aarch64", ("litert", "onnxruntime", "openvino")),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert preferred_order() == order
    monkeypatch.undo()
    present = [name for name in preferred_order() if installed(name)]
    if len(present) < 2:
        pytest.skip("needs two engines")
    without(monkeypatch, present[0])
    with fer_edge.load() as clf:
        assert clf.runtime == present[1]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_engine_names_its_extra(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, runtime)
    with pytest.raises(fer_edge.MissingExtraError, match=rf"pip install 'fer-edge\[{runtime}\]'"):
        fer_edge.load(runtime=runtime)


def test_without_any_engine_the_error_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNTIMES:
        without(monkeypatch, name)
    with pytest.raises(fer_edge.MissingExtraError, match=r"pip install 'fer-edge\["):
        fer_edge.load()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_device_that_is_not_there_is_an_error_that_lists_those_that_are(runtime: str) -> None:
    need(runtime)
    with pytest.raises(fer_edge.EngineError, match="CPU"):
        fer_edge.load(runtime=runtime, device="NPU9")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # LiteRT's half made Delegate has no __del__
def test_a_missing_delegate_is_one_error() -> None:
    need("litert")
    with pytest.raises(fer_edge.EngineError, match=r"/nowhere/libnpu\.so"):
        fer_edge.load(runtime="litert", device="delegate:/nowhere/libnpu.so")


IDLE = """
#include <stdint.h>
#include <stdlib.h>
struct delegate { void* data; int (*prepare)(void*, struct delegate*); void* rest[3]; int64_t flags; void* builder; };
static int prepare(void* context, struct delegate* self) { return 0; }
struct delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t n, void (*say)(const char*)) {
  struct delegate* made = calloc(1, 256);
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(struct delegate* made) { free(made); }
"""
"""A vendor's delegate (TfLiteDelegate, tensorflow/lite/core/c/common.h) that claims no operator."""


def test_a_delegate_that_takes_nothing_is_no_device(tmp_path: Path) -> None:
    """All of it would run on the CPU, and be reported as the delegate's."""
    need("litert")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build a delegate with")
    library = tmp_path / "libidle.so"
    (tmp_path / "idle.c").write_text(IDLE)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "idle.c"], check=True)
    with pytest.raises(fer_edge.EngineError, match=r"libidle\.so takes no operator of litert-int8\.tflite"):
        fer_edge.load(runtime="litert", device=f"delegate:{library}")


def test_a_provider_that_takes_nothing_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime puts on the CPU, without a word, what a provider does not take. Azure's, in every build, takes nothing."""
    need("onnxruntime")
    from fer_edge.runtimes import run_onnxruntime

    monkeypatch.setattr(run_onnxruntime, "_NOT_DEVICES", ())
    if "Azure" not in run_onnxruntime.devices():
        pytest.skip("this build of onnxruntime has no provider but the CPU's")
    if not hasattr(run_onnxruntime.ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell what runs where")
    with pytest.raises(fer_edge.EngineError, match=r"Azure takes no operator of onnxruntime-int8\.onnx"):
        fer_edge.load(runtime="onnxruntime", device="Azure")


@pytest.mark.parametrize("trouble", ["OSError('libcudart.so.12: cannot open shared object file')", "RuntimeError('')"])
def test_an_engine_that_does_not_import_stops_no_other(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver's library is missing: one error of our tree, and verify goes on with the other engines."""
    (tmp_path / "sick_engine.py").write_text(f"raise {trouble}")
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "onnxruntime", adapter="sick_engine", imports=("sick_engine",))
    with pytest.raises(fer_edge.EngineError, match="installed but does not import"):
        fer_edge.load(runtime="onnxruntime")
    rows = {row.runtime: row.status for row in verify(open_bundle(DEFAULT_BUNDLE)).rows}
    assert rows["onnxruntime"] == "refused"
    assert all(rows[name] == "ok" for name in RUNTIMES if name != "onnxruntime" and installed(name))


def test_a_folder_of_an_engines_name_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models, say, beside the application: Python finds it as a namespace package."""
    (tmp_path / "my_models").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "litert", imports=("my_models",))
    assert not installed("litert")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_folder_whose_name_is_not_unicode(runtime: str, tmp_path: Path) -> None:
    need(runtime)
    try:
        copy = Path(shutil.copytree(DEFAULT_BUNDLE, os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    report = verify(open_bundle(copy), [runtime])
    assert report.ok or (report.rows[0].status, runtime) == ("refused", "onnxruntime"), report


def test_threads_are_those_that_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, processors, expected in ((None, 8, 4), (None, 2, 2), (1.5, 8, 2), (0.3, 8, 1), (6.0, 8, 4), (2.0, 1, 1)):
        monkeypatch.setattr(rt, "container_limits", lambda share=share: (share, None))
        monkeypatch.setattr(rt, "usable_processors", lambda processors=processors: processors)
        assert rt.default_threads() == expected


def test_a_gpu_provider_is_never_replaced_by_the_cpu() -> None:
    need("onnxruntime")
    for device in ("CUDA", "CUDAExecutionProvider", "TensorRT"):
        with pytest.raises(fer_edge.EngineError, match="no device"):
            fer_edge.load(runtime="onnxruntime", device=device)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_the_engine_refuses_is_one_error_that_names_it(runtime: str, tmp_path: Path) -> None:
    need(runtime)
    files = [tmp_path / f"model-int8{suffix}" for suffix in ENGINES[runtime].suffixes]
    for file in files:
        file.write_bytes(b"<net name='x'>" + bytes(range(256)) * 8)
    with pytest.raises(fer_edge.FerEdgeError, match=re.escape(files[0].name)) as caught:
        rt.open_model(runtime, files, "int8", None, threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_precision_that_cannot_be_asked_for_is_an_error(runtime: str) -> None:
    need(runtime)
    with pytest.raises(fer_edge.EngineError, match="bf16"):
        fer_edge.load(runtime=runtime, execution_precision="bf16")


def test_unknown_names() -> None:
    with pytest.raises(fer_edge.EngineError, match="openvino, litert, onnxruntime, rknn, null"):
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


@pytest.mark.parametrize("runtime", RUNTIMES)
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
    with pytest.raises(fer_edge.UsageError, match="bundle must be a text or a path; got int"):
        fer_edge.load(123)  # type: ignore[arg-type]
    with pytest.raises(fer_edge.LabelError):
        fer_edge.load(labels="")
    with pytest.raises(fer_edge.EngineError):
        fer_edge.load(device="")


def test_nan_is_an_error_and_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old engines answer with NaN and no error; the classifier does not pass that on."""
    with fer_edge.load(runtime="null") as clf:
        adapters = clf._session._owned.value  # type: ignore[union-attr]
        adapters._first = adapters._first * np.float32("nan")  # type: ignore[attr-defined]
        with pytest.raises(fer_edge.EngineError, match="NaN"):
            clf.predict(np.zeros((48, 48), np.uint8))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_device_needs_no_other_package(runtime: str, portrait: Path) -> None:
    """Predicting imports the engine, numpy, Pillow and nothing of the host side."""
    need(runtime)
    code = (
        f"import sys, fer_edge; fer_edge.load(runtime={runtime!r}).predict({str(portrait)!r});"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'rich', 'click', 'onnx', 'nncf') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


THEIRS = """
import numpy as np
from fer_edge.runtime import signature

class Session:
    engine, execution_precision = "theirs 1", "fp32"
    def __init__(self, files, options):
        self.device, self.files = options.device, files
        self.signature = signature(48, 48, 1, 256, 8)
    def run(self, crop):
        return np.full(256, len(self.files[0].content), np.float32), np.zeros(8, np.float32)
    def close(self):
        pass

def engine(): return Session.engine
def devices(): return ("TPU",)
def open(files, options): return Session(files, options)
"""


def test_another_packages_runtime_is_found_opened_and_examined(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its entry point: an adapter module, and nothing of ours knows its name."""
    (tmp_path / "their_adapter.py").write_text(THEIRS)
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fer_edge.runtimes]\ntheirs = their_adapter\n")
    monkeypatch.syspath_prepend(tmp_path)
    opened = open_bundle(bundle)
    (artefact,) = (a for a in opened.manifest.artefacts if a.runtime == "litert")
    write_manifest(bundle, replace(opened.manifest, artefacts=(replace(artefact, runtime="theirs"),)))
    assert installed("theirs")
    with fer_edge.load(bundle, runtime="theirs") as clf:
        assert (clf.runtime, clf.device, clf.engine) == ("theirs", "TPU", "theirs 1")
        assert clf.features([np.zeros((48, 48), np.uint8)])[0, 0] == artefact.files[0].bytes
    (row,) = verify(open_bundle(bundle)).rows
    assert (row.runtime, row.status) == ("theirs", "miss")
    assert "theirs" in [engine.runtime for engine in diagnose("0").engines]
    # One that was written for fer-edge 0.1 told no signature, and nothing can be checked against the manifest.
    (tmp_path / "their_adapter.py").write_text(THEIRS.replace("self.signature", "self.shapes"))
    monkeypatch.delitem(sys.modules, "their_adapter")
    with pytest.raises(fer_edge.EngineError, match=r"theirs cannot open .*signature"):
        fer_edge.load(bundle, runtime="theirs")
    assert [row.status for row in verify(open_bundle(bundle)).rows] == ["refused"]
    with pytest.raises(fer_edge.EngineError, match="null, theirs"):
        fer_edge.load(bundle, runtime="nobodys")


def test_a_runtime_that_nobody_offers_is_not_installed() -> None:
    """A bundle may have an artefact for another package's runtime, which this box lacks."""
    assert installed("null")
    assert not installed("no-such-runtime")
