"""What is opened is the model that the manifest promises, and nothing but its listed files: on every engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fer_edge
from fer_edge import runtime as rt
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.engines import ENGINES, RUNTIMES, installed
from fer_edge.manifest import canonical

PROBE = rt.signature(32, 32, 3, feature_dim=2, labels=2)
HERE = tuple(filter(installed, RUNTIMES))


def probe(root: Path, runtime: str) -> list[Path]:
    """A model of 32 x 32 colour crops with two features and two logits."""
    return [root / "benchmarks" / "probe" / f"{runtime}-fp32{suffix}" for suffix in ENGINES[runtime].suffixes]


def opened(runtime: str, files: Sequence[rt.File | Path], expected: rt.Signature | None = None) -> rt.Session:
    return rt.open_model(runtime, files, "fp32", None, 1, None, expected)


@pytest.mark.parametrize("runtime", HERE)
def test_a_model_of_another_signature_is_refused(runtime: str, root: Path) -> None:
    files = probe(root, runtime)
    opened(runtime, files, PROBE).close()
    others = {
        r"it takes uint8 \(1, 32, 32, 3\), not uint8 \(1, 32, 32, 1\)": rt.signature(32, 32, 1, 2, 2),
        r"it takes uint8 \(1, 32, 32, 3\), not uint8 \(1, 48, 32, 3\)": rt.signature(48, 32, 3, 2, 2),
        r"its output feature is float32 \(1, 2\), not float32 \(1, 3\)": rt.signature(32, 32, 3, 3, 2),
        r"its output logits is float32 \(1, 2\), not float32 \(1, 8\)": rt.signature(32, 32, 3, 2, 8),
    }
    for problem, expected in others.items():
        with pytest.raises(fer_edge.BundleError, match=f"{files[0].name} is not the model .* promises: {problem}"):
            opened(runtime, files, expected)


@pytest.mark.parametrize("runtime", HERE)
def test_a_crop_of_one_channel_is_not_taken_for_three(runtime: str, root: Path) -> None:
    session = opened(runtime, probe(root, runtime))
    with pytest.raises(fer_edge.EngineError, match="failed while running"):
        rt.run(session, np.zeros((1, 32, 32, 1), np.uint8))
    session.close()


@pytest.mark.parametrize("runtime", HERE)
def test_a_model_of_another_format_is_refused_whatever_it_is_called(runtime: str, root: Path) -> None:
    """OpenVINO would read ONNX under the name of an IR, and onnxruntime its own format under that of ONNX."""
    formats = {name: probe(root, name)[0].read_bytes() for name in RUNTIMES if name != runtime}
    for content in (*formats.values(), b"\x08\0\0\0ORTM", b"", b"<", bytes(64)):
        files = [rt.File(Path(f"model{suffix}"), content) for suffix in ENGINES[runtime].suffixes]
        with pytest.raises(fer_edge.FerEdgeError, match=rf"model\{ENGINES[runtime].suffixes[0]}") as caught:
            opened(runtime, files)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", HERE)
def test_files_have_the_endings_of_the_table(runtime: str, root: Path) -> None:
    files = probe(root, runtime)
    for wrong in ([*files, files[0]], files[:0], [files[-1].with_suffix(".bin2")], files[:1] * 2):
        with pytest.raises(fer_edge.BundleError, match=f"an artefact of {runtime} is made of files ending in "):
            opened(runtime, wrong)


def test_openvino_takes_the_weights_that_it_is_given(root: Path, tmp_path: Path) -> None:
    """And not a .bin that lies beside the .xml, which nobody listed or hashed."""
    pytest.importorskip("openvino")
    crop = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    xml, weights = (Path(shutil.copy(file, tmp_path)) for file in probe(root, "openvino"))
    expected, _ = rt.run(opened("openvino", [xml, weights]), crop)
    listed = [rt.File(file, file.read_bytes()) for file in (xml, weights)]
    weights.write_bytes(bytes(weights.stat().st_size))
    assert np.array_equal(rt.run(opened("openvino", listed), crop)[0], expected)


def forged(bundle: Path, name: str, content: bytes) -> None:
    """Another content of one file, and a manifest that fits it: what a hash cannot see."""
    (bundle / name).write_bytes(content)
    value = json.loads((bundle / "manifest.json").read_bytes())
    for artefact in value["artefacts"]:
        for file in artefact["files"]:
            if file["path"] == name:
                file.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    del value["digest"]
    value["digest"] = hashlib.sha256(canonical(value)).hexdigest()
    (bundle / "manifest.json").write_bytes(canonical(value))


@pytest.mark.parametrize("runtime", HERE)
def test_load_refuses_what_the_manifest_does_not_promise(runtime: str, root: Path, bundle: Path) -> None:
    for file in probe(root, runtime):
        forged(bundle, f"{runtime}-int8{file.suffix}", file.read_bytes())
    with pytest.raises(fer_edge.BundleError, match=r"it takes uint8 \(1, 32, 32, 3\), not uint8 \(1, 48, 48, 1\)"):
        fer_edge.load(bundle, runtime=runtime)


# Models made for one fault each. ONNX and OpenVINO can be written by hand; LiteRT's reader is the same code.


def onnx_model(onnx: Any, **changes: Any) -> Any:
    """uint8 (1, 2, 2, 1) -> feature and logits (1, 4) float32, both the crop's values."""
    facts = {"input": (onnx.TensorProto.UINT8, [1, 2, 2, 1]), "type": onnx.TensorProto.FLOAT, "batch": 1}
    facts |= {"outputs": ("feature", "logits"), **changes}
    shape = onnx.numpy_helper.from_array(np.array([-1 if facts["batch"] != 1 else 1, 4], np.int64), "shape")
    nodes = [onnx.helper.make_node("Reshape", ["image", "shape"], ["flat"])]
    nodes += [onnx.helper.make_node("Cast", ["flat"], [name], to=facts["type"]) for name in facts["outputs"]]
    image = onnx.helper.make_tensor_value_info("image", *facts["input"])
    made = [onnx.helper.make_tensor_value_info(name, facts["type"], [facts["batch"], 4]) for name in facts["outputs"]]
    graph = onnx.helper.make_graph(nodes, "faulty", [image], made, [shape])
    return onnx.helper.make_model(graph, ir_version=7, opset_imports=[onnx.helper.make_opsetid("", 13)])


SMALL = rt.signature(2, 2, 1, feature_dim=4, labels=4)


def test_onnx_models_with_one_fault_each() -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kinds = onnx.TensorProto

    def content(**changes: Any) -> list[rt.File]:
        return [rt.File(Path("model.onnx"), onnx_model(onnx, **changes).SerializeToString())]

    session = opened("onnxruntime", content(), SMALL)
    assert rt.run(session, np.full((1, 2, 2, 1), 7, np.uint8))[0].tolist() == [7, 7, 7, 7]
    faults = {
        r"it takes float32 \(1, 2, 2, 1\), not uint8": {"input": (kinds.FLOAT, [1, 2, 2, 1])},
        r"it takes uint8 \(-1, 2, 2, 1\), not uint8": {"input": (kinds.UINT8, ["N", 2, 2, 1]), "batch": "N"},
        r"its output feature is float64 \(1, 4\), not float32": {"type": kinds.DOUBLE},
        r"its outputs are feature, scores, not feature and logits": {"outputs": ("feature", "scores")},
        r"its outputs are feature, not feature and logits": {"outputs": ("feature",)},
        r"its outputs are extra, feature, logits, not": {"outputs": ("feature", "logits", "extra")},
    }
    for problem, changes in faults.items():
        with pytest.raises(fer_edge.FerEdgeError, match=problem) as caught:
            opened("onnxruntime", content(**changes), SMALL)
        assert "model.onnx" in str(caught.value)


def test_onnx_data_outside_the_file_is_refused_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime looks for it beside the model or, of bytes, in the current folder: both hold it here."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_bytes(np.array([1, 4], np.int64).tobytes())
    outside = onnx.TensorProto(name="outside", data_type=onnx.TensorProto.INT64, dims=[2])
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="data")
    make = onnx.helper
    value = make.make_tensor_value_info("t", onnx.TensorProto.INT64, [2])
    inner = make.make_graph([make.make_node("Constant", [], ["t"], value=outside)], "inner", [], [value])
    nodes = {
        "attribute": make.make_node("Constant", [], ["t"], value=outside),
        "branch": make.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner),
    }
    models = {"initializer": onnx_model(onnx), "function": onnx_model(onnx)}
    models["initializer"].graph.initializer.append(outside)
    models["function"].functions.add(name="f").node.append(nodes["attribute"])
    for name, node in nodes.items():
        models[name] = onnx_model(onnx)
        models[name].graph.node.append(node)
    models["sparse"] = onnx_model(onnx)
    models["sparse"].graph.sparse_initializer.add(values=outside)
    for name, model in models.items():
        file = rt.File(tmp_path / "model.onnx", model.SerializeToString())
        with pytest.raises(fer_edge.BundleError, match=r"model\.onnx keeps weights outside of itself, in 'data'"):
            print(name, opened("onnxruntime", [file], SMALL))


def test_an_onnx_file_cut_short_anywhere_is_one_error(root: Path) -> None:
    pytest.importorskip("onnxruntime")
    content = probe(root, "onnxruntime")[0].read_bytes()
    for length in [*range(0, 200, 7), len(content) // 2, len(content) - 1]:
        with pytest.raises(fer_edge.FerEdgeError, match=r"model\.onnx") as caught:
            opened("onnxruntime", [rt.File(Path("model.onnx"), content[:length])], PROBE)
        assert "\n" not in str(caught.value)


def test_openvino_models_with_one_fault_each(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    ops = ov.opset8

    def content(
        shape: Sequence[int] = (1, 2, 2, 1),
        kind: type = np.uint8,
        made: str = "f32",
        names: Sequence[str] = ("feature", "logits"),
    ) -> list[Path]:
        image = ops.parameter(list(shape), kind, name="image")
        flat = ops.convert(ops.reshape(image, np.array([-1 if shape[0] < 1 else 1, 4], np.int64), False), made)
        model = ov.Model([ops.result(ops.relu(flat)) for _ in names], [image])
        for output, name in zip(model.outputs, names, strict=True):
            output.get_tensor().set_names({name})
        ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
        return [tmp_path / "model.xml", tmp_path / "model.bin"]

    session = opened("openvino", content(), SMALL)
    assert rt.run(session, np.full((1, 2, 2, 1), 7, np.uint8))[0].tolist() == [7, 7, 7, 7]
    faults: dict[str, dict[str, Any]] = {
        r"it takes float32 \(1, 2, 2, 1\), not uint8": {"kind": np.float32},
        r"it takes uint8 \(-1, 2, 2, 1\), not uint8": {"shape": (-1, 2, 2, 1)},
        r"its output feature is f64 \(1, 4\), not float32": {"made": "f64"},
        r"its outputs are feature, scores, not feature and logits": {"names": ("feature", "scores")},
        r"its outputs are extra, feature, logits, not": {"names": ("feature", "logits", "extra")},
    }
    for problem, changes in faults.items():
        with pytest.raises(fer_edge.FerEdgeError, match=problem) as caught:
            opened("openvino", content(**changes), SMALL)
        assert "model.xml" in str(caught.value)


def test_a_litert_model_without_a_signature_is_refused() -> None:
    pytest.importorskip("ai_edge_litert")
    from fer_edge.runtimes.run_litert import _ONE_OPERATOR

    with pytest.raises(fer_edge.EngineError, match=r"refuses model\.tflite"):
        opened("litert", [rt.File(Path("model.tflite"), _ONE_OPERATOR)], SMALL)


def test_the_default_bundle_is_what_its_manifest_promises() -> None:
    for runtime in HERE:
        fer_edge.load(DEFAULT_BUNDLE, runtime=runtime).close()
