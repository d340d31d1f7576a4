"""The benchmark harness: real engines in processes of their own, the statistics against independent ones, and verdicts
that must neither invent a difference nor miss one."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import QUICK, command, wrong_bundle
from PIL import Image

import fer_edge
from fer_edge.benchmarks import bench as benching
from fer_edge.benchmarks import camera, loadgen, runs, traffic
from fer_edge.benchmarks.bench import Plan, bench, configurations, only
from fer_edge.benchmarks.compare import compare
from fer_edge.benchmarks.machine import handover_us
from fer_edge.benchmarks.macs import count_macs
from fer_edge.benchmarks.measure import Job
from fer_edge.benchmarks.memory import engine_files, forget, memory_mb
from fer_edge.benchmarks.report.page import report
from fer_edge.benchmarks.report.plots import CAMERA_STAGES, STAGES
from fer_edge.benchmarks.report.screen import IDENTITY, bench_text, fitting
from fer_edge.benchmarks.report.tables import flat_csv, markdown, number, rows_of
from fer_edge.benchmarks.results import SCENARIOS, Configuration, Latency, Results, latency, read_results
from fer_edge.benchmarks.traffic import Load
from fer_edge.benchmarks.worker import Served, run_isolated
from fer_edge.bundle import open_bundle, write_manifest
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import main
from fer_edge.engines import RUNTIMES
from fer_edge.manifest import digest_of

CONTRACT = {"runtime", "precision", "device", "threads", "scenario", "latency_ms", "throughput_per_s", "load_ms", "first_ms"}
CONTRACT |= {"peak_rss_mb", "stages_ms", "parity", "samples"}


@pytest.fixture
def run_file(run: Results, tmp_path: Path) -> Path:
    """The run as ``bench -o`` writes it."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run.as_json(), allow_nan=False))
    return file


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
        staged = STAGES if row.scenario != "camera" else CAMERA_STAGES
        assert set(row.stages_ms) == set(staged), "each has its colour in the report"
        assert 0 < row.memory.model_mb < row.memory.peak_rss_mb
        assert row.memory.harness_mb + row.memory.model_mb == pytest.approx(row.memory.peak_rss_mb)
        assert row.macs == count_macs(opened)
        (artefact,) = (a for a in opened.manifest.artefacts if a.runtime == row.configuration.runtime)
        assert row.artefact_mb == pytest.approx(sum(f.bytes for f in artefact.files) / 1e6)
        assert row.engine_mb is not None
        assert row.engine_mb > 1
        assert row.start.load_ms > row.start.first_ms
        assert len(row.reference_ms) == len(row.samples)
        assert len(row.handover_us) in (0, len(row.samples))


@pytest.fixture(scope="module")
def verified() -> dict[str, dict[str, Any]]:
    """What ``verify`` finds in the embedded default, by runtime."""
    return {found["runtime"]: found for found in json.loads(command("--json", what="verify").stdout)["artefacts"]}


def test_what_was_measured_is_the_engine_that_the_row_names(run: Results, verified: dict[str, dict[str, Any]]) -> None:
    """By the engine's own name, and by the answers, which no two engines round alike."""
    cosines = {name: found["parity"]["centred_cosine"] for name, found in verified.items()}
    assert len({round(value, 5) for value in cosines.values()}) == len(RUNTIMES), "they tell the engines apart"
    for row in run.rows:
        runtime = row.configuration.runtime
        assert row.engine == verified[runtime]["engine"]
        distance = {name: abs(row.parity["centred_cosine"] - value) for name, value in cosines.items()}
        assert min(distance, key=distance.__getitem__) == runtime
        assert distance[runtime] < 1e-4


def test_each_configuration_is_measured_as_it_was_asked_for(bundle: Path) -> None:
    """Devices and bundles are not mixed up: a spin of 3 ms is never shorter, and a row's digest is its bundle's."""
    plan = Plan((DEFAULT_BUNDLE, wrong_bundle(bundle)), ("null",), devices=("spin:1", "spin:3"), threads=(1,), rounds=2)
    found = bench(replace(plan, scenarios=("single-stream",), load=QUICK, in_process=True)).rows
    assert len({row.digest for row in found}) == 2
    for row in found:
        assert row.device == row.configuration.device
        assert min(map(min, row.samples)) >= float(row.device.partition(":")[2])
        assert row.digest == digest_of(open_bundle(row.configuration.bundle).manifest)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_served_is_the_engine_that_was_asked_for(runtime: str, verified: dict[str, dict[str, Any]]) -> None:
    with closing(Served(Configuration(str(DEFAULT_BUNDLE), runtime, "int8", None, 1))) as served:
        assert (served.ready["engine"], served.ready["answers"]) == (verified[runtime]["engine"], "ok")


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


@pytest.fixture(scope="module")
def own_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own clip with three faces."""
    return camera.write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 3)


def test_a_slow_model_drops_the_cameras_frames(own_clip: Path) -> None:
    """30 ms a frame at 100 frames a second: every third frame is seen, and no other is decoded."""
    paced, seen = camera.PacedClip(own_clip, replace(QUICK, fps=100.0, seconds=0.6)), []
    for frame in paced:
        seen.append(frame.number)
        time.sleep(0.03)
        assert time.monotonic() - frame.arrived >= 0.03
    assert paced.shown == len(seen)
    assert paced.dropped + paced.shown == seen[-1] + 1 >= 57
    assert paced.dropped >= 0.6 * (seen[-1] + 1)
    assert seen == sorted(set(seen)), "no frame is looked at twice, none out of turn"


def test_the_camera_goes_the_way_of_watch(own_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a detector its faces are known, and it says so; its stages are those of the summary."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fer_edge.load(threads=1) as clf:
        found = camera.camera(clf, replace(QUICK, fps=50.0, seconds=1.0, faces=3))
    details, summary = found.details, found.details["summary"]
    assert details["detector"] == "KnownFaces"
    assert (summary["tracks"], summary["live"]) == (3, True)
    assert summary["frames"] > len(found.samples) == details["frames"] - details["dropped"] > 20
    assert len(found.samples) <= found.inferences <= 3 * len(found.samples), "as many faces as there was time for"
    assert found.inferences <= summary["classified"]
    assert found.inferences == pytest.approx(found.throughput_per_s * found.seconds)
    # The summary counts the first half second, too, which on a busy machine is another one.
    assert summary["age_ms"]["p50"] == pytest.approx(found.latency.p50, rel=0.4)
    for stage, spread in details["stages_ms"].items():
        assert summary["stages_ms"][stage]["p50"] == pytest.approx(spread["p50"], rel=0.4, abs=2e-3)


def test_the_camera_finds_the_faces_of_a_clip(own_clip: Path, yunet: Path) -> None:
    with fer_edge.load(threads=1) as clf:
        found = camera.camera(clf, replace(QUICK, fps=20.0, seconds=1.5, clip=str(own_clip), detector=str(yunet)))
        assert found.details["summary"]["tracks"] == 3
        assert found.details["stages_ms"]["find"]["p50"] > 0.3
        with pytest.raises(fer_edge.EngineError, match="no face detector"):
            camera.camera(clf, replace(QUICK, clip=str(own_clip), detector=str(own_clip)))


def test_dropped_frames_are_in_every_output(run: Results) -> None:
    """None too: a reader must not have to guess what a missing column means."""
    details = {"dropped": 3, "frames": 41}
    rows = [replace(r, details={**r.details, **details}) if r.scenario == "camera" else r for r in run.rows]
    for dropped in (3, 0):
        rows = [replace(r, details={**r.details, "dropped": dropped}) if r.scenario == "camera" else r for r in rows]
        results, screen = replace(run, rows=tuple(rows)), io.StringIO()
        bench_text(results, screen)
        cell = f"{dropped} of 41"
        head, cells = rows_of(results)
        assert [texts[head.index("dropped")] for texts in cells] == [cell if r.scenario == "camera" else "-" for r in rows]
        for text in (markdown(results), screen.getvalue(), report(results)):
            assert text.count(cell) >= len(RUNTIMES)
            assert "dropped" in text
        table = csv.DictReader(io.StringIO(flat_csv(results)))
        found = {row["details.dropped"] for row in table if row["scenario"] == "camera"}
        assert found == {str(dropped)}
        assert {r["details"]["dropped"] for r in results.as_json()["results"] if r["scenario"] == "camera"} == {dropped}
    assert "dropped" not in rows_of(replace(run, rows=tuple(r for r in rows if r.scenario != "camera")))[0]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_a_camera_does_not_end_while_somebody_looks(own_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """800 ms a frame at 30 frames a second: every answer, the last too, is of a frame that was new."""
    clock = Clock()
    monkeypatch.setattr(camera, "time", clock)

    def ages(each: float, load: Load) -> list[float]:
        found = []
        for frame in camera.PacedClip(own_clip, load):
            clock.sleep(each)
            found.append(clock.now - frame.arrived)
        return found

    found = ages(0.8, Load(1.0, 20.0, fps=30.0))
    assert len(found) == traffic.FEWEST
    assert all(0.8 - 1e-6 <= age <= 0.8 + 1 / 30 + 1e-6 for age in found)
    slow = ages(2.0, Load(1.0, 5.0, fps=30.0))
    assert len(slow) == 3, "it gives up at the longest time"
    assert max(slow) <= 2 + 1 / 30 + 1e-6


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline", "server"])
def test_an_engine_that_fails_under_loadgen_says_so_itself(scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that went through LoadGen's threads would end the process; and nobody waits for queries that come all at
    once."""
    asked: list[int] = []
    slept: list[float] = []
    monkeypatch.setattr(loadgen.time, "sleep", slept.append)

    def answer(i: int) -> None:
        asked.append(i)
        if len(asked) == 20:
            raise fer_edge.EngineError("the driver is gone")

    for _ in range(3):
        asked.clear()
        with pytest.raises(fer_edge.EngineError, match="the driver is gone"):
            loadgen.traffic(scenario, answer, 32, replace(QUICK, expected_ms=0.1, latency_bound_ms=5.0))
        assert len(asked) == 20, "nothing is asked of it afterwards"
        if scenario == "offline":
            assert sum(slept) < 1.0
        slept.clear()


def test_server_brings_its_bound_along() -> None:
    """Twice the p90 of single-stream, which is measured too; a bound that is given stands."""
    plan = Plan((DEFAULT_BUNDLE,), ("litert",), threads=(1,), scenarios=("server",), load=QUICK, rounds=1)
    single, server = bench(plan).rows
    assert (single.scenario, server.scenario) == ("single-stream", "server")
    assert server.details["latency_bound_ms"] == pytest.approx(2 * single.latency_ms.p90)
    given = bench(replace(plan, load=replace(QUICK, latency_bound_ms=7.0))).rows
    assert [row.details.get("latency_bound_ms") for row in given] == [None, 7.0]


def test_only_official_runs_are_judged_by_mlperfs_rules(run: Results) -> None:
    assert run.extras["run"] == {
        **{"rounds": 2, "seconds": 0.05, "mlperf": False, "photo": None, "latency_bound_ms": None},
        **{"fps": 200.0, "faces": 1, "clip": None, "detector": None},
    }
    short = [replace(row, details={**row.details, "loadgen_valid": False}) for row in run.rows]
    assert "MLPerf's rules" not in markdown(replace(run, rows=tuple(short)))
    row = replace(short[0], details={**short[0].details, "official": True})
    assert f"invalid by MLPerf's rules: {row.configuration.name}, {row.scenario}" in markdown(replace(run, rows=(row,)))


@pytest.mark.parametrize("error", [fer_edge.EngineError("out of memory"), KeyboardInterrupt()])
def test_what_ends_a_run_late_loses_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failure, or Ctrl-C, in the last process: the rows rest on the earlier ones, and files are written."""
    jobs: list[Job] = []

    def measure(job: Job, say: Any) -> Any:
        jobs.append(job)
        if len(jobs) == 3:
            raise error
        return run_isolated(job, say)

    monkeypatch.setattr(benching, "run_isolated", measure)
    quick = ("--runtime", "litert", "--threads", "1", "--seconds", 0.05, "--rounds", 3)
    result = command(*quick, "-o", tmp_path / "run.json", "--html", tmp_path / "run.html")
    interrupted = isinstance(error, KeyboardInterrupt)
    assert result.exit_code == (130 if interrupted else 1), result.output
    (row,) = read_results(tmp_path / "run.json").rows
    assert (row.scenario, len(row.samples)) == ("single-stream", 2)
    assert ("interrupted: rows may rest on" if interrupted else "failed: out of memory") in result.output
    assert (tmp_path / "run.html").stat().st_size > 10_000


def test_a_run_ended_while_the_machine_is_probed_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After everything was measured, by SIGTERM this time: as ``timeout`` and systemd end a program."""

    def probing(wanted: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(benching, "peaks_of", probing)
    file = tmp_path / "run.json"
    quick = ("--runtime", "litert", "--threads", "1", "--seconds", 0.05, "--rounds", 1)
    with pytest.raises(SystemExit) as end:
        main(["bench", *map(str, quick), "-o", str(file)])
    assert end.value.code == 143
    read = read_results(file)
    assert {row.peak_gmacs_per_s for row in read.rows} == {None}
    assert (len(read.rows), read.extras["interrupted"]) == (2, True)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_file_that_cannot_be_written_takes_no_other_along(tmp_path: Path) -> None:
    quick = ("--runtime", "litert", "--threads", "1", "--seconds", 0.05, "--rounds", 1)
    result = command(*quick, "--csv", "/dev/full", "--markdown", tmp_path / "run.md", "--json")
    assert isinstance(result.exception, fer_edge.UsageError)
    assert "/dev/full cannot be written: No space left" in str(result.exception)
    assert len(json.loads(result.stdout)["results"]) == 2
    assert "litert" in (tmp_path / "run.md").read_text()
    long = command(*quick, "-o", tmp_path / ("x" * 252 + ".json"))
    assert isinstance(long.exception, fer_edge.UsageError), "seen before anything is measured"
    assert not long.stdout


def test_a_bundle_whose_name_is_not_unicode_is_written_about(bundle: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff"))
    try:
        bundle.rename(odd)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    files = [tmp_path / f"run.{kind}" for kind in ("json", "csv", "md", "html")]
    options = [part for pair in zip(("-o", "--csv", "--markdown", "--html"), files, strict=True) for part in pair]
    quick = ("--runtime", "litert", "--threads", "1", "--seconds", 0.05, "--rounds", 1)
    assert command(str(odd), *quick, *options).exit_code == 0
    assert all(file.stat().st_size for file in files)


def test_a_run_ended_before_anything_was_measured_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Last week's file must not become an empty one."""

    def measure(job: Job, say: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(benching, "run_isolated", measure)
    file = tmp_path / "run.json"
    file.write_text("last week's")
    result = command("--runtime", "litert", "-o", file)
    assert result.exit_code != 0
    assert file.read_text() == "last week's"


def test_files_are_written_before_anything_is_printed(tmp_path: Path) -> None:
    """Onto a full screen nothing can be printed; what was measured is in the file all the same."""
    file, tool = tmp_path / "run.json", Path(sys.executable).with_name("fer-edge")
    quick = [tool, "bench", "--runtime", "litert", "--threads", "1", "--seconds", "0.05", "--rounds", "1", "-o", file]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(quick, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert len(read_results(file).rows) == 2


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_that_is_ended_takes_its_workers_along(number: int, tmp_path: Path) -> None:
    """By SIGTERM with all their temporary files; SIGKILL leaves no time to end them, but they see that they are alone."""
    tool = Path(sys.executable).with_name("fer-edge")
    options = ["--runtime", "null", "--device", "spin:1", "--seconds", "60"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([tool, "bench", *options], stdout=subprocess.DEVNULL, env=environment)
    end = time.monotonic() + 60
    while not (workers := children(parent.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    assert workers
    time.sleep(1.0)
    parent.send_signal(number)
    assert parent.wait(10) == (143 if number == signal.SIGTERM else -number)
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())


def test_a_file_that_is_missing_is_said_so(bundle: Path) -> None:
    (bundle / "litert-int8.tflite").unlink()
    result = command(bundle, "--runtime", "litert", "--json", "--seconds", 0.05, "--rounds", 1)
    assert result.exit_code == 1
    (failure,) = json.loads(result.stdout)["failures"]
    assert "litert-int8.tflite" in failure["problem"]
    assert "ended with" not in failure["problem"]


@settings(max_examples=100, deadline=None)
@given(width=st.integers(60, 250), several=st.booleans(), names=st.lists(st.sampled_from(RUNTIMES), min_size=1, max_size=4))
def test_tables_fit_the_terminal(run: Results, width: int, several: bool, names: list[str]) -> None:
    """Whatever its width, every column is shown once, with what tells the rows apart, and the verdict in the first table."""
    chosen = [row for row in run.rows if row.configuration.runtime in names]
    if several:
        moved = (replace(row, configuration=replace(row.configuration, bundle="/x/b16")) for row in chosen)
        chosen += list(moved)
    head, rows = rows_of(replace(run, rows=tuple(chosen)))
    common, tables = fitting(head, rows, width)
    shown = [i for columns in tables for i in columns if head[i] not in IDENTITY]
    assert sorted(shown) == [i for i, name in enumerate(head) if name not in IDENTITY]
    assert len(head) - 1 in tables[0]
    who = [i for i in tables[0] if head[i] in IDENTITY]
    for columns in tables:
        assert columns[: len(who)] == who or len(tables) == 1
        needed = sum(max(len(head[i]), *(len(row[i]) for row in rows)) + 2 for i in columns) - 2
        assert needed <= width or len(columns) == len(who) + 1
    for i, name in enumerate(head):
        if name in IDENTITY and i not in who:
            assert f"{name} {rows[0][i]}" in common
            assert len({row[i] for row in rows}) == 1


def test_a_narrow_terminal_cuts_no_number(run: Results) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "dumb")
        bench_text(run, screen)
    lines = screen.getvalue().splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith(("Where", "Note")))]
    assert max(map(len, table)) <= 80
    row = next(r for r in run.rows if r.scenario == "single-stream")
    assert any(number(row.latency_ms.p50) in line.split() for line in table)
    assert "All rows: precision int8" in screen.getvalue()


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


@pytest.mark.parametrize(
    "change",
    [
        {"sustained": 5},
        {"sustained": {"ranking": [3]}},
        {"interleaved": [1]},
        {"run": [1]},
        {"failures": [{"bundle": 5, "runtime": "x", "precision": [], "threads": 1, "problem": "p"}]},
        {"environment": 7},
        ("load_ms", 10**400),
        ("details", {"fps": []}),
        ("latency_ms", dict.fromkeys(Latency.__dataclass_fields__, float("nan"))),
    ],
    ids=str,
)
def test_parts_of_another_kind_are_refused(change: Any, run: Results, tmp_path: Path) -> None:
    value = json.loads(json.dumps(run.as_json()))
    if isinstance(change, dict):
        value |= change
    else:
        value["results"][0][change[0]] = change[1]
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(fer_edge.UsageError, match=r"x\.json"):
        read_results(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "results": 3}', "\x00"])
def test_other_files_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(fer_edge.UsageError, match=r"x\.json"):
        read_results(tmp_path / "x.json")


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


@pytest.mark.parametrize(("text", "words"), [("", "does not start"), ("#!/bin/sh\necho 5", "not as fer-edge does: 5")])
def test_another_build_that_is_no_python(text: str, words: str, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(text)
    other.chmod(0o755)
    (wanted,) = only(Plan((DEFAULT_BUNDLE,), runtimes=("litert",)))
    with pytest.raises(fer_edge.EngineError, match=words):
        Served(wanted, str(other))


def test_faces_that_cannot_be_read_are_told(data: Path, tmp_path: Path) -> None:
    """And the exit status is that of bad input, as for evaluate."""
    (tmp_path / "faces" / "happiness").mkdir(parents=True)
    with np.load(data / "fer2013" / "public_test.npz") as z:
        Image.fromarray(z["images"][0]).save(tmp_path / "faces" / "happiness" / "a.png")
    (tmp_path / "faces" / "happiness" / "b.png").write_bytes(b"no picture")
    quick = ("--runtime", "litert", "--threads", "1", "--seconds", 0.05, "--rounds", 1, "--accuracy", tmp_path / "faces")
    result = command(*quick, "-o", tmp_path / "run.json")
    assert result.exit_code == 2, result.output
    assert "1 images could not be read and count nowhere; the first: " in result.output
    (entry,) = read_results(tmp_path / "run.json").extras["accuracy"]["of"]
    assert (entry["n"], len(entry["unreadable"])) == (1, 1)


def test_accuracy_that_fails_does_not_lose_the_run(run: Results, data: Path, bundle: Path, tmp_path: Path) -> None:
    """The model of one engine is altered after it was measured."""
    with np.load(data / "fer2013" / "public_test.npz") as z:
        rows = np.flatnonzero(z["ferplus_majority_labelcsv"] >= 0)[:8]
        truth, names = z["ferplus_majority_labelcsv"][rows], z["ferplus_class_names"]
        np.savez(tmp_path / "few.npz", images=z["images"][rows], truth=truth, names=names)
    (bundle / "litert-int8.tflite").write_bytes(b"no model")
    moved = [replace(row, configuration=replace(row.configuration, bundle=str(bundle))) for row in run.rows]
    asked = (tmp_path / "few.npz", "truth", "names")
    found = runs.accuracy(replace(run, rows=tuple(moved)), asked, lambda done, text="": None)
    assert {entry["runtime"] for entry in found.extras["accuracy"]["of"]} == {"openvino", "onnxruntime"}
    assert all(entry["n"] == 8 and 0 <= entry["war"] <= 1 for entry in found.extras["accuracy"]["of"])
    assert "litert int8: no accuracy, " in markdown(found)
    assert "litert-int8.tflite was altered or truncated" in markdown(found)
    head, cells = rows_of(found)
    at = head.index("WAR")
    assert {texts[0]: texts[at] == "-" for texts in cells} == {"openvino": False, "litert": True, "onnxruntime": False}


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
    assert forget([Path("/no/such/file")])


def test_configurations_of_a_plan() -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    found = configurations(bundle, Plan((DEFAULT_BUNDLE,), runtimes=("litert", "openvino"), threads=(1, 2)))
    assert [(c.runtime, c.threads) for c in found] == [("openvino", 1), ("openvino", 2), ("litert", 1), ("litert", 2)]
    assert [c.runtime for c in only(Plan((DEFAULT_BUNDLE,)))] == ["openvino"]
    with pytest.raises(fer_edge.BundleError, match="nothing to measure"):
        configurations(bundle, Plan((DEFAULT_BUNDLE,), precisions=("fp16",)))
    (litert,) = (a for a in bundle.manifest.artefacts if a.runtime == "litert")
    compiled = replace(bundle.manifest, artefacts=(replace(litert, target="ethos-u55-256"), litert))
    found = configurations(replace(bundle, manifest=compiled), Plan((DEFAULT_BUNDLE,), threads=(1,)))
    assert [c.runtime for c in found] == ["litert"]


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
    with files[1].open() as table:
        (row,) = csv.DictReader(table)
    assert (float(row["accuracy.war"]), int(row["accuracy.n"])) == (entry["war"], 40)
    assert files[1].read_text().splitlines()[1].startswith(str(ladder / "one"))
    assert files[2].read_text().startswith("| runtime |")
    assert files[3].read_text().startswith("<!doctype html>")
    nothing = command("--all-bundles", tmp_path / "empty")
    assert nothing.exit_code == 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    result = command("--runtime", "litert", "--seconds", 0.05, "--rounds", 1, "-o", tmp_path / "no" / "x.json")
    assert isinstance(result.exception, fer_edge.UsageError)


def test_a_handover_takes_time_and_leaves_the_process_as_it_was() -> None:
    free = os.sched_getaffinity(0)
    hands = handover_us()
    assert os.sched_getaffinity(0) == free
    assert hands is None if len(free) == 1 else hands is not None and 0 < hands < 1e5
    try:
        os.sched_setaffinity(0, {min(free)})
        assert handover_us() is None, "there is nobody to hand anything to"
    finally:
        os.sched_setaffinity(0, free)


def test_a_thread_that_cannot_be_bound_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that goes offline in between: the helper thread is refused it."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    bind, here = os.sched_setaffinity, threading.get_ident()

    def refuse(process: int, processors: set[int]) -> None:
        if threading.get_ident() != here:
            raise OSError(22, "Invalid argument")
        bind(process, processors)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert handover_us() is None
    assert len(os.listdir("/proc/self/fd")) == before
