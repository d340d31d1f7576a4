"""The benchmark harness: real engines in processes of their own, the statistics against independent ones, and verdicts
that must neither invent a difference nor miss one."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fer_edge.benchmarks import loadgen, modes, traffic
from fer_edge.benchmarks import sustained as long
from fer_edge.benchmarks.bench import Plan, bench, configurations, only
from fer_edge.benchmarks.compare import compare, ratio_of_medians
from fer_edge.benchmarks.footprint import engine_files, forget, memory_mb
from fer_edge.benchmarks.interleave import judge
from fer_edge.benchmarks.macs import count_macs
from fer_edge.benchmarks.measure import Job
from fer_edge.benchmarks.peak import peak_gmacs_per_s
from fer_edge.benchmarks.random_clip import write_clip
from fer_edge.benchmarks.results import SCENARIOS, Configuration, Failure, Results, latency, read_results
from fer_edge.benchmarks.sustained import Point, throttled_after
from fer_edge.benchmarks.tables import flat_csv, markdown, sustained_text
from fer_edge.benchmarks.traffic import Load
from fer_edge.benchmarks.worker import Served, run_isolated
from fer_edge.converters.convert import convert
from hypothesis import given, settings
from hypothesis import strategies as st

import fer_edge
from fer_edge.arrays import read_npz, write_npz
from fer_edge.bundle import Bundle, open_bundle, path_ref, write_manifest
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import cli
from fer_edge.labelled import read_faces

RUNTIMES = ("openvino", "litert", "onnxruntime")
QUICK = Load(0.05, 1.0)
CONTRACT = {"runtime", "precision", "device", "threads", "scenario", "latency_ms", "throughput_per_s", "load_ms", "first_ms"}
CONTRACT |= {"peak_rss_mb", "stages_ms", "parity", "samples"}


@pytest.fixture(scope="module")
def run() -> Results:
    """Every engine on the embedded default, one thread and two, a camera too."""
    scenarios = ("single-stream", "offline", "multi-stream", "server", "camera")
    plan = Plan((DEFAULT_BUNDLE,), threads=(1,), scenarios=scenarios, load=replace(QUICK, fps=200.0), rounds=2)
    return bench(plan)


@pytest.fixture
def run_file(run: Results, tmp_path: Path) -> Path:
    """The run as ``bench -o`` writes it."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run.as_json(), allow_nan=False))
    return file


def command(*arguments: object, what: str = "bench") -> Result:
    return CliRunner().invoke(cli, [what, *map(str, arguments)], catch_exceptions=True)


def wrong_bundle(folder: Path) -> Path:
    """The embedded default with the golden set's references exchanged: every engine's answers are wrong against it."""
    bundle = open_bundle(folder)
    golden = read_npz(folder / "golden.npz", {"crops", "features"})
    write_npz(folder / "golden.npz", crops=golden["crops"], features=golden["features"][::-1].copy())
    reference = replace(bundle.manifest.golden, sha256=path_ref(folder, "golden.npz").sha256)
    write_manifest(folder, replace(bundle.manifest, golden=reference))
    return folder


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=60))
def test_latency_statistics(samples: list[float]) -> None:
    found = latency(samples)
    ordered = sorted(samples)
    assert found.p50 == pytest.approx(statistics.median(samples))
    for share, value in ((0.9, found.p90), (0.95, found.p95), (0.99, found.p99), (0.999, found.p999)):
        place = share * (len(ordered) - 1)
        below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
        assert value == pytest.approx(below + (place - int(place)) * (above - below))
    assert found.mean == pytest.approx(statistics.fmean(samples))
    assert found.std == pytest.approx(statistics.stdev(samples) if len(samples) > 1 else 0.0, abs=1e-6)
    assert (found.min, found.max) == (ordered[0], ordered[-1])


def test_every_engine_is_measured_in_processes_of_its_own(run: Results) -> None:
    assert run.failures == ()
    assert {(row.configuration.runtime, row.scenario) for row in run.rows} == {(r, s) for r in RUNTIMES for s in SCENARIOS}
    opened = open_bundle(DEFAULT_BUNDLE)
    for row in run.rows:
        assert row.parity["status"] == "ok"
        assert len(row.samples) == (2 if row.scenario == "single-stream" else 1), "each process times the first scenario"
        assert row.latency_ms.p50 == pytest.approx(latency(np.concatenate(row.samples)).p50)
        assert row.latency_ms.min > 0
        assert row.throughput_per_s > 0 or row.scenario == "server", "a busy machine may keep no rate within the bound"
        assert set(row.stages_ms) == {"decode", "crop_resize", "engine", "scoring"}
        assert 0 < row.memory.model_mb < row.memory.peak_rss_mb
        assert row.memory.harness_mb + row.memory.model_mb == pytest.approx(row.memory.peak_rss_mb)
        assert row.macs == count_macs(opened)
        (artefact,) = (a for a in opened.manifest.artefacts if a.runtime == row.configuration.runtime)
        assert row.artefact_mb == pytest.approx(sum(f.bytes for f in artefact.files) / 1e6)
        assert row.engine_mb is not None
        assert row.engine_mb > 1
        assert row.start.load_ms > row.start.first_ms
        assert len(row.reference_ms) == len(row.samples)


def test_loadgen_generates_the_scenarios(run: Results) -> None:
    assert loadgen.installed()
    for row in run.rows:
        if row.scenario == "camera":
            assert row.details["frames"] == len(row.samples[0]) + row.details["dropped"]
            continue
        assert row.details["generator"].startswith("LoadGen 6")
        if row.scenario == "single-stream":
            assert row.details["loadgen_percentile_ms"] >= np.percentile(row.samples[-1], 85), "p90, with its bookkeeping"
        if row.scenario == "server":
            kept = [t["rate_per_s"] for t in row.details["tried"] if t["kept"]]
            assert row.throughput_per_s == max(kept, default=0.0)
            assert all(t["kept"] == (t["p99_ms"] <= row.details["latency_bound_ms"]) for t in row.details["tried"])


def test_multi_stream_asks_eight_faces_a_query() -> None:
    asked: list[int] = []
    found = loadgen.traffic(
        "multi-stream", lambda i: asked.append(i) or time.sleep(0.001), 32, replace(QUICK, expected_ms=1.0)
    )  # type: ignore[func-returns-value]
    assert len(asked) == 8 * len(found.samples)
    assert min(found.samples) >= 8.0


def test_official_durations_are_mlperfs() -> None:
    import mlperf_loadgen as lg

    for scenario, queries in (("single-stream", 1024), ("multi-stream", 662)):
        found = loadgen._settings(lg, scenario, replace(QUICK, official=True), None)  # type: ignore[arg-type]
        assert (found.min_duration_ms, found.min_query_count, found.max_duration_ms) == (600_000, queries, 0)
        assert found.multi_stream_samples_per_query == 8


def test_without_loadgen_a_plain_timer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadgen, "installed", lambda: False)
    found = bench(Plan((DEFAULT_BUNDLE,), runtimes=("litert",), threads=(1,), load=QUICK, rounds=1, in_process=True))
    assert {row.details["generator"] for row in found.rows} == {"plain timer"}
    assert "plain timer" in markdown(found)
    with pytest.raises(ValueError, match="server"):
        traffic.plain("server", lambda i: None, QUICK)


def test_a_slow_model_drops_the_cameras_frames() -> None:
    """30 ms a face at 100 frames a second: every third frame is seen, and its answer is at least 30 ms old."""
    seen: list[int] = []

    def answer(i: int) -> None:
        seen.append(i)
        time.sleep(0.03)

    found = traffic.camera(answer, replace(QUICK, fps=100.0, seconds=0.6))
    assert found.details["frames"] == 60 == len(found.samples) + found.details["dropped"]
    assert found.details["dropped"] >= 38
    assert min(found.samples) >= 30.0
    assert seen == sorted(set(seen)), "no frame is looked at twice, none out of turn"
    quick = traffic.camera(lambda i: None, replace(QUICK, fps=100.0, seconds=0.3, faces=3))
    assert quick.details["frames"] * 3 == pytest.approx(quick.throughput_per_s * quick.seconds) or quick.details["dropped"]


def test_the_null_runtime_spins_as_told() -> None:
    """A lower bound that no noise can break; how close to it is measured by ``figures harness``."""
    wanted = Configuration(str(DEFAULT_BUNDLE), "null", "fp32", "spin:1", 1)
    part = run_isolated(Job(wanted, QUICK, ("single-stream",), False, True))
    assert min(part.traffic["single-stream"].samples) >= 1.0
    assert part.parity["status"] == "no model"


def test_a_process_that_dies_is_one_line() -> None:
    wanted = Configuration(str(DEFAULT_BUNDLE), "litert", "int8", None, 1)
    with pytest.raises(fer_edge.EngineError, match="ended with exit status 1"):
        Served(wanted, "/bin/false")
    with pytest.raises(fer_edge.EngineError, match="no fp16 artefact for litert"):
        run_isolated(Job(replace(wanted, precision="fp16"), QUICK, (), False, False))


def test_a_wrong_answer_is_shown_as_wrong(bundle: Path) -> None:
    result = command(wrong_bundle(bundle), "--runtime", "litert", "--seconds", 0.05, "--rounds", 1)
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "centred cosine" in result.output


def test_a_configuration_that_fails_is_reported_and_the_rest_go_on(bundle: Path) -> None:
    """The altered file is the one that multiplications are counted in first."""
    (bundle / "openvino-int8.xml").write_bytes(b"<net/>")
    result = command(bundle, "--json", "--seconds", 0.05, "--rounds", 1, "--threads", "1")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [f["runtime"] for f in found["failures"]] == ["openvino"]
    assert "openvino-int8.xml was altered or truncated" in found["failures"][0]["problem"]
    assert {row["runtime"] for row in found["results"]} == {"litert", "onnxruntime"}
    assert all(row["macs"] for row in found["results"])


def test_json_keeps_the_contract_and_reads_back(run: Results, run_file: Path) -> None:
    found = json.loads(run_file.read_text())
    assert found["schema"] == 1
    assert {"environment", "results"} <= found.keys()
    for row in found["results"]:
        assert row.keys() >= CONTRACT
        assert {"p50", "p90", "p95", "p99", "min", "mean"} <= row["latency_ms"].keys()
    assert json.loads(json.dumps(read_results(run_file).as_json())) == found
    assert "samples" not in flat_csv(run).splitlines()[0].split(",")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_results_are_refused_in_one_line(
    run: Results, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is taken out of the file, or put in its place, is refused or read, never a crash."""
    value = json.loads(json.dumps(run.as_json()))
    value["results"] = value["results"][:1]
    row = value["results"][0]
    name = data.draw(st.sampled_from(sorted(row)))
    if data.draw(st.booleans()):
        del row[name]
    else:
        row[name] = data.draw(st.sampled_from([None, [], {}, "x", -1, [[]], [[None]]]))
    file = tmp_path_factory.mktemp("damaged") / "run.json"
    file.write_text(json.dumps(value))
    try:
        read = read_results(file)
    except fer_edge.UsageError:
        return
    compare(read, read)
    markdown(read)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "results": 3}', "\x00"])
def test_other_files_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(fer_edge.UsageError, match=r"x\.json"):
        read_results(tmp_path / "x.json")


def slower(results: Results, factor: float, scenario: str = "single-stream") -> Results:
    """The same run with every sample of a scenario ``factor`` times as long."""
    rows = [
        replace(row, samples=tuple(tuple(v * factor for v in part) for part in row.samples))
        if row.scenario == scenario
        else row
        for row in results.rows
    ]
    return replace(results, rows=tuple(rows))


def steady(results: Results) -> Results:
    """The run as a quiet machine would have given it: the same noise around one median in every process."""
    noise = np.random.default_rng(0).lognormal(0, 0.03, (3, 400))
    rows = [
        replace(row, samples=tuple(map(tuple, row.latency_ms.p50 * noise)), reference_ms=(1.0,) * 3) for row in results.rows
    ]
    return replace(results, rows=tuple(rows))


def test_compare_tells_slower_from_noise(run: Results) -> None:
    a = steady(run)
    assert {c.verdict for c in compare(a, a)} == {"within noise"}
    found = compare(a, slower(a, 1.1))
    for c in found:
        assert c.verdict == ("slower" if c.scenario == "single-stream" else "within noise")
        if c.scenario == "single-stream":
            assert c.ratio == pytest.approx(1.1)
            assert c.interval[0] <= 1.1 <= c.interval[1]
            assert c.regressed(0.05)
            assert not c.regressed(0.15)
    assert {c.verdict for c in compare(slower(a, 1.1), a) if c.scenario == "single-stream"} == {"faster"}


def test_what_the_machine_itself_did_is_noise(run: Results) -> None:
    """A machine that was 10% slower in the second run, by its own reference, explains 10%."""
    a = steady(run)
    b = slower(a, 1.1)
    drifted = replace(b, rows=tuple(replace(row, reference_ms=(1.12,) * 3) for row in b.rows))
    assert {c.verdict for c in compare(a, drifted)} == {"within noise"}
    assert {c.verdict for c in compare(a, b, again=slower(a, 1.12)) if c.scenario == "single-stream"} == {"within noise"}


def test_the_bootstrap_interval_covers_the_ratio() -> None:
    """Of 100 pairs of runs whose processes differ by 3%, the 95% interval leaves out the true ratio in few."""
    generator = np.random.default_rng(1)
    missed = 0
    for k in range(100):
        a, b = ([tuple(f * generator.lognormal(0, 0.05, 100)) for f in generator.lognormal(0, 0.03, 6)] for _ in range(2))
        ratio, (low, high) = ratio_of_medians(a, b, seed=k)
        assert low <= ratio <= high
        missed += not low <= 1 <= high
    assert missed <= 15


def blocks(effect: float, generator: np.random.Generator, rounds: int = 6) -> Any:
    """Block medians as they come: processes 2% apart, a machine that drifts by 20%, 3% of noise in a block."""
    machine = generator.lognormal(0, 0.2, (rounds, 40, 1))
    process = generator.lognormal(0, 0.02, (rounds, 1, 3))
    return machine * process * generator.lognormal(0, 0.03, (rounds, 40, 3)) * np.array([1.0, 1.0, effect])


def test_in_turns_ten_percent_are_found_and_nothing_is_invented() -> None:
    generator = np.random.default_rng(2)
    same = [judge(blocks(1.0, generator), {}, {}).verdict for _ in range(100)]
    more = [judge(blocks(1.1, generator), {}, {}).verdict for _ in range(100)]
    assert same.count("within noise") >= 95
    assert more.count("slower") >= 95
    found = judge(blocks(1.1, generator), {}, {})
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert found.b_ms / found.a_ms == pytest.approx(found.ratio, rel=0.1)


def test_compare_on_the_command_line(run: Results, tmp_path: Path) -> None:
    files = {}
    for name, results in (("a", steady(run)), ("b", slower(steady(run), 1.2))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(results.as_json()))
    worse = command(files["a"], files["b"], what="compare")
    assert worse.exit_code == 1
    assert "Regression: 3 of 12 are slower" in worse.output
    assert command(files["a"], files["b"], "--tolerance", 0.3, what="compare").exit_code == 0
    better = command(files["b"], files["a"], "--json", what="compare")
    assert better.exit_code == 0
    assert [c["verdict"] for c in json.loads(better.stdout)["comparisons"]].count("faster") == 3


def test_a_build_that_fails_or_answers_wrongly_is_no_faster_one(run: Results, tmp_path: Path) -> None:
    a = steady(run)
    (broken,) = {row.configuration for row in a.rows if row.configuration.runtime == "litert"}
    kept = tuple(row for row in a.rows if row.configuration != broken)
    b = replace(a, rows=kept, failures=(Failure(broken, "the driver is gone"),))
    bad = replace(a.rows[0], parity={**a.rows[0].parity, "status": "miss", "problem": "centred cosine 0.1"})
    files = {}
    for name, results in (("a", a), ("b", b), ("c", replace(a, rows=(bad, *a.rows[1:])))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(results.as_json()))
    gone = command(files["a"], files["b"], what="compare")
    assert gone.exit_code == 1
    assert "Failed in B: litert int8, 1 thread: the driver is gone" in gone.output
    wrong = command(files["a"], files["c"], "--json", what="compare")
    assert wrong.exit_code == 1
    assert "centred cosine 0.1" in json.loads(wrong.stdout)["wrong"][0]
    assert command(files["b"], files["a"], what="compare").exit_code == 0, "what A lacked is no loss"


def test_one_process_alone_proves_little(run: Results) -> None:
    """6% between two single processes is no difference while nobody knows how far processes lie apart; with three it is."""
    a = steady(run)
    lonely = replace(a, rows=tuple(replace(row, samples=row.samples[:1]) for row in a.rows))
    assert {c.verdict for c in compare(lonely, slower(lonely, 1.06))} == {"within noise"}
    assert "slower" in {c.verdict for c in compare(a, slower(a, 1.06))}
    mixed = replace(a, rows=tuple(r if r.scenario == "single-stream" else replace(r, samples=r.samples[:1]) for r in a.rows))
    found = compare(mixed, slower(mixed, 1.06, "offline"))
    assert "slower" in {c.verdict for c in found if c.scenario == "offline"}, "single-stream's processes tell the noise"


def test_a_cameras_load_and_a_servers_rate_are_not_mixed_up(run: Results) -> None:
    a = steady(run)
    other = [replace(r, details={**r.details, "faces": 4}) if r.scenario == "camera" else r for r in a.rows]
    scenarios = {c.scenario for c in compare(a, replace(a, rows=tuple(other)))}
    assert scenarios == {"single-stream", "offline", "multi-stream"}


def test_of_several_bundles_each_is_compared(run: Results) -> None:
    a = steady(run)
    copies = [replace(row, configuration=replace(row.configuration, bundle="/elsewhere/second")) for row in a.rows]
    two = replace(a, rows=(*a.rows, *copies))
    assert len(compare(two, two)) == 2 * len(compare(a, a))


def test_two_runs_without_a_common_row(run: Results) -> None:
    ours = replace(run, rows=tuple(row for row in run.rows if row.configuration.runtime == "litert"))
    theirs = replace(run, rows=tuple(row for row in run.rows if row.configuration.runtime == "openvino"))
    with pytest.raises(fer_edge.UsageError, match="in common"):
        compare(ours, theirs)


def test_interleave_runs_two_bundles_and_two_builds(bundle: Path, tmp_path: Path) -> None:
    for other in (bundle, sys.executable):
        quick = ("--runtime", "litert", "--seconds", 0.05, "--rounds", 1, "--json", "--interleave", other)
        result = command(*quick)
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["interleaved"]
        assert found["name"].startswith("litert int8")
        assert len(found["rounds"]) == len(found["noise"]) == 2
        assert 0.3 < found["ratio"] < 3
        assert found["b"]["fer_edge"] == fer_edge.__version__
        assert found["a"]["answers"] == found["b"]["answers"] == "ok"
    (tmp_path / "x").write_text("")
    refused = command("--interleave", tmp_path / "x")
    assert isinstance(refused.exception, fer_edge.UsageError)


def test_a_fast_wrong_answer_is_found_in_turns_too(bundle: Path) -> None:
    quick = ("--runtime", "litert", "--seconds", 0.05, "--rounds", 1)
    result = command(*quick, "--interleave", wrong_bundle(bundle))
    assert result.exit_code == 1
    assert "B GIVES WRONG ANSWERS: centred cosine" in result.output


def test_the_other_build_is_not_the_folder_one_stands_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A python without fer-edge, asked for in a checkout, has none; it does not take the checkout's."""
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    (wanted,) = only(Plan((DEFAULT_BUNDLE,), runtimes=("litert",)))
    with pytest.raises(fer_edge.EngineError, match="No module named"):
        Served(wanted, str(tmp_path / "bare" / "bin" / "python"))


TALKER = """\
import sys
sys.stdin.readline()
sys.stderr.write("x" * 1_000_000)
print('{"half":', flush=True)
"""


def test_an_engine_that_talks_stops_nothing_and_half_an_answer_is_none(tmp_path: Path) -> None:
    """A megabyte on stderr, then an answer that ends in the middle: one line, no hanging."""
    talker = tmp_path / "python"
    talker.write_text(f"#!{sys.executable}\n{TALKER}")
    talker.chmod(0o755)
    (wanted,) = only(Plan((DEFAULT_BUNDLE,), runtimes=("litert",)))
    with pytest.raises(fer_edge.EngineError, match=r"ended with exit status 0: x{300}$"):
        Served(wanted, str(talker))


def test_sustained_work_on_the_command_line() -> None:
    result = command("--runtime", "litert", "--threads", "1,2", "--sustained", "2s", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["sustained"]
    assert found["configuration"] in {"litert int8, 1 thread", "litert int8, 2 threads"}
    assert len(found["ranking"]) == 2
    assert found["points"][-1]["at"] < 60


def test_what_fails_late_does_not_lose_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies in the third second, and the fastest cannot be ranked again."""
    blocks: list[int] = []

    class Dying:
        def __init__(self, configuration: Configuration) -> None:
            self.runtime = configuration.runtime

        def block(self, count: int) -> list[float]:
            blocks.append(count)
            if len(blocks) > 11 and self.runtime == "null":
                raise fer_edge.EngineError("out of memory")
            return [1.0 if self.runtime == "null" else 2.0] * count

        def close(self) -> None:
            pass

    monkeypatch.setattr(long, "Served", Dying)
    pairs = (("null", "fp32"), ("openvino", "int8"), ("litert", "int8"))
    found = long.sustained([Configuration(str(DEFAULT_BUNDLE), *pair, None, 1) for pair in pairs], 60.0)
    assert len(found.points) == 1
    assert found.stopped is not None
    assert "out of memory" in found.stopped
    assert [(r.before_ms, r.after_ms, r.problem) for r in found.ranking] == [
        (1.0, None, "out of memory"),
        (2.0, 2.0, None),
        (2.0, 2.0, None),
    ]
    lines = sustained_text(asdict(found)).splitlines()
    assert "IT STOPPED after" in lines[1]
    assert lines[3].split() == [
        "1",
        "null",
        "fp32,",
        "1",
        "thread:",
        "1",
        "ms",
        "openvino",
        "int8,",
        "1",
        "thread:",
        "2",
        "ms",
    ]
    assert lines[-1] == "not ranked when hot, null fp32, 1 thread: out of memory"


def test_accuracy_that_fails_does_not_lose_the_run(run: Results, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, runtime: str, **options: Any) -> Any:
        if runtime == "litert":
            raise fer_edge.EngineError("the delegate is gone")
        return fer_edge.load(*arguments, runtime=runtime, **options)

    monkeypatch.setattr(modes, "load", load)
    faces = read_faces(data / "fer2013" / "public_test.npz", "ferplus_majority_labelcsv", "ferplus_class_names")
    few = replace(faces, images=faces.images[:8], classes=faces.classes[:8])
    found = modes.accuracy(run, few, "few", lambda done, text="": None)
    assert {entry["runtime"] for entry in found.extras["accuracy"]["of"]} == {"openvino", "onnxruntime"}
    assert "litert int8: no accuracy, the delegate is gone" in markdown(found)


def test_one_process_has_no_cached_load_and_is_marked(tmp_path: Path) -> None:
    """With one round nothing was loaded twice; figures of --in-process are not compared with anything."""
    file = tmp_path / "run.json"
    found = command("--runtime", "openvino", "--rounds", 1, "--seconds", 0.05, "--in-process", "-o", file)
    assert found.exit_code == 0, found.output
    assert "for debugging" in found.output
    read = read_results(file)
    assert {row.start.cached_load_ms for row in read.rows} == {None}
    assert {row.scenario for row in read.rows} == {"single-stream", "offline"}
    refused = command(file, file, what="compare")
    assert isinstance(refused.exception, fer_edge.UsageError)
    assert "--in-process is for debugging" in str(refused.exception)


def test_a_bundle_with_nothing_for_this_machine_is_left_out(bundle: Path, tmp_path: Path) -> None:
    """Of several; alone, or when none has anything, it is an error."""
    poor = tmp_path / "poor"
    shutil.copytree(bundle, poor)
    manifest = open_bundle(poor).manifest
    kept = tuple(a for a in manifest.artefacts if a.runtime == "litert")
    for artefact in manifest.artefacts:
        if artefact.runtime != "litert":
            for file in artefact.files:
                (poor / file.path).unlink()
    write_manifest(poor, replace(manifest, artefacts=kept))
    plan = Plan((poor, bundle), ("openvino",), threads=(1,), scenarios=("single-stream",), load=QUICK, rounds=1)
    found = bench(plan)
    assert [row.configuration.bundle for row in found.rows] == [str(bundle)]
    assert [entry["bundle"] for entry in found.extras["skipped"]] == [str(poor)]
    assert f"left out: {poor} has nothing to measure here" in markdown(found)
    with pytest.raises(fer_edge.BundleError, match="nothing to measure here"):
        bench(replace(plan, bundles=(poor,)))
    shutil.copytree(poor, tmp_path / "poorer")
    with pytest.raises(fer_edge.BundleError, match="none of 2 bundles"):
        bench(replace(plan, bundles=(poor, tmp_path / "poorer")))


def test_throttling_is_told_from_a_hiccup() -> None:
    def points(*ms: float) -> list[Point]:
        return [Point(float(i), v, v, None, None) for i, v in enumerate(ms)]

    assert throttled_after(points(*[1.0] * 20)) is None
    assert throttled_after(points(*[1.0] * 8, 3.0, 3.0, *[1.0] * 10)) is None, "two points are a hiccup"
    assert throttled_after(points(*[1.0] * 12, *[1.3] * 8)) == 12.0
    assert throttled_after(points(*[1.0] * 60, *[1.5] * 1740)) == 60.0, "half an hour, hot after a minute"
    assert throttled_after(points(*[1.0] * 8, 1.3, 1.3, 1.3, *[1.0] * 10)) is None, "it recovered"


def test_macs_are_those_that_torch_counts(tmp_path: Path) -> None:
    """Of a convolutional student and a ViT, in the files of each runtime."""
    import torch
    from fer_edge.converters.reference import open_reference
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    write_clip(tmp_path / "clip", dim=32, width=48, layers=2, heads=4, patch=8, image=32)
    convert(str(tmp_path / "clip"), tmp_path / "bundle", replace(_float_plan(), normalize="none"))
    student = Path(loadgen.__file__).parent.parent / "converters/learn/student48.safetensors"
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


def _float_plan() -> Any:
    from fer_edge.converters.convert import Plan as ConversionPlan

    return ConversionPlan(precisions=("fp32",))


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_probe_runs_everywhere(runtime: str, precision: str) -> None:
    peak = peak_gmacs_per_s(Configuration("", runtime, precision, None, 1))
    assert peak is not None
    assert peak > 0.5
    assert peak_gmacs_per_s(Configuration("", "null", precision, None, 1)) is None
    assert peak_gmacs_per_s(Configuration("", runtime, precision, "NO-SUCH-DEVICE", 1)) is None


def test_memory_is_read_from_the_kernels_words(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2000 kB\nVmRSS:\t  1000 kB\nThreads:\t1\n")
    assert memory_mb(status) == (1.024, 2.048)
    assert memory_mb(tmp_path / "none")[1] > 10
    resident, highest = memory_mb()
    assert 10 < resident <= highest


def test_the_files_of_an_engine() -> None:
    files = engine_files("litert")
    assert any(file.suffix == ".so" for file in files)
    assert forget(files[:2])
    assert engine_files("null") == ()


def test_configurations_of_a_plan() -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    found = configurations(bundle, Plan((DEFAULT_BUNDLE,), runtimes=("litert", "openvino"), threads=(1, 2)))
    assert [(c.runtime, c.threads) for c in found] == [("openvino", 1), ("openvino", 2), ("litert", 1), ("litert", 2)]
    assert [c.runtime for c in only(Plan((DEFAULT_BUNDLE,)))] == ["openvino"]
    with pytest.raises(fer_edge.BundleError, match="nothing to measure"):
        configurations(bundle, Plan((DEFAULT_BUNDLE,), precisions=("fp16",)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--threads", "0"), "1,2,4"),
        (("--threads", "two"), "1,2,4"),
        (("--sustained", "30"), "30m"),
        (("--sustained", "0s"), "30m"),
        (("--sustained", "2s", "--interleave", sys.executable), "two different runs"),
        (("--sustained", "2s", "--accuracy", "."), "--accuracy and --csv go with"),
        (("--interleave", sys.executable, "--scenario", "server"), "its own traffic"),
        (("--sustained", "2s", "--in-process"), "have no say there"),
        (("--interleave", sys.executable, "--photo", __file__), "have no say there"),
        (("--mlperf", "--scenario", "camera"), "without --mlperf"),
        (("--runtime", "null", "--runtime", "litert"), "measure it alone"),
        (("--runtime", "onnx"), "no runtime 'onnx'"),
        (("--accuracy", sys.executable), "neither a folder"),
        (("-o", "/no/such/folder/x.json"), "cannot be written"),
        (("--photo", __file__), "not an image"),
    ],
)
def test_options_say_what_they_take(arguments: tuple[str, ...], words: str) -> None:
    result = command(*arguments)
    said = str(result.exception) if isinstance(result.exception, fer_edge.FerEdgeError) else result.output
    assert words in said
    assert result.exit_code in (1, 2)


@pytest.mark.parametrize("arguments", [("--scenario", "server"), ("--mlperf",)])
def test_what_needs_loadgen_says_so_at_once(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadgen, "installed", lambda: False)
    result = command(*arguments)
    assert isinstance(result.exception, fer_edge.UsageError)
    assert "single-stream, offline and camera" in str(result.exception)


def test_several_bundles_with_accuracy(bundle: Path, tmp_path: Path, data: Path) -> None:
    """A ladder of two, on 40 labelled faces, with every output file."""
    ladder = tmp_path / "ladder"
    ladder.mkdir()
    bundle.rename(ladder / "one")
    with np.load(data / "fer2013" / "public_test.npz") as z:
        rows = np.flatnonzero(z["ferplus_majority_labelcsv"] >= 0)[:40]
        np.savez(
            tmp_path / "f.npz", images=z["images"][rows], t=z["ferplus_majority_labelcsv"][rows], c=z["ferplus_class_names"]
        )
    files = [tmp_path / name for name in ("o.json", "o.csv", "o.md", "o.html")]
    outputs = [text for pair in zip(("-o", "--csv", "--markdown", "--html"), files, strict=True) for text in pair]
    faces = ("--accuracy", tmp_path / "f.npz", "--truth", "t", "--classes", "c")
    quick = ("--runtime", "litert", "--seconds", 0.05, "--rounds", 1, "--scenario", "single-stream")
    result = command("--all-bundles", ladder, *quick, *faces, *outputs)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(files[0].read_text())["accuracy"]["of"]
    with fer_edge.load(ladder / "one", runtime="litert") as clf, np.load(tmp_path / "f.npz") as z:
        right = [clf.predict(image).label == z["c"][truth] for image, truth in zip(z["images"], z["t"], strict=True)]
    assert entry["war"] == pytest.approx(np.mean(right))
    assert f"WAR {entry['war']:.1%}" in result.output
    assert files[1].read_text().splitlines()[1].startswith(str(ladder / "one"))
    assert files[2].read_text().startswith("| runtime |")
    assert files[3].read_text().startswith("<!doctype html>")
    nothing = command("--all-bundles", tmp_path / "empty")
    assert nothing.exit_code == 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    result = command("--runtime", "litert", "--seconds", 0.05, "--rounds", 1, "-o", tmp_path / "no" / "x.json")
    assert isinstance(result.exception, fer_edge.UsageError)
