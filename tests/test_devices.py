"""The table of boxes of devices.md: it is what the files say, and a file says what was verified."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from measuring import wrong_bundle

from fer_edge.benchmarks.bench import Plan, bench
from fer_edge.benchmarks.traffic import Load
from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.errors import UsageError
from fer_edge.manifest import digest_of
from fer_edge.verify import verify
from lab.devices import (
    FOLDER,
    MARKS,
    PAGE,
    answers_of,
    devices,
    of_compile,
    of_verify,
    page_with,
    read_box,
    read_boxes,
    table,
)

COMPILED = {
    "target": "ethos-u55-256",
    "runtime": "litert",
    "precision": "int8",
    "compiler": "ethos-u-vela 5.2",
    "judge": "LiteRT's reference kernels",
    "parity": {"centred_cosine": 0.9975, "top1_agreement": 1.0},
    "misses": [],
    "report": {"inferences_per_s": 200.0, "mb": 1.25},
}
"""As ``fer-edge compile --json`` prints it."""


def verdict(folder: Path, runtime: str = "openvino") -> dict[str, Any]:
    """As ``fer-edge verify --json`` prints it."""
    bundle = open_bundle(folder)
    report = verify(bundle, [runtime], threads=1).as_json()
    return json.loads(json.dumps({"bundle": str(folder), "digest": digest_of(bundle.manifest), **report}))


def saved(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    pytest.importorskip("openvino")
    return verdict(DEFAULT_BUNDLE)


def test_the_table_is_what_the_files_say() -> None:
    boxes = read_boxes()
    assert boxes, f"no files in {FOLDER}"
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with(page, table(boxes)), "python -m lab.devices table"


def test_a_page_without_marks_is_no_page() -> None:
    with pytest.raises(UsageError, match="no place"):
        page_with("text", "table")
    assert page_with(f"a\n{MARKS[0]}\nold\n{MARKS[1]}\nb", "new") == f"a\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nb"


def test_what_was_measured_and_verified_becomes_a_row(tmp_path: Path, checked: dict[str, Any]) -> None:
    plan = Plan((DEFAULT_BUNDLE,), runtimes=("openvino",), threads=(1,), scenarios=("single-stream",), rounds=1)
    run = bench(replace(plan, load=Load(0.05, 1.0), in_process=True))
    files = [saved(tmp_path, f"{name}.json", value) for name, value in (("verify", checked), ("bench", run.as_json()))]
    hashes = saved(tmp_path, "answers.json", answers_of(DEFAULT_BUNDLE))
    out = tmp_path / "box.json"
    options = ["--device", "A box", "--again", "it was busy", "-o", str(out), "--answers", str(hashes)]
    done = CliRunner().invoke(devices, ["add", *options, "--verify", str(files[0]), "--bench", str(files[1])])
    assert done.exit_code == 0, done.output
    box = read_box(out)
    (row,) = box.rows
    assert row.ms == pytest.approx(run.rows[0].latency_ms.p50, rel=0.01)
    assert (row.threads, row.runtime, box.seen) == (1, "openvino", "hardware")
    assert row.centred_cosine == pytest.approx(checked["artefacts"][0]["parity"]["centred_cosine"], abs=1e-6)
    lines = table([box]).split("\n")
    assert f"`{digest_of(open_bundle(DEFAULT_BUNDLE).manifest)[:8]}` |" in lines[2]
    assert lines[2].startswith("| A box | openvino ")
    assert "(1 thread) \\*" in lines[2]
    assert lines[-1] == "- A box: it was busy"


def test_answers_are_the_bytes_of_the_features() -> None:
    pytest.importorskip("openvino")
    first, again = answers_of(DEFAULT_BUNDLE), answers_of(DEFAULT_BUNDLE)
    assert first == again
    assert len(set(first.values())) == len(first), "engines differ in their last bits"


def test_a_verify_that_did_not_pass_is_refused(tmp_path: Path, bundle: Path) -> None:
    pytest.importorskip("openvino")
    file = saved(tmp_path, "verify.json", verdict(wrong_bundle(bundle)))
    with pytest.raises(UsageError, match=r"did not pass .openvino int8: miss") as raised:
        of_verify("A box", "hardware", file, None, None, "", "")
    assert "\n" not in str(raised.value)
    done = CliRunner().invoke(devices, ["add", "--device", "A", "--verify", str(file), "-o", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert not (tmp_path / "out.json").exists()


def test_without_a_verify_there_is_no_row(tmp_path: Path) -> None:
    done = CliRunner().invoke(devices, ["add", "--device", "A", "-o", str(tmp_path / "out.json")])
    assert "nothing is taken on trust" in done.output


def test_figures_of_another_bundle_are_refused(tmp_path: Path, checked: dict[str, Any]) -> None:
    plan = Plan((DEFAULT_BUNDLE,), runtimes=("null",), threads=(1,), scenarios=("single-stream",), rounds=1)
    run = bench(replace(plan, load=Load(0.05, 1.0), in_process=True)).as_json()
    run["results"][0]["digest"] = "0" * 64
    files = saved(tmp_path, "verify.json", checked), saved(tmp_path, "bench.json", run)
    with pytest.raises(UsageError, match="another bundle"):
        of_verify("A box", "hardware", *files, None, "", "")


def test_a_compilers_estimate_is_no_measurement(tmp_path: Path) -> None:
    box = of_compile("Ethos-U55", saved(tmp_path, "compiled.json", COMPILED), "fer-edge compile")
    assert box.seen == "compiler's estimate"
    assert "| about 5 |" in table([box])
    simulated = of_compile("RK3588", saved(tmp_path, "rknn.json", {**COMPILED, "report": {"mb": 1.2}}), "fer-edge compile")
    assert (simulated.seen, simulated.rows[0].ms) == ("simulator", None)
    with pytest.raises(UsageError, match=r"missed its bars .cosine"):
        of_compile("Ethos-U55", saved(tmp_path, "missed.json", {**COMPILED, "misses": ["cosine 0.9"]}), "fer-edge compile")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 2}, "schema 2"),
        ({"seen": "a friend"}, "there are hardware"),
        ({"verify": {}}, "it was not verified"),
        ({"verify": {"openvino int8": "miss"}}, "has not passed"),
        ({"seen": "emulator", "rows": [{"ms": 1.0}]}, "emulator tells none"),
        ({"seen": "nobody"}, "nobody saw"),
        ({"device": "A | B"}, "line break"),
        ({"rows": [{"centred_cosine": None}]}, "parity is missing"),
        ({"rows": [{"mb": float("nan")}]}, "no number"),
        ({"rows": [{"answers": "abc"}]}, "answers"),
        ({"rows": []}, "no rows"),
        ({"rows": [{"watts": 3}]}, "no file of a box"),
        ({"verify": None}, "verify"),
    ],
)
def test_a_file_is_checked(tmp_path: Path, checked: dict[str, Any], change: dict[str, Any], why: str) -> None:
    box = of_verify("A box", "hardware", saved(tmp_path, "verify.json", checked), None, None, "", "by hand")

    value = json.loads(json.dumps(asdict(box)))
    assert read_box(saved(tmp_path, "box.json", value)) == box
    rows = [{**value["rows"][0], **row} for row in change.get("rows", value["rows"])]
    file = saved(tmp_path, "box.json", {**value, **change, "rows": rows})
    with pytest.raises(UsageError, match=why) as raised:
        read_box(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
