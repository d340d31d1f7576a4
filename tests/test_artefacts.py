"""What artefacts say of themselves, and that toolchains take them: integers up to ``feature``, few operator sets, metadata.

Readers of other people stand in for viewers and toolchains: OpenVINO's Model API and tflite-support's schema, where
``make test-targets`` has set them up."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from toolchains import toolchain

import fer_edge
from fer_edge.bundle import golden_set, label_set, open_bundle
from fer_edge.converters import tflite_graph
from fer_edge.golden import compare
from fer_edge.runtime import open_model

CNN_LABELS = "happiness sadness neutral anger surprise disgust fear contempt"
HEAD = ["DEQUANTIZE", "MUL", "ADD", "L2_NORMALIZATION", "FULLY_CONNECTED"]


def operators(file: Path) -> list[tuple[str, set[str]]]:
    """(operator, types of what it reads and makes beside constants of 32 bits) in the order in which they run."""
    interpreter = Interpreter(str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    types = {t["index"]: np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
    return [
        (op["op_name"], {types[i] for i in (op["inputs"][0], *op["outputs"]) if i in types})
        for op in interpreter._get_ops_details()
    ]


def test_a_student_is_integers_from_the_picture_to_the_feature(student_bundle: Path) -> None:
    ops = operators(student_bundle / "litert-int8.tflite")
    body, head = ops[: -len(HEAD)], ops[-len(HEAD) :]
    assert [name for name, _ in head] == HEAD
    assert body[0] == ("QUANTIZE", {"uint8", "int8"})
    assert all(types == {"int8"} for _, types in body[1:])
    assert [name for name, _ in body].count("FULLY_CONNECTED") == 1
    assert not {"CAST", "TRANSPOSE"} & {name for name, _ in ops}
    assert "TRANSPOSE" not in {name for name, _ in operators(student_bundle / "litert-fp32.tflite")}


def test_one_step_for_every_channel_loses_what_one_range_does_not(
    student_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized with the step that its widest channel asks for, the feature keeps less of the golden set."""
    from learning import STUDENT

    from fer_edge.converters.convert import Plan, convert

    def plain(model: object, name: str, low: np.ndarray, high: np.ndarray) -> str:
        widest = np.full_like(low, max(-low.min(), high.max()))
        return real(model, name, -widest, widest)

    def parity(folder: Path) -> float:
        (artefact,) = (a for a in open_bundle(folder).manifest.artefacts if (a.runtime, a.precision) == ("litert", "int8"))
        return artefact.parity["centred_cosine"]

    real: Callable[..., str] = tflite_graph.share_one_range
    monkeypatch.setattr(tflite_graph, "share_one_range", plain)
    coarse = convert(str(STUDENT), tmp_path / "b", Plan(runtimes=("litert",), allow_drift=True)).bundle.folder
    assert 1 - parity(student_bundle) < 0.5 * (1 - parity(coarse))


def test_the_integer_form_keeps_labels_of_real_faces(data: Path) -> None:
    """The default against the float reference, 600 faces: 98.5% of the labels."""
    from learning import STUDENT

    from fer_edge.converters.reference import open_reference, reference_features

    with np.load(data / "fer2013" / "public_test.npz") as z:
        crops = z["images"][:600, ..., None]
    with fer_edge.load(runtime="litert", precision="int8") as clf:
        got = clf.features([crop[..., 0] for crop in crops])
        labels = label_set(clf.bundle, clf.label_set)
    expected = reference_features(open_reference(str(STUDENT)), crops)
    assert compare(got, None, expected, labels).top1_agreement >= 0.985


def test_reference_kernels_give_what_the_fast_ones_give(student_bundle: Path) -> None:
    """An NPU's compiler follows the reference kernels."""
    golden = golden_set(open_bundle(student_bundle))
    interpreter = Interpreter(
        str(student_bundle / "litert-int8.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (at,) = (part["index"] for part in interpreter.get_tensor_details() if part["name"].endswith("share/reach"))
    step = interpreter.get_tensor(at) / 127  # of 8 bits, of each channel of the feature
    reference = interpreter.get_signature_runner()
    session = open_model("litert", [student_bundle / "litert-int8.tflite"], "int8", None, 1)
    try:
        exact = np.stack([reference(image=crop[None])["feature"][0] for crop in golden.crops])
        fast = np.stack([session.run(crop[None])[0] for crop in golden.crops])
    finally:
        session.close()
    assert (np.abs(fast - exact) / step).mean() < 2
    ours, theirs = fast - exact.mean(0), exact - exact.mean(0)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.mean() > 0.995


def test_onnx_says_what_it_is_and_asks_for_nothing_that_it_has_not(student_bundle: Path, clip_bundle: Path) -> None:
    for folder in (student_bundle, clip_bundle):
        manifest = open_bundle(folder).manifest
        labels = next(ref.labels for ref in manifest.label_sets if ref.name == manifest.default_labels)
        for precision in ("fp32", "fp16", "int8"):
            model = onnx.load(folder / f"onnxruntime-{precision}.onnx")
            onnx.checker.check_model(model, full_check=True)
            facts = {item.key: item.value for item in model.metadata_props}
            assert facts["labels"] == ", ".join(labels)
            assert facts["licence"] == manifest.licence
            assert facts["normalisation"].startswith("inside the model: value / 255")
            assert {o.domain for o in model.opset_import} == {node.domain for node in model.graph.node}
            shapes = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
            for value in (*shapes.value_info, *shapes.input, *shapes.output):
                assert all(d.HasField("dim_value") and d.dim_value > 0 for d in value.type.tensor_type.shape.dim), value.name
            # ONNX has shapes and axes in int64 alone: these, and no number that a picture becomes.
            whole = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT64}
            read = {(node.op_type, place) for node in model.graph.node for place, n in enumerate(node.input) if n in whole}
            assert all(place > 0 for _, place in read), read
            makers = {name for node in model.graph.node for name in node.output}
            kinds = {v.name: v.type.tensor_type.elem_type for v in shapes.value_info}
            assert onnx.TensorProto.INT64 not in {kinds.get(name) for name in makers}


def test_statistics_of_pixels_are_told(clip_bundle: Path, tmp_path: Path) -> None:
    from learning import FP32_OPENVINO

    from fer_edge.converters.convert import Plan, convert

    clip = str(clip_bundle.parent / "clip")
    plan = Plan(normalize=((0.5, 0.25, 0.125), (0.5, 0.5, 0.25)), licence="MIT", name="one", **FP32_OPENVINO)
    convert(clip, tmp_path / "b", plan)
    model = ov.Core().read_model(tmp_path / "b" / "openvino-fp32.xml")
    said = {name: model.get_rt_info(["fer_edge", name]).astype(str) for name in ("licence", "name", "normalisation")}
    assert said["licence"] == "MIT"
    assert said["name"] == "one"
    assert said["normalisation"].endswith("mean 0.5, 0.25, 0.125, std 0.5, 0.5, 0.25")


def test_openvino_tells_the_model_api_what_it_needs(student_bundle: Path) -> None:
    for precision in ("fp32", "int8"):
        model = ov.Core().read_model(student_bundle / f"openvino-{precision}.xml")
        assert model.get_rt_info(["model_info", "model_type"]).astype(str) == "Classification"
        assert model.get_rt_info(["model_info", "labels"]).astype(str) == CNN_LABELS
        assert [output.get_any_name() for output in model.outputs] == ["logits", "feature"]


MODEL_API = """
import json, sys
import numpy as np
from model_api.models import Model

model = Model.create_model(sys.argv[1], device="CPU")
print(json.dumps([model(crop).top_labels[0].name for crop in np.load(sys.argv[2])["crops"]]))
"""


@pytest.mark.parametrize("kind", ["student", "clip"])
def test_openvinos_model_api_gives_our_labels(kind: str, request: pytest.FixtureRequest) -> None:
    python = toolchain("openvino-model-api")
    folder: Path = request.getfixturevalue(f"{kind}_bundle")
    golden = golden_set(open_bundle(folder))
    for precision in ("fp32", "int8"):
        command = [python, "-c", MODEL_API, folder / f"openvino-{precision}.xml", folder / "golden.npz"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
        with fer_edge.load(folder, runtime="openvino", precision=precision) as clf:
            ours = [p.label for p in clf.predict_batch([c[..., 0] if c.shape[2] == 1 else c for c in golden.crops])]
        assert theirs == ours


def test_a_tflite_carries_its_labels_and_licence(student_bundle: Path) -> None:
    """Labels as Android's tools find them: a file in a zip behind the model."""
    for precision in ("fp32", "fp16", "int8"):
        content = (student_bundle / f"litert-{precision}.tflite").read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.namelist() == ["labels.txt"]
            assert archive.read("labels.txt").decode().split() == CNN_LABELS.split()
        model = tflite_graph.read(student_bundle / f"litert-{precision}.tflite")
        assert [m.name for m in model.metadata].count(b"TFLITE_METADATA") == 1


TFLITE_SUPPORT = """
import json, sys
from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
from tensorflow_lite_support.metadata import schema_py_generated as tflite

model = tflite.Model.GetRootAsModel(open(sys.argv[1], "rb").read(), 0)
entry = next(e for e in map(model.Metadata, range(model.MetadataLength())) if e.Name() == b"TFLITE_METADATA")
content = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
told = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAsModelMetadata(content, 0))
graph, = told.subgraphMetadata
image, = graph.inputTensorMetadata
feature, logits = graph.outputTensorMetadata
unit, = image.processUnits
labels, = logits.associatedFiles
print(json.dumps({
    "licence": told.license.decode(), "version": told.version.decode(), "name": told.name.decode(),
    "image": [image.name.decode(), image.description.decode()],
    "outputs": [feature.name.decode(), logits.name.decode()],
    "color": image.content.contentProperties.colorSpace,
    "size": [image.content.contentProperties.defaultSize.height, image.content.contentProperties.defaultSize.width],
    "unit": [type(unit.options).__name__, list(map(float, unit.options.mean)), list(map(float, unit.options.std))],
    "labels": [labels.name.decode(), labels.type],
}))
"""


@pytest.mark.parametrize(("kind", "gray"), [("student", True), ("clip", False)])
def test_tflite_supports_schema_reads_the_metadata(kind: str, gray: bool, request: pytest.FixtureRequest) -> None:
    python = toolchain("tflite-support")
    folder: Path = request.getfixturevalue(f"{kind}_bundle")
    manifest = open_bundle(folder).manifest
    command = [python, "-c", TFLITE_SUPPORT, folder / "litert-int8.tflite"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["name"], told["version"], told["licence"]) == (manifest.name, manifest.version, manifest.licence)
    assert told["image"][0] == "image"
    assert "inside the model: value / 255" in told["image"][1]
    assert told["outputs"] == ["feature", "logits"]
    assert told["color"] == (2 if gray else 1)
    assert told["size"] == list(manifest.input.size)
    assert told["unit"] == ["NormalizationOptionsT", [0.0], [1.0]]
    assert told["labels"] == ["labels.txt", 2]


def test_operators_are_held_against_the_lists_of_devices(student_bundle: Path, clip_bundle: Path) -> None:
    """The lint agrees with what Vela leaves (tests/test_targets.py), and knows floats, uint8 pictures and zero points."""
    from fer_edge.converters.lint import lint, table

    found = {one.artefact: one.to_dict() for one in lint(open_bundle(student_bundle))}
    assert found.keys() == {f"{r} {p}" for r in ("openvino", "litert", "onnxruntime") for p in ("fp32", "fp16", "int8")}
    assert found["litert int8"]["devices"]["Ethos-U55/65"]["leaves"] == dict.fromkeys(HEAD, 1)
    assert found["litert int8"]["devices"]["Ethos-U85"]["leaves"] == dict.fromkeys(HEAD, 1)
    assert found["litert fp32"]["devices"]["Ethos-U55/65"]["takes"] == 0
    assert found["onnxruntime fp32"]["devices"]["RKNN"]["leaves"] == {"Cast": 1}
    assert found["onnxruntime fp32"]["devices"]["TensorRT"]["leaves"] == {}
    unsigned = found["onnxruntime int8"]["devices"]["TensorRT"]["leaves"]
    assert set(unsigned) == {"QuantizeLinear", "DequantizeLinear"}, "it wants --symmetric"
    assert found["openvino int8"]["operators"]["Convolution"] >= 8
    assert found["openvino int8"]["devices"] == {}
    others = {one.artefact: one for one in lint(open_bundle(clip_bundle))}
    assert others["litert int8"].left["Ethos-U55/65"]["FULLY_CONNECTED"] > 4, "of a CLIP: floats"
    head, *rows = table(list(others.values()))
    assert all(len(row) == len(head) for row in rows)
