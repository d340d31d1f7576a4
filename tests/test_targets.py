"""``fer-edge compile``: real compilers and simulators, artefacts that are judged before they are written, and refusals.

Vela is an extra; rknn-toolkit2 lives in an environment of its own, which ``make test-targets`` sets up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from learning import STUDENT
from test_bundle import plant
from toolchains import installed, toolchain

import fer_edge
from fer_edge.bundle import golden_set, label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import main
from fer_edge.converters import tflite_graph
from fer_edge.converters.compile import compile_bundle
from fer_edge.converters.convert import Plan, convert
from fer_edge.converters.targets.target import families, family_of, telling
from fer_edge.manifest import FOR_COMPILERS
from fer_edge.verify import verify

vela = pytest.mark.skipif(not installed("ethos-u-vela"), reason="vela is not installed: pip install 'fer-edge[ethos-u]'")


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in floats, with a graph for compilers. Not to be changed."""
    plan = Plan(runtimes=("onnxruntime", "litert"), precisions=("fp32",), for_targets=True)
    return convert(str(STUDENT), tmp_path_factory.mktemp("float") / "bundle", plan).bundle.folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A writable copy of the embedded default."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "own"))


def called(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    progress = re.compile(r" \.\.\. \d:\d\d:\d\d$")  # on a busy machine
    said = "".join(line + "\n" for line in err.splitlines() if not progress.search(line))
    return int(end.value.code or 0), out, said


def test_families_are_found_by_name() -> None:
    known = families()
    assert {"rk3588", "rk3576", "rk3566", "rv1126b"} < known.keys()
    assert {"ethos-u55-32", "ethos-u55-256", "ethos-u65-512", "ethos-u85-2048"} < known.keys()
    assert family_of("rk3588").RUNTIME == "rknn"
    with pytest.raises(fer_edge.UsageError, match=r"no target 'rk9999'; there are .*ethos-u55-256.*rk3588"):
        family_of("rk9999")


def test_no_torch_at_compile_time() -> None:
    code = "import sys, fer_edge.converters.cli_compile, fer_edge.converters.compile as c; c.family_of('rk3588')\n"
    code += "print([m for m in ('torch', 'onnx', 'openvino', 'ai_edge_litert', 'rknn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_bundle_for_targets_keeps_a_float_graph_and_no_faces(float_bundle: Path) -> None:
    bundle = open_bundle(float_bundle)
    (graph,) = (a for a in bundle.manifest.artefacts if a.target == FOR_COMPILERS)
    assert "augmentations" in (graph.calibration or ""), "with what to calibrate, in words"
    model = onnx.load(float_bundle / graph.files[0].path)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] <= 19
    assert "Cast" not in {node.op_type for node in model.graph.node}
    (image,), (feature,) = model.graph.input, model.graph.output
    assert (image.name, [d.dim_value for d in image.type.tensor_type.shape.dim]) == ("image", [1, 1, 48, 48])
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert feature.name == "feature"
    assert verify(bundle).ok
    assert {row.status for row in verify(bundle).rows} == {"ok", "no engine"}
    with fer_edge.load(float_bundle, runtime="onnxruntime") as clf:
        assert clf.precision == "fp32"


@vela
@pytest.mark.parametrize("target", ["ethos-u55-256", "ethos-u65-512", "ethos-u85-256"])
def test_ethos_u_takes_all_before_the_head(target: str, tmp_path: Path) -> None:
    made = compile_bundle(DEFAULT_BUNDLE, target, tmp_path / "out")
    assert made.bundle is not None
    assert made.misses == ()
    assert made.parity.centred_cosine > 0.99
    assert made.report["operators_npu"] >= 12
    assert made.report["operators_cpu"] == ["DEQUANTIZE", "MUL", "ADD", "L2_NORMALIZATION", "FULLY_CONNECTED"]
    assert made.report["before_head_cpu"] == []
    assert made.report["macs"] > 65e6
    assert made.report["inferences_per_s"] > 100
    (artefact,) = made.bundle.manifest.artefacts
    assert (artefact.runtime, artefact.precision, artefact.target) == ("litert", "int8", target)
    model = tflite_graph.read(tmp_path / "out" / f"litert-{target}.tflite")
    assert b"ethos-u" in [code.customCode for code in model.operatorCodes]
    assert made.bundle.manifest.tools["vela"].startswith("5.")
    (row,) = verify(made.bundle).rows
    assert (row.status, row.problem) == ("no engine", f"it was compiled for {target}; check it there")
    with pytest.raises(fer_edge.BundleError, match=f"it has litert int8 for {target}"):  # no box of ours has one
        fer_edge.load(tmp_path / "out", runtime="litert")


@vela
def test_an_artefact_joins_its_bundle(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_bundle(own).manifest.artefacts
    for _ in range(2):  # the second one takes the first one's place
        status, out, err = called("compile", own, "--target", "ethos-u55-128", "--json", capsys=capsys)
        assert (status, err) == (0, "")
        assert json.loads(out)["bundle"] == str(own)
        after = open_bundle(own).manifest.artefacts
        assert after[:-1] == before
        assert after[-1].target == "ethos-u55-128"
    with fer_edge.load(own, runtime="litert") as clf:  # the one for any box
        assert clf.features([np.zeros((48, 48), np.uint8)]).shape == (1, 256)


@vela
def test_a_graph_with_floats_in_it_is_refused(
    own: Path, float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(own, "litert-int8.tflite", (float_bundle / "litert-fp32.tflite").read_bytes())
    status, out, err = called("compile", own, "--target", "ethos-u55-256", "-o", tmp_path / "out", capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "CONV_2D" in err
    assert "wants a graph of integers" in err
    assert not (tmp_path / "out").exists()


@vela
def test_what_misses_its_bars_is_not_written(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of one convolution in another order: every engine takes the model, and it answers wrongly."""
    model = tflite_graph.read(own / "litert-int8.tflite")
    graph = model.subgraphs[0]
    weights = max((model.buffers[t.buffer] for t in graph.tensors), key=lambda b: 0 if b.data is None else len(b.data))
    weights.data = np.random.default_rng(0).permutation(np.asarray(weights.data))
    changed = tmp_path / "changed.tflite"
    tflite_graph.write(model, changed)
    plant(own, "litert-int8.tflite", changed.read_bytes())
    for output in ((), ("-o", tmp_path / "out")):
        status, out, err = called("compile", own, "--target", "ethos-u55-256", *output, capsys=capsys)
        assert status == 1
        assert "nothing was written" in out
        assert "ethos-u55-256 int8 does not give the float reference's answer in LiteRT's reference kernels: centred" in err
    assert not (tmp_path / "out").exists()
    assert [a.target for a in open_bundle(own).manifest.artefacts if a.target] == []


def test_errors_are_one_line_each(float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    cases: list[tuple[list[Any], str]] = [
        ([float_bundle, "--target", "nope"], "no target 'nope'; there are ethos-u55-32"),
        ([float_bundle, "--target", "rk3588", "--python", sys.executable], "pip install 'fer-edge[rknn]'"),
        ([float_bundle, "--target", "rk3588", "--python", tmp_path / "no"], "does not start"),
        ([DEFAULT_BUNDLE, "--target", "rk3588"], "convert it with --for-targets"),
        ([float_bundle, "--target", "ethos-u55-256"], "has no litert int8 artefact"),
        ([DEFAULT_BUNDLE, "--target", "ethos-u55-256", "--precision", "fp16"], "there is no fp16 for it"),
        ([DEFAULT_BUNDLE, "--target", "ethos-u55-256", "--calibration", "x"], "--calibration is for int8"),
        ([float_bundle, "--target", "rk3588", "--precision", "fp16", "--calibration", "x"], "fp16 needs none"),
        ([float_bundle, "--target", "rk3588", "-o", tmp_path / "there"], "exists already"),
        ([tmp_path / "there", "--target", "rk3588"], "is not a bundle"),
    ]
    if not installed("rknn-toolkit2"):
        cases.append(([float_bundle, "--target", "rk3588"], "pip install 'fer-edge[rknn]'"))
    for arguments, words in cases:
        status, out, err = called("compile", *arguments, capsys=capsys)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert words in err
    assert telling("one\nI fine\n\x1b[1;31mE\x1b[0m load_onnx: no\nlast") == "E load_onnx: no"


SIMULATED = """
import json, sys
import numpy as np
import fer_edge

folder, files = sys.argv[1:]
clf = fer_edge.load(folder, runtime="rknn")
crops = np.load(folder + "/golden.npz")["crops"]
shown = [c[..., 0] for c in crops]
told = {"device": clf.device, "engine": clf.engine, "execution_precision": clf.execution_precision}
told["features"] = clf.features(shown).tolist()
told["again"] = clf.features(shown[::-1])[::-1].tolist() == told["features"]
told["labels"] = [p.label for p in clf.predict_batch(shown)]
clf.close()
told["errors"] = []
for call in (lambda: clf.predict(shown[0]), lambda: fer_edge.load(folder, runtime="rknn", device="NPU"),
             lambda: fer_edge.load(folder, runtime="rknn", execution_precision="bf16")):
    try:
        call()
    except fer_edge.FerEdgeError as error:
        told["errors"].append(type(error).__name__ + ": " + str(error))
open(files, "w").write(json.dumps(told))
"""


@pytest.mark.parametrize(("target", "precision"), [("rk3588", "int8"), ("rv1126b", "int8"), ("rk3576", "fp16")])
def test_rknn_in_the_vendors_simulator(
    target: str, precision: str, float_bundle: Path, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled, judged, written; and the adapter, in the toolkit's own environment, answers as the judge did."""
    python = toolchain("rknn-toolkit2")
    out = tmp_path / "out"
    options = ("--target", target, "--precision", precision, "--python", python, "-o", out, "--json")
    status, told, _ = called("compile", float_bundle, *options, capsys=capsys)
    assert status == 0
    made = json.loads(told)
    assert made["parity"]["centred_cosine"] > (0.97 if precision == "int8" else 0.9999)
    bundle = open_bundle(out)
    (artefact,) = bundle.manifest.artefacts
    assert (artefact.runtime, artefact.precision, artefact.target) == ("rknn", precision, target)
    assert [Path(file.path).name for file in artefact.files] == [f"rknn-{target}.rknn", f"rknn-{target}.npz"]
    (row,) = verify(bundle).rows
    assert row.status == "no engine"  # in this environment
    command = [python, "-c", SIMULATED, out, tmp_path / "told.json"]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"})
    seen = json.loads((tmp_path / "told.json").read_text())
    assert (seen["device"], seen["execution_precision"]) == ("simulator", precision)
    assert seen["again"]
    golden, labels = golden_set(bundle), label_set(bundle, bundle.manifest.default_labels)
    parity = fer_edge_parity(np.array(seen["features"], np.float32), golden.features, labels)
    assert parity == pytest.approx(made["parity"]["centred_cosine"], abs=1e-6)
    expected = labels.scores(golden.features).argmax(1)
    assert np.mean([labels.labels.index(name) for name in seen["labels"]] == expected) > 0.9
    closed, device, asked = seen["errors"]
    assert closed.startswith("UsageError")
    assert device == "EngineError: rknn has no device 'NPU' here; there are simulator"
    assert "follows the artefact" in asked
    done = subprocess.run(
        [python, "-m", "fer_edge", "verify", out, "--json"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["artefacts"][0]["status"] == "ok"


def fer_edge_parity(features: np.ndarray, reference: np.ndarray, labels: fer_edge.labels.LabelSet) -> float:
    """The centred cosine."""
    from fer_edge.golden import compare

    return compare(features, None, reference, labels).centred_cosine


def test_rknn_refuses_an_operator_in_one_line(
    float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = toolchain("rknn-toolkit2")
    own = Path(shutil.copytree(float_bundle, tmp_path / "own"))
    model = onnx.load(own / "targets" / "float.onnx")
    model.opset_import[0].version = 21
    plant(own, "targets/float.onnx", model.SerializeToString())
    status, out, err = called("compile", own, "--target", "rk3588", "--python", python, capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "rknn-toolkit2 refuses the model: ValueError: Unsupport onnx opset 21" in err
    assert [a.target for a in open_bundle(own).manifest.artefacts] == [None, None, FOR_COMPILERS]


def test_rknn_calibrated_with_noise_is_not_written(
    float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black pictures say nothing of ranges: the judge says so, and nothing is written."""
    python = toolchain("rknn-toolkit2")
    np.savez(tmp_path / "black.npz", images=np.zeros((8, 48, 48), np.uint8))
    options = ("--target", "rk3588", "--python", python, "--calibration", tmp_path / "black.npz", "-o", tmp_path / "out")
    status, _, err = called("compile", float_bundle, *options, capsys=capsys)
    assert status == 1
    assert "does not give the float reference's answer in the simulator of rknn-toolkit2" in err
    assert "centred cosine" in err
    assert not (tmp_path / "out").exists()


def test_an_artefact_for_a_chip_is_opened_where_it_is_named(float_bundle: Path, tmp_path: Path) -> None:
    """Without the toolkit: the missing extra is told, and no runtime is chosen that cannot open it."""
    from fer_edge.manifest import read_manifest, to_bytes

    own = Path(shutil.copytree(float_bundle, tmp_path / "own"))
    manifest = read_manifest(own)
    graph = next(a for a in manifest.artefacts if a.target == FOR_COMPILERS)
    chip = replace(graph, runtime="rknn", precision="int8", target="rk3588")
    (own / "manifest.json").write_bytes(to_bytes(replace(manifest, artefacts=(chip,))))
    with pytest.raises(fer_edge.BundleError, match="it has rknn int8 for rk3588"):
        fer_edge.load(own)
    if not installed("rknn-toolkit2"):
        with pytest.raises(fer_edge.MissingExtraError, match=r"fer-edge\[rknn\]"):
            fer_edge.load(own, runtime="rknn")
