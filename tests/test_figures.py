"""The commands behind the documentation's figures: they run on the embedded default and say what an independent count
says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fer_edge
from fer_edge.benchmarks.evaluate import evaluate
from fer_edge.benchmarks.report.card import confusion_picture, figures_section
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.converters.convert import Plan, convert
from fer_edge.labelled import read_faces
from lab.figures import figures

MEMBERS = ("--truth", "t", "--classes", "c")


@pytest.fixture(scope="module")
def faces(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 labelled faces."""
    file = tmp_path_factory.mktemp("figures") / "faces.npz"
    with np.load(data / "fer2013" / "public_test.npz") as z:
        rows = np.flatnonzero(z["ferplus_majority_labelcsv"] >= 0)[:200]
        np.savez(file, images=z["images"][rows], t=z["ferplus_majority_labelcsv"][rows], c=z["ferplus_class_names"])
    return file


def called(*arguments: object) -> str:
    result = CliRunner().invoke(figures, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_another_model_is_measured_in_turns() -> None:
    """With our own LiteRT artefact as the other model, the LiteRT ratio is about what our adapter adds."""
    found = json.loads(called("rival", DEFAULT_BUNDLE / "litert-int8.tflite", "--rounds", 20))
    assert set(found["ratio"]) == {"openvino int8", "litert int8", "onnxruntime int8", "predict, openvino int8"}
    assert all(value > 0 for value in (*found["ratio"].values(), *found["median_ms"].values()))
    other = found["median_ms"]["litert-int8.tflite"]
    assert found["ratio"]["litert int8"] == pytest.approx(found["median_ms"]["litert int8"] / other, rel=0.01)


def test_agreement_of_int8_with_float(root: Path, faces: Path, tmp_path: Path, data: Path) -> None:
    calibration = data / "fer2013" / "train.npz"
    plan = Plan(runtimes=("onnxruntime",), precisions=("int8", "fp32"), calibration=calibration, calibration_count=50)
    convert(str(root / "converters/student/student48.safetensors"), tmp_path / "b", plan)
    found = json.loads(called("agreement", tmp_path / "b", faces, *MEMBERS))
    row = found["runtimes"]["onnxruntime"]
    said = {}
    for precision in ("int8", "fp32"):
        with fer_edge.load(tmp_path / "b", precision=precision) as clf:
            result = evaluate(clf, read_faces(faces, "t", "c"))
            said[precision] = [clf.predict(image).label for image in read_faces(faces, "t", "c").images]
        assert row[precision]["war"] == pytest.approx(result.war, abs=1e-4)
        assert row[precision]["uar"] == pytest.approx(result.uar, abs=1e-4)
        assert row[precision]["uar_interval"] == pytest.approx(result.intervals.uar, abs=1e-4)
    assert row["agreement"] == pytest.approx(np.mean([a == b for a, b in zip(*said.values(), strict=True)]), abs=1e-4)
    assert found["faces"] == 200


def test_agreement_needs_both_precisions(faces: Path) -> None:
    result = CliRunner().invoke(figures, ["agreement", str(DEFAULT_BUNDLE), str(faces), *MEMBERS])
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]* convert with --precision int8 --precision fp32\n", result.output), result.output


def test_the_figures_of_a_card(faces: Path) -> None:
    with fer_edge.load() as clf:
        result = evaluate(clf, read_faces(faces, "t", "c"))
    text = called("card", DEFAULT_BUNDLE, faces, *MEMBERS)
    assert f"| openvino | int8 | {result.war:.1%} (" in text
    assert text.count("| int8 |") == 3
    for label, count in result.per_class_count.items():
        recall = result.per_class_recall[label]
        assert f"| {label} | {count} | {'-' if recall is None else f'{recall:.0%}'} |" in text
    picture = confusion_picture(result)
    assert len({len(line) for line in picture}) == 1, "the columns stand under their heads"
    assert "\n".join(picture) in text
    happy = next(line for line in picture if line.split()[0] == "happiness")
    share = result.confusion[0][0] / sum(result.confusion[0])
    assert f"███{share:4.0%}" in happy or share < 0.75


def test_a_class_without_faces_has_no_recall(faces: Path) -> None:
    with fer_edge.load() as clf:
        known = read_faces(faces, "t", "c")
        few = evaluate(clf, type(known)(known.images[:20], ["happiness"] * 20))
    assert "| contempt | 0 | - | - |" in figures_section([few])
