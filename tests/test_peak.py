"""Multiply-accumulates and the rate they are held against, both against what computes them independently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fer_edge.benchmarks import loadgen
from fer_edge.benchmarks.bench import peaks_of
from fer_edge.benchmarks.macs import count_macs
from fer_edge.benchmarks.peak import peak_gmacs_per_s
from fer_edge.benchmarks.results import Configuration
from fer_edge.bundle import Bundle, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.converters.convert import Plan, convert
from fer_edge.engines import RUNTIMES
from lab.random_clip import write_clip


def test_macs_are_those_that_torch_counts(tmp_path: Path) -> None:
    """Of a convolutional student and a ViT, in the files of each runtime."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from fer_edge.converters.reference import open_reference

    write_clip(tmp_path / "clip", dim=32, width=48, layers=2, heads=4, patch=8, image=32)
    convert(str(tmp_path / "clip"), tmp_path / "bundle", Plan(precisions=("fp32",), normalize="none"))
    student = Path(loadgen.__file__).parent.parent / "converters/student/student48.safetensors"
    for source, bundle in ((student, DEFAULT_BUNDLE), (tmp_path / "clip", tmp_path / "bundle")):
        graph, opened = open_reference(str(source)).graph, open_bundle(bundle)
        spec = opened.manifest.input
        # In its products: the counter knows no fused attention on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            graph(torch.zeros((1, spec.height, spec.width, spec.channels), dtype=torch.uint8))
        for runtime in RUNTIMES:
            one = tuple(a for a in opened.manifest.artefacts if a.runtime == runtime)
            counted = count_macs(Bundle(opened.folder, replace(opened.manifest, artefacts=one)))
            assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.02), (source.name, runtime)


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_probe_runs_everywhere(runtime: str, precision: str) -> None:
    peak = peak_gmacs_per_s(Configuration("", runtime, precision, None, 1))
    assert peak is not None
    assert peak > 0.5
    assert peak_gmacs_per_s(Configuration("", "null", precision, None, 1)) is None
    assert peak_gmacs_per_s(Configuration("", runtime, precision, "NO-SUCH-DEVICE", 1)) is None


def test_the_peak_is_that_of_the_fastest_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once of each engine, whatever the bundles; an engine that is not there, or refuses, counts for nothing."""
    asked: list[Configuration] = []

    def reaches(configuration: Configuration) -> float | None:
        asked.append(configuration)
        return {"openvino": 10.0, "litert": 30.0 * (configuration.threads or 0)}.get(configuration.runtime)

    monkeypatch.setattr("fer_edge.benchmarks.bench.isolated_peak", reaches)
    wanted = [Configuration(b, r, "int8", None, t) for b in "ab" for r in ("openvino", "null") for t in (1, 2)]
    found = peaks_of(wanted)
    assert [found[c] for c in wanted] == [30.0, 60.0, None, None] * 2
    assert sorted((c.runtime, c.threads) for c in asked) == sorted((r, t) for r in RUNTIMES for t in (1, 2))
