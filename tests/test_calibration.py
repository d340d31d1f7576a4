"""Temperatures and thresholds: against scipy and scikit-learn, against cases that can be worked out by hand, and what
``fer-edge calibrate`` writes against what the written bundle then does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import log_loss

import fer_edge
from fer_edge.accuracy import calibration_error, error_at_coverage
from fer_edge.bundle import change_label_sets, label_set, open_bundle
from fer_edge.calibration import fit_temperature, likelihood_loss, threshold_at_coverage, threshold_at_error
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import main
from fer_edge.errors import UsageError
from fer_edge.labels import softmax
from fer_edge.manifest import digest_of

pytest.importorskip("rich")

from fer_edge.benchmarks.evaluate import evaluate
from fer_edge.labelled import read_faces

MEMBERS = ("--truth", "t", "--classes", "c")
Run = Callable[..., tuple[int, str, str]]


def drawn(count: int, classes: int, temperature: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of a classifier that is as sure as it should be at this temperature, and truths drawn from its scores."""
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(count, classes))).astype(np.float32)
    shares = softmax(logits / np.float32(temperature)).cumsum(1)
    return logits, (rng.random((count, 1)) > shares).sum(1).clip(0, classes - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_that_scipy_finds(temperature: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, truth = drawn(800, 7, temperature, 1)

    def loss(log: float) -> float:
        scores = np.exp(logits.astype(np.float64) / math.exp(log))
        return float(log_loss(truth, scores / scores.sum(1, keepdims=True), labels=range(7)))

    best = optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(logits, truth)
    assert found.value == pytest.approx(math.exp(best.x), rel=1e-5)
    assert likelihood_loss(logits, truth, found.value) == pytest.approx(best.fun, abs=1e-12)
    assert likelihood_loss(logits, truth, 2.5) == pytest.approx(loss(math.log(2.5)), rel=1e-9)
    assert found.interval[0] < temperature < found.interval[1]


def test_a_temperature_by_hand() -> None:
    """Two labels, every face with the same logits, nine of ten right: softmax must give 0.9, so T = z / ln 9."""
    logits = np.tile(np.float32([[3.0, 0.0]]), (100, 1))
    truth = (np.arange(100) % 10 == 0).astype(np.int64)
    found = fit_temperature(logits, truth)
    assert found.value == pytest.approx(3 / math.log(9), rel=1e-9)
    assert fit_temperature(logits + 700, truth).value == pytest.approx(3 / math.log(9), rel=1e-4)


def test_the_interval_is_that_of_drawing_faces_again() -> None:
    logits, truth = drawn(600, 5, 1.5, 2)
    found = fit_temperature(logits, truth)
    rng = np.random.default_rng(0)
    again = []
    for _ in range(300):
        rows = rng.integers(0, 600, 600)
        again.append(fit_temperature(logits[rows], truth[rows]).value)
    low, high = np.percentile(again, (2.5, 97.5))
    assert found.interval[0] == pytest.approx(low, abs=0.25 * (high - low))
    assert found.interval[1] == pytest.approx(high, abs=0.25 * (high - low))


def test_where_no_temperature_fits() -> None:
    logits, _ = drawn(100, 4, 1.0, 3)
    with pytest.raises(UsageError, match="hardly an error"):
        fit_temperature(logits, logits.argmax(1))
    with pytest.raises(UsageError, match="less than chance"):
        fit_temperature(logits, logits.argmin(1))


def test_a_threshold_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert threshold_at_coverage(confidence, 0.125) == pytest.approx(0.85)
    assert threshold_at_coverage(confidence, 0.25) == pytest.approx(0.75), "both of 0.8 are certain or none"
    assert threshold_at_coverage(confidence, 0.5) == pytest.approx(0.65)
    assert threshold_at_coverage(confidence, 0.51) == pytest.approx(0.55)
    assert threshold_at_coverage(confidence, 1) == 0
    assert error_at_coverage(confidence, np.arange(8) != 2, 0.25) == pytest.approx(1 / 3)
    assert error_at_coverage(confidence, np.arange(8) != 2, 0.1) == 0
    assert error_at_coverage(confidence, np.arange(8) < 4, 1) == 0.5


@pytest.mark.parametrize("error", [0.0, 0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("digits", [1, 6])
def test_the_threshold_of_an_error_is_the_lowest_that_keeps_it(error: float, digits: int) -> None:
    """Against every threshold that there is, with many equal scores and with none."""
    rng = np.random.default_rng(digits)
    confidence = np.round(rng.random(400), digits)
    right = rng.random(400) < 0.2 + 0.85 * confidence**0.5
    kept = {t: confidence >= t for t in np.unique(confidence)}
    good = [t for t, some in kept.items() if some.sum() >= 30 and 1 - right[some].mean() <= error]
    if not good:
        with pytest.raises(UsageError, match="the lowest is"):
            threshold_at_error(confidence, right, error)
        return
    found = threshold_at_error(confidence, right, error)
    assert np.array_equal(confidence >= found, confidence >= min(good))
    assert not np.isclose(confidence, found, atol=1e-9).any() or found == 0, "engines differ in the last digits"


@pytest.fixture(scope="module")
def parts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets of 400 different faces."""
    folder = tmp_path_factory.mktemp("calibration")
    with np.load(data / "fer2013" / "public_test.npz") as z:
        rows = np.flatnonzero((z["ferplus_majority_labelcsv"] >= 0) & z["unique"])[:800]
        images, truth, names = z["images"][rows], z["ferplus_majority_labelcsv"][rows], z["ferplus_class_names"]
    for i, name in enumerate(("fit", "test")):
        np.savez(folder / f"{name}.npz", images=images[i::2], t=truth[i::2], c=names)
    return folder / "fit.npz", folder / "test.npz"


@pytest.fixture
def bundle(bundle: Path) -> Path:
    """The embedded bundle as it was converted: at temperature 1, every answer certain."""
    opened = open_bundle(bundle)
    sets = [label_set(opened, ref.name) for ref in opened.manifest.label_sets]
    change_label_sets(opened, [replace(labels, temperature=1.0, threshold=0.0, least_length=0.0) for labels in sets])
    return bundle


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``fer-edge calibrate ARGUMENTS``: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["calibrate", *map(str, arguments)])
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return call


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert "Error: unexpected" not in err
    for word in words:
        assert word in err


def test_what_is_written_is_what_was_promised(bundle: Path, parts: tuple[Path, Path], run: Run) -> None:
    """The figures against those of the bundle as it was and as it is then, by ``evaluate`` and by its predictions."""
    fit, test = parts
    with fer_edge.load(bundle) as clf:
        before = {file: evaluate(clf, read_faces(file, "t", "c")) for file in parts}
    code, out, err = run(bundle, fit, *MEMBERS, "--evaluation", test, "--error", 0.06, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    (entry,) = found["label_sets"]
    assert found["written"]
    assert found["digest"] == digest_of(open_bundle(bundle).manifest) != digest_of(open_bundle(DEFAULT_BUNDLE).manifest)
    labels = label_set(open_bundle(bundle), "ferplus8")
    assert (labels.temperature, labels.threshold) == (entry["temperature"], entry["threshold"])
    assert entry["temperature_interval"][0] < entry["temperature"] < entry["temperature_interval"][1] < 1
    with fer_edge.load(bundle) as clf:
        after = {file: evaluate(clf, read_faces(file, "t", "c")) for file in parts}
        answers = clf.predict_batch(read_faces(test, "t", "c").images)
        right = np.array([a.label == c for a, c in zip(answers, read_faces(test, "t", "c").classes, strict=True)])
        scores = np.array([a.score for a in answers])
        certain = np.array([a.certain for a in answers])
    checks = {"before": before[fit], "after": after[fit], "evaluation_before": before[test], "evaluation_after": after[test]}
    for name, result in checks.items():
        figures = entry[name]
        assert figures["n"] == result.n == 400
        assert figures["error"] == pytest.approx(1 - result.war, abs=1e-9)
        for mine, theirs in (
            (figures["calibration_error"], result.calibration_error),
            (figures["certain"], result.certain),
            (figures["certain_error"], result.certain_error),
            (figures["error_at_80"], result.error_at_coverage["0.8"]),
        ):
            assert mine == pytest.approx(theirs, abs=1e-6), name
    figures = entry["evaluation_after"]
    assert figures["certain"] == pytest.approx(certain.mean()) == pytest.approx((scores >= entry["threshold"]).mean())
    assert figures["certain_error"] == pytest.approx(1 - right[certain].mean())
    assert figures["calibration_error"] == pytest.approx(calibration_error(scores, right), abs=1e-6)
    assert figures["error_at_80"] == pytest.approx(1 - right[np.argsort(-scores)[:320]].mean(), abs=1e-9)
    assert entry["after"]["certain_error"] <= 0.06
    assert entry["after"]["loss"] < entry["before"]["loss"]
    assert 0 < entry["after"]["certain"] < 1
    assert entry["cross_validated"]["loss"] > entry["after"]["loss"], "nothing fits better than what it was fitted to"
    assert entry["evaluation_after"]["calibration_error"] < entry["evaluation_before"]["calibration_error"]


def test_several_label_sets_a_dry_run_and_text(bundle: Path, parts: tuple[Path, Path], run: Run) -> None:
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    sets = ("--labels", "ferplus8", "--labels", "rafdb7", "--skip-unknown")
    code, out, err = run(bundle, parts[0], *MEMBERS, *sets, "--coverage", 0.8, "--dry-run")
    assert code == 0
    assert "Nothing was written." in err
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    assert "ferplus8 (openvino" in out
    assert "rafdb7 (openvino" in out
    _, out, _ = run(bundle, parts[0], *MEMBERS, *sets, "--coverage", 0.8, "--json")
    eight, seven = json.loads(out)["label_sets"]
    assert seven["skipped_classes"] == {"contempt": eight["after"]["n"] - seven["after"]["n"]}
    assert sum(seven["skipped_classes"].values()) > 0
    for entry in (eight, seven):
        assert 0.8 <= entry["after"]["certain"] < 0.8 + 2 / entry["after"]["n"]
        assert label_set(open_bundle(bundle), entry["label_set"]).threshold == entry["threshold"]


def test_a_temperature_and_a_threshold_can_be_set(bundle: Path, parts: tuple[Path, Path], run: Run) -> None:
    _, out, _ = run(bundle, parts[0], *MEMBERS, "--temperature", 0.8, "--threshold", 0.5, "--json")
    (entry,) = json.loads(out)["label_sets"]
    assert (entry["temperature"], entry["threshold"], entry["temperature_interval"]) == (0.8, 0.5, None)
    refused(run(bundle, parts[0], *MEMBERS), "ferplus8", "threshold 0.5", "--threshold 0")
    _, out, _ = run(bundle, parts[0], *MEMBERS, "--threshold", 0, "--json")
    (entry,) = json.loads(out)["label_sets"]
    assert (entry["threshold_before"], entry["threshold"], entry["after"]["certain"]) == (0.5, 0, 1)


def test_pictures_without_a_face(bundle: Path, parts: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "none" / "deeper").mkdir(parents=True)
    noise = [rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(20)]
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(tmp_path / "none" / ("deeper" if i % 2 else "") / f"{i}.png")
    (tmp_path / "none" / "notes.txt").write_text("no picture")
    np.savez(tmp_path / "none.npz", images=np.stack(noise))
    shares = []
    for source in ("none", "none.npz"):
        code, out, err = run(bundle, parts[0], *MEMBERS, "--error", 0.05, "--background", tmp_path / source, "--json")
        assert code == 0
        assert ("notes.txt" in err) == (source == "none")
        shares.append(json.loads(out)["label_sets"][0]["background_uncertain"])
    with fer_edge.load(bundle) as clf:
        uncertain = np.mean([not p.certain for p in clf.predict_batch(noise)])
    assert shares == [pytest.approx(uncertain)] * 2
    refused(run(bundle, parts[0], *MEMBERS, "--threshold", 0.5, "--background", tmp_path / "nothing"), "does not exist")


def test_what_is_hardly_a_face(bundle: Path, parts: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """Flat pictures answer with short features. The least length costs the share of the faces that may be lost, and a
    threshold at an error counts among the others alone."""
    fit, test = parts
    flat = np.stack([np.full((48, 48), level, np.uint8) for level in range(30, 230, 10)])
    np.savez(tmp_path / "flat.npz", images=flat)
    shown = ("--background", tmp_path / "flat.npz", "--evaluation", test, "--json")
    lost = json.loads(run(bundle, fit, *MEMBERS, *shown, "--dry-run")[1])["label_sets"][0]
    assert (lost["least_length"], lost["background_uncertain"]) == (0, 0)
    found = json.loads(run(bundle, fit, *MEMBERS, *shown, "--face-loss", 0.02)[1])["label_sets"][0]
    labels = label_set(open_bundle(bundle), "ferplus8")
    assert found["background_uncertain"] == 1
    assert found["after"]["certain"] == pytest.approx(0.98)
    with fer_edge.load(bundle) as clf:
        lengths = {file: np.linalg.norm(clf.features(read_faces(file, "t", "c").images), axis=1) for file in parts}
        assert not any(p.certain for p in clf.predict_batch(flat))
    assert (lengths[fit] < labels.least_length).sum() == 8
    assert found["evaluation_after"]["certain"] == pytest.approx((lengths[test] >= labels.least_length).mean())
    refused(run(bundle, fit, *MEMBERS), "least length", "--face-loss")
    refused(run(bundle, fit, *MEMBERS, "--face-loss", 0.2, "--coverage", 0.9), "face loss of 20.0%", "coverage of 90.0%")
    covered = json.loads(run(bundle, fit, *MEMBERS, "--face-loss", 0.2, "--coverage", 0.7, "--json")[1])["label_sets"][0]
    assert covered["after"]["certain"] == pytest.approx(0.7)
    rare = json.loads(run(bundle, fit, *MEMBERS, "--face-loss", 0.2, "--error", 0.06, "--json")[1])["label_sets"][0]
    assert rare["after"]["certain_error"] <= 0.06
    assert (
        json.loads(run(bundle, fit, *MEMBERS, "--face-loss", 0, "--threshold", 0, "--json")[1])["label_sets"][0][
            "least_length"
        ]
        == 0
    )


def test_faces_that_are_in_both_are_refused(bundle: Path, parts: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """Also as files of another format, in folders."""
    fit, _ = parts
    faces = read_faces(fit, "t", "c")
    for i in range(3):
        (tmp_path / "test" / faces.classes[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(faces.images[i])).save(tmp_path / "test" / faces.classes[i] / f"{i}.bmp")
    outcome = run(bundle, fit, *MEMBERS, "--evaluation", tmp_path / "test")
    refused(outcome, "3 pictures", str(fit), str(tmp_path / "test"))


def test_what_cannot_be_calibrated(bundle: Path, parts: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    fit, _ = parts
    before = (bundle / "manifest.json").read_bytes()
    with np.load(fit) as z:
        arrays: dict[str, Any] = dict(z)
    np.savez(tmp_path / "few.npz", images=arrays["images"][:30], t=arrays["t"][:30], c=arrays["c"])
    np.savez(tmp_path / "wrong.npz", **{**arrays, "t": (arrays["t"] + 1) % 8})
    refused(run(bundle, tmp_path / "few.npz", *MEMBERS), "30 labelled faces", "too few")
    refused(run(bundle, tmp_path / "wrong.npz", *MEMBERS), "less than chance")
    refused(run(bundle, fit, *MEMBERS, "--error", 0.05, "--coverage", 0.9), "name one of them")
    refused(run(bundle, fit, *MEMBERS, "--labels", "rafdb7"), "'contempt'", "--skip-unknown")
    refused(run(bundle, fit, *MEMBERS, "--labels", "mine"), "no label set 'mine'")
    refused(run(bundle, fit, *MEMBERS, "--threshold", "nan"), "--threshold")
    folder = tmp_path / "faces" / "fear"
    folder.mkdir(parents=True)
    (folder / "broken.png").write_bytes(b"no picture")
    refused(run(bundle, folder.parent), "broken.png")
    assert (bundle / "manifest.json").read_bytes() == before
