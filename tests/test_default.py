"""The embedded default: what it weighs, what its card says, and how right it is on real faces, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fer_edge
from fer_edge.benchmarks.evaluate import evaluate
from fer_edge.bundle import golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.engines import RUNTIMES
from fer_edge.labelled import read_faces

CHECKPOINT = "converters/student/student48.safetensors"


def test_what_it_holds_and_weighs(root: Path) -> None:
    manifest = open_bundle(DEFAULT_BUNDLE).manifest
    assert manifest.default_labels == "ferplus8"
    assert {ref.name for ref in manifest.label_sets} == {"ferplus8", "rafdb7"}
    assert {(a.runtime, a.precision) for a in manifest.artefacts} == {(r, "int8") for r in RUNTIMES}
    for artefact in manifest.artefacts:
        assert sum(f.bytes for f in artefact.files) <= 2_000_000
        assert not artefact.drift_allowed
    assert (root / CHECKPOINT).stat().st_size + sum(
        p.stat().st_size for p in DEFAULT_BUNDLE.rglob("*") if p.is_file()
    ) < 10e6


def test_every_file_is_named_in_the_manifest() -> None:
    from fer_edge.bundle import all_files

    named = {path for path, _, _ in all_files(open_bundle(DEFAULT_BUNDLE))} | {"manifest.json"}
    assert {str(p.relative_to(DEFAULT_BUNDLE)) for p in DEFAULT_BUNDLE.rglob("*") if p.is_file()} == named


def test_no_path_of_a_machine_ships() -> None:
    """Exporters like to write stack traces into their models."""
    for file in DEFAULT_BUNDLE.rglob("*"):
        if file.is_file():
            found = re.findall(rb"(?:/home/|/root/|/tmp/|/work/|/Users/|C:\\\\)[\w./-]+|[\w/]+\.py\b", file.read_bytes())
            assert found == [], f"{file.name}: {found[:3]}"


def test_the_card_says_what_a_user_must_know() -> None:
    card = open_bundle(DEFAULT_BUNDLE).manifest.card.lower()
    for word in (
        "fer2013",
        "fer+",
        "research",
        "fer-edge student train",
        "war",
        "uar",
        "contempt",
        "must not",
        "ai act",
        "astronaut",
    ):
        assert word in card, word


def test_no_face_of_the_research_data_ships(data: Path) -> None:
    """The golden crops are not pictures of FER2013."""
    crops = {crop.tobytes() for crop in golden_set(open_bundle(DEFAULT_BUNDLE)).crops}
    with np.load(data / "fer2013" / "train.npz") as z:
        assert not crops & {image.tobytes() for image in z["images"]}


def test_it_is_made_from_the_shipped_checkpoint(student_bundle: Path) -> None:
    made, shipped = open_bundle(student_bundle), open_bundle(DEFAULT_BUNDLE)
    assert made.manifest.encoder.sha256 == shipped.manifest.encoder.sha256
    assert made.manifest.text_encoder == shipped.manifest.text_encoder
    np.testing.assert_allclose(golden_set(made).features, golden_set(shipped).features, atol=1e-4)


def test_the_first_example_of_the_readme_is_true(root: Path) -> None:
    """Its labels and its row of ``verify``, within what processors differ by."""
    readme = (root / "README.md").read_text()
    shown = re.search(r"astronaut.png: (\w+) ([\d.]+)%, (\w+) ([\d.]+)%", readme)
    row = re.search(r"^openvino int8 +ok +([\d.]+) ", readme, re.MULTILINE)
    assert shown
    assert row
    with fer_edge.load(runtime="openvino") as clf:
        scores = clf.predict(root / "examples" / "astronaut.png", box=(168, 56, 112, 112)).scores
    assert sorted(scores, key=lambda label: -scores[label])[:2] == [shown[1], shown[3]]
    assert [100 * scores[shown[i]] for i in (1, 3)] == pytest.approx([float(shown[i]) for i in (2, 4)], abs=0.3)
    (artefact,) = (a for a in open_bundle(DEFAULT_BUNDLE).manifest.artefacts if a.runtime == "openvino")
    assert float(row[1]) == pytest.approx(artefact.parity["centred_cosine"], abs=0.002)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_accuracy_on_public_test(runtime: str, data: Path) -> None:
    """int8 WAR on the validation split, as the model card states it."""
    faces = read_faces(data / "fer2013" / "public_test.npz", "ferplus_majority_labelcsv", "ferplus_class_names")
    with fer_edge.load(runtime=runtime) as clf:
        result = evaluate(clf, faces)
    assert result.n == 3191
    assert result.war >= 0.875
    assert result.uar >= 0.70
    assert result.calibration_error <= 0.03
