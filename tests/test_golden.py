"""Parity has teeth: artefacts that answer a constant, have permuted weights, or are fed BGR fail, on every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fer_edge
from fer_edge.bundle import MIN_CROPS, Golden, golden_set, label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE, choose_artefact, open_session
from fer_edge.converters.convert import Plan
from fer_edge.converters.exporter import Export, load_exporter, write_all
from fer_edge.engines import RUNTIMES
from fer_edge.golden import BARS, Parity, compare, measure, with_floors
from fer_edge.labels import LabelSet


def run_of(bundle: Path, runtime: str) -> tuple[object, Golden, LabelSet]:
    opened = open_bundle(bundle)
    name, artefact = choose_artefact(opened, runtime, "fp32")
    return (
        open_session(opened, name, artefact, None, 1, None),
        golden_set(opened),
        label_set(opened, opened.manifest.default_labels),
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_right_artefact_passes_and_bgr_fails(clip_bundle: Path, runtime: str) -> None:
    session, golden, labels = run_of(clip_bundle, runtime)
    assert len(golden.crops) >= MIN_CROPS
    assert len({crop.tobytes() for crop in golden.crops}) == len(golden.crops)
    assert measure(session.run, golden, labels).misses(BARS["fp32"]) == []  # type: ignore[attr-defined]
    swapped = measure(lambda crop: session.run(np.ascontiguousarray(crop[..., ::-1])), golden, labels)  # type: ignore[attr-defined]
    for precision in BARS:
        assert swapped.misses(BARS[precision]), f"BGR passes the bars of {precision}: {swapped}"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_permuted_weights_and_a_constant_fail(runtime: str, tmp_path: Path) -> None:
    """Real artefacts, converted from a student whose weights were permuted, or whose last layer was made constant."""
    from fer_edge.converters import convert as conversion
    from fer_edge.runtime import open_model

    source = Path(conversion.__file__).parent / "student" / "student48.safetensors"
    opened = open_bundle(DEFAULT_BUNDLE)
    golden, labels = golden_set(opened), label_set(opened, "ferplus8")
    material = conversion._prepare(str(source), Plan(calibration_count=8))

    def passes(name: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()

        export = Export(material.reference.graph, material.calibration, "cnn", False, tmp_path / f"{name}-scratch")
        export.scratch.mkdir()
        files = write_all(load_exporter(runtime), export, ("fp32",), folder)["fp32"]
        session = open_model(runtime, [folder / f for f in files], "fp32", None, 1)
        return measure(session.run, golden, labels).misses(BARS["int8"])

    assert passes("right") == []
    with torch.no_grad():
        conv = material.reference.graph.encoder.convs[4]  # type: ignore[union-attr, index]
        kept = conv.weight.clone()
        conv.weight.copy_(kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))])
        assert passes("permuted")
        conv.weight.copy_(kept)
        last = material.reference.graph.encoder.convs[-1]  # type: ignore[union-attr, index]
        last.weight.zero_()
        last.bias.fill_(1.0)
        assert passes("constant")


def test_a_constant_has_a_plain_cosine_that_would_pass(clip_bundle: Path) -> None:
    """Why the mean is subtracted: the constant answer is nearly parallel to every reference."""
    opened = open_bundle(clip_bundle)
    golden, labels = golden_set(opened), label_set(opened, opened.manifest.default_labels)
    constant = np.repeat(golden.features.mean(0, keepdims=True), len(golden.features), 0)
    plain = (constant * golden.features).sum(1) / np.linalg.norm(constant, axis=1) / np.linalg.norm(golden.features, axis=1)
    assert plain.min() > 0.95
    for bars in BARS.values():
        assert compare(constant, None, golden.features, labels).misses(bars)
    # Also where a manifest allows any drift, and where rounding or noise moves the constant a little.
    noise = np.random.default_rng(0).normal(size=constant.shape).astype(np.float32) * 1e-7
    for nearly in (constant, constant * (1 + noise)):
        assert compare(nearly, None, golden.features, labels).misses({}) == ["the answer is the same for every picture"]
    assert compare(golden.features, None, golden.features, labels).misses({}) == []


def test_nan_inf_and_unequal_runs_fail_outright() -> None:
    opened = open_bundle(DEFAULT_BUNDLE)
    golden, labels = golden_set(opened), label_set(opened, "ferplus8")
    answers: dict[bytes, NDArray[np.float32]] = {c.tobytes(): f for c, f in zip(golden.crops, golden.features, strict=True)}
    calls = 0

    def run(crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        feature = answers[crop.tobytes()].copy()
        return feature, labels.logits(feature)

    def wavering(crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        nonlocal calls
        calls += 1
        feature, logits = run(crop)
        feature[0] = np.nextafter(feature[0], np.float32(np.inf)) if calls > len(golden.crops) else feature[0]
        return feature, logits

    def broken(value: float) -> list[str]:
        return measure(lambda crop: (run(crop)[0] * np.float32(value), run(crop)[1]), golden, labels).misses({})

    assert measure(run, golden, labels).misses(BARS["fp32"]) == []
    assert measure(wavering, golden, labels).misses({}) == ["two runs gave different outputs"]
    assert broken(float("nan")) == ["the output has NaN or Inf"]
    assert broken(float("inf")) == ["the output has NaN or Inf"]


def test_wrong_logits_with_right_features_fail() -> None:
    """C++ and Java users read the graph's own logits: these are judged too."""
    opened = open_bundle(DEFAULT_BUNDLE)
    golden, labels = golden_set(opened), label_set(opened, "ferplus8")
    logits = labels.logits(golden.features)
    assert compare(golden.features, logits, golden.features, labels).misses(BARS["fp32"]) == []
    assert compare(golden.features, logits[:, ::-1], golden.features, labels).misses(BARS["int8"])


def test_parity_against_an_independent_writing() -> None:
    rng = np.random.default_rng(0)
    labels = LabelSet("x", ("a", "b", "c"), rng.normal(size=(3, 8)).astype(np.float32), 10.0, 1.0, (("a",),) * 3)
    reference = rng.normal(size=(20, 8)).astype(np.float32)
    features = reference + rng.normal(scale=0.8, size=(20, 8)).astype(np.float32)
    a, b = features.astype(np.float64) - reference.mean(0), reference.astype(np.float64) - reference.mean(0)
    own = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    nearest = [int(np.argmax([x @ y / np.linalg.norm(y) for y in b])) for x in a]
    parity = compare(features, None, reference, labels)
    assert parity.centred_cosine == pytest.approx(np.mean(own), abs=1e-6)
    assert parity.centred_cosine_min == pytest.approx(min(own), abs=1e-6)
    assert parity.self_retrieval == np.mean(np.array(nearest) == np.arange(20))


def test_verify_on_the_embedded_bundle_is_what_the_manifest_says() -> None:
    """The parity measured here is close to the one that was measured when the bundle was written."""
    from fer_edge.verify import verify

    opened = open_bundle(DEFAULT_BUNDLE)
    report = verify(opened)
    assert report.ok
    for row, artefact in zip(report.rows, opened.manifest.artefacts, strict=True):
        if row.parity is not None:
            assert row.parity.centred_cosine == pytest.approx(artefact.parity["centred_cosine"], abs=0.02)


def test_features_are_not_normalised() -> None:
    with fer_edge.load(runtime="null") as clf:
        feature = clf.features([np.zeros((48, 48), np.uint8)])
    assert abs(float(np.linalg.norm(feature)) - 1) > 1e-3


def test_logits_of_another_label_set_are_a_miss() -> None:
    opened = open_bundle(DEFAULT_BUNDLE)
    golden, seven = golden_set(opened), label_set(opened, "rafdb7")
    eight = label_set(opened, "ferplus8").logits(golden.features)
    short = compare(golden.features, eight, golden.features, seven).misses(BARS["int8"])
    assert short == [
        "the model's logits are not those of its default label set (head difference 1)",
        "top1 agreement 0 is below 0.9",
    ]


@pytest.mark.parametrize("label", range(8))
def test_a_changed_constant_of_any_label_is_seen(bundle: Path, label: int) -> None:
    """Also of those that no golden crop shows: a tenth more of one vector, in a set that is signed again."""
    opened = open_bundle(bundle)
    golden, labels = golden_set(opened), label_set(opened, "ferplus8")
    logits = labels.logits(golden.features)
    constants = labels.constants.copy()
    constants[label] *= 1.1
    changed = compare(golden.features, logits, golden.features, replace(labels, constants=constants))
    assert any("not those of its default label set" in miss for miss in changed.misses({}))
    swapped = labels.constants[[*range(label), *range(label + 1, 8), label]] if label < 7 else labels.constants[::-1]
    other = compare(golden.features, logits, golden.features, replace(labels, constants=swapped))
    assert any("not those of its default label set" in miss for miss in other.misses({}))


def test_verify_sees_a_label_set_that_is_not_the_graphs(bundle: Path) -> None:
    """Two rare labels change places, in a bundle whose hashes are right again."""
    from fer_edge.bundle import write_label_set, write_manifest
    from fer_edge.verify import verify

    opened = open_bundle(bundle)
    labels = label_set(opened, "ferplus8")
    ref = write_label_set(bundle, replace(labels, constants=labels.constants[[0, 1, 2, 3, 4, 7, 6, 5]]))
    refs = tuple(ref if r.name == ref.name else r for r in opened.manifest.label_sets)
    write_manifest(bundle, replace(opened.manifest, label_sets=refs))
    report = verify(open_bundle(bundle), ["litert"])
    assert not report.files
    assert [row.status for row in report.rows] == ["miss"]
    assert "not those of its default label set" in report.rows[0].problem


@pytest.mark.parametrize("precision", sorted(BARS))
def test_no_manifest_lowers_a_bar(precision: str) -> None:
    low = {name: 1e9 if name.endswith("difference") else -1e9 for name in BARS[precision]}
    assert with_floors(low, precision) == with_floors({}, precision) == BARS[precision]
    high = {name: 0.0 if name.endswith("difference") else 1.0 for name in BARS[precision]}
    assert with_floors(high, precision) == high
    assert with_floors({"of_the_future": 3.0}, precision) == {**BARS[precision], "of_the_future": 3.0}


@pytest.mark.parametrize("name", ["misses", "numbers", "__class__", "of_the_future"])
def test_a_bar_that_nothing_measures_is_a_miss_whatever_its_name(name: str) -> None:
    """Names come from a manifest; an attribute of that name is no measurement."""
    parity = Parity(1.0, 1.0, 1.0, 1.0, 0.0, True, True)
    assert parity.misses({}) == []
    assert parity.misses({name: 0.5}) == [f"nothing here measures the bar {name!r}; upgrade fer-edge"]


def test_the_bars_that_are_shown_are_those_that_were_applied(bundle: Path) -> None:
    """A bundle may bring its own."""
    from fer_edge.report import verdict_text
    from fer_edge.verify import verify

    opened = open_bundle(bundle)
    asked = {**opened.manifest.golden.thresholds, "int8": {"centred_cosine": 0.9999}}
    strict = replace(opened.manifest, golden=replace(opened.manifest.golden, thresholds=asked))
    report = verify(replace(opened, manifest=strict), ["litert"])
    assert not report.ok
    assert report.as_json()["bars"] == {"int8": {**BARS["int8"], "centred_cosine": 0.9999}}
    assert "Bars of int8: centred cosine at least 0.9999, " in verdict_text(report)


def test_an_artefact_for_another_packages_runtime_is_not_checked_here(bundle: Path) -> None:
    from fer_edge.verify import verify

    opened = open_bundle(bundle)
    first, *others = opened.manifest.artefacts
    foreign = replace(opened.manifest, artefacts=(replace(first, runtime="acme"), *others))
    report = verify(replace(opened, manifest=foreign))
    assert (report.rows[0].status, report.ok) == ("no engine", True)
    assert "offers the runtime 'acme'" in report.rows[0].problem
