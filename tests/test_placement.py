"""Where artefacts run, and what each operator takes: real engines, counted by other means (commands of benchmarks.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import QUICK, command

from fer_edge import runtime as rt
from fer_edge.benchmarks.bench import Plan, bench
from fer_edge.benchmarks.compare import differences
from fer_edge.benchmarks.macs import count_macs, macs_by_operator
from fer_edge.benchmarks.placement import look
from fer_edge.benchmarks.report.tables import markdown
from fer_edge.benchmarks.results import Configuration, Results, Unit, read_results
from fer_edge.bundle import artefact_files, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.errors import EngineError, UsageError
from fer_edge.manifest import Artefact


def artefact_of(runtime: str) -> Artefact:
    return next(a for a in open_bundle(DEFAULT_BUNDLE).manifest.artefacts if a.runtime == runtime)


def files_of(runtime: str) -> list[Path]:
    return list(artefact_files(open_bundle(DEFAULT_BUNDLE), artefact_of(runtime)))


def configuration(runtime: str) -> Configuration:
    return Configuration(str(DEFAULT_BUNDLE), runtime, "int8", None, 1)


@pytest.fixture(scope="module")
def crop() -> Any:
    size = open_bundle(DEFAULT_BUNDLE).manifest.input
    return np.random.default_rng(0).integers(0, 256, (1, *size.size, size.channels), np.uint8)


@pytest.fixture(scope="module")
def profiled() -> Results:
    """One short run of every engine, profiled."""
    load = replace(QUICK, seconds=0.1)
    return bench(Plan((DEFAULT_BUNDLE,), threads=(1,), scenarios=("single-stream",), load=load, rounds=1, profile=True))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "litert"])
def test_every_product_of_the_file_has_its_operator(runtime: str, crop: Any) -> None:
    pytest.importorskip({"litert": "ai_edge_litert"}.get(runtime, runtime))
    if runtime == "onnxruntime":
        pytest.importorskip("onnx")
    found = rt.place(runtime, files_of(runtime), "int8", None, 1, None, crop, 0)
    bundle = open_bundle(DEFAULT_BUNDLE)
    macs = macs_by_operator(bundle, artefact_of(runtime))
    assert macs
    sources = {source for operator in found.operators for source in operator.sources}
    assert set(macs) <= sources, "a product that no operator computes"
    assert sum(macs.values()) == count_macs(bundle)
    assert found.times == ()


def test_litert_leaves_to_its_own_kernels_what_xnnpack_does_not_take(crop: Any) -> None:
    """Against the file's own list of operators, and an interpreter without the delegate."""
    tflite = pytest.importorskip("ai_edge_litert.interpreter")
    from fer_edge.runtimes import run_litert

    (file,) = files_of("litert")
    resolver = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    plain = tflite.Interpreter(str(file), experimental_op_resolver_type=resolver)._get_ops_details()
    found = rt.place("litert", [file], "int8", None, 1, None, crop, 0)
    assert [o.kind for o in found.operators] == [op["op_name"] for op in plain]
    own = {o.kind for o in found.operators if "XNNPACK" not in o.unit}
    assert "L2_NORMALIZATION" in own, "XNNPACK has no such operator (its delegate's README)"
    assert not own & {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    assert run_litert._delegated(plain) == set()


def test_the_compiled_model_gives_the_interpreters_answers(crop: Any) -> None:
    pytest.importorskip("ai_edge_litert.compiled_model")
    from fer_edge.runtimes import run_litert

    (file,) = files_of("litert")
    session = rt.open_model("litert", [file], "int8", None, 1)
    compiled = run_litert._CompiledSession(file.read_bytes(), ("CPU",), 1, "unknown")
    assert compiled.signature == session.signature
    for _ in range(2):
        for one, other in zip(compiled.run(crop), session.run(crop), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="takes"):
        compiled.run(crop[:, :-1])
    compiled.close()
    session.close()


@pytest.mark.parametrize("device", ["GPU", "npu"])
def test_an_accelerator_that_is_not_here_is_no_silent_cpu(device: str) -> None:
    pytest.importorskip("ai_edge_litert.compiled_model")
    with pytest.raises(EngineError, match=f"on {device.upper()} alone") as raised:
        rt.open_model("litert", files_of("litert"), "int8", device, 1)
    assert "\n" not in str(raised.value)


def test_a_profile_covers_the_median(profiled: Results) -> None:
    for row in profiled.rows:
        assert row.units, row.where_note
        assert sum(unit.operators_share for unit in row.units) == pytest.approx(1)
        assert sum(unit.macs_share or 0 for unit in row.units) == pytest.approx(1)
        assert all(sum(unit.kernels.values()) == unit.operators for unit in row.units)
        if row.configuration.runtime == "litert":
            assert row.profile is None
            assert "no profiler" in row.where_note
            continue
        assert row.profile is not None
        spent = sum(cost.ms for cost in row.profile.operators)
        assert spent + row.profile.between_ms == pytest.approx(row.profile.call_ms, rel=0.05)
        assert spent == pytest.approx(row.profile.covered * row.profile.call_ms)
        times = [cost.ms for cost in row.profile.operators]
        assert times == sorted(times, reverse=True)
        products = [c for c in row.profile.operators if c.kind in ("Convolution", "QLinearConv", "FusedConv", "Conv")]
        assert sum(c.ms for c in products) > spent / 2, "a network of convolutions"
    assert {row.configuration.runtime for row in profiled.rows if row.profile} <= {"openvino", "onnxruntime"}


def test_the_table_has_the_ten_slowest_and_the_file_has_all(profiled: Results, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(profiled.as_json(), allow_nan=False))
    again = read_results(tmp_path / "run.json").rows
    assert [(row.units, row.profile, row.where_note) for row in again] == [
        (row.units, row.profile, row.where_note) for row in profiled.rows
    ]
    text = markdown(profiled)
    for row in profiled.rows:
        if row.profile:
            shown, hidden = row.profile.operators[:10], row.profile.operators[10:]
            assert all(f"| {cost.name} |" in text for cost in shown)
            assert not hidden or f"| {len(hidden)} others |" in text
    assert "ran " in text


def test_files_from_before_say_nothing_of_where(profiled: Results, tmp_path: Path) -> None:
    value = profiled.as_json()
    for row in value["results"]:
        for name in ("units", "profile", "where_note"):
            del row[name]
    (tmp_path / "old.json").write_text(json.dumps(value))
    old = read_results(tmp_path / "old.json")
    assert all((row.units, row.profile) == ((), None) for row in old.rows)
    assert not [note for note in differences(old, profiled) if " ran " in note]


def test_compare_tells_when_operators_moved(profiled: Results) -> None:
    first, *others = profiled.rows
    moved = replace(first, units=(*first.units, Unit("NPU", 3, 0.1, None, {})))
    notes = differences(profiled, replace(profiled, rows=(moved, *others)))
    assert len([note for note in notes if "NPU" in note]) == 1
    assert not [note for note in differences(profiled, profiled) if " ran " in note]


def test_a_unit_that_is_no_unit_is_refused(profiled: Results, tmp_path: Path) -> None:
    value = profiled.as_json()
    value["results"][0]["units"] = [{"unit": "CPU"}]
    (tmp_path / "bad.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="operators"):
        read_results(tmp_path / "bad.json")


def test_info_tells_where_it_would_run() -> None:
    done = command("--here", "--json", what="info")
    assert done.exit_code == 0, done.output
    here = json.loads(done.stdout)["here"]
    assert {entry["runtime"] for entry in here} == {"openvino", "litert", "onnxruntime"}
    assert all(entry["units"] or entry["note"] for entry in here)
    assert command("--here", "--card", what="info").exit_code == 2  # click's own error


def test_the_null_runtime_runs_nowhere() -> None:
    assert look(configuration("null")).note == "no model runs"


def test_a_sustained_run_takes_no_profile() -> None:
    done = command("--sustained", "1s", "--profile")
    assert isinstance(done.exception, UsageError)
