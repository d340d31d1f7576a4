"""MLPerf's LoadGen (package mlcommons-loadgen, loadgen/README.md of mlcommons/inference): it decides when which crop is
asked for and whether a run was long enough to count.

Official durations and counts are those of its mlperf.conf: 600 s everywhere, 662 queries of 8 in multi-stream; the
percentile is 90 in single-stream and 99 in multi-stream and server."""

from __future__ import annotations

import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fer_edge.errors import EngineError, importable

from .results import Latency, Scenario, latency
from .traffic import FEWEST, Answer, Load, Recorder, Traffic

OFFICIAL_SECONDS = 600.0
FACES_PER_QUERY = 8
"""Of multi-stream (mlperf.conf)."""
OFFICIAL_QUERIES = {"single-stream": 1024, "multi-stream": 662, "server": 1, "offline": 24576}
"""MLPerf inference rules, "Benchmarks": the fewest queries (offline: samples) of a valid run."""
_NAMES = {"single-stream": "SingleStream", "offline": "Offline", "multi-stream": "MultiStream", "server": "Server"}
_SERVER_STEPS = 6
"""Halvings of the range in which the highest rate lies: it is known to 1/64 of the service rate."""


def installed() -> bool:
    """Whether there is a LoadGen on this machine (no wheel exists for aarch64)."""
    return importable("mlperf_loadgen")


def traffic(scenario: Scenario, answer: Answer, crops: int, load: Load) -> Traffic:
    """One run of a LoadGen scenario. ``server`` is a search: the highest Poisson rate whose p99 stays within
    ``load.latency_bound_ms``."""
    if scenario == "server":
        return _highest_rate(answer, crops, load)
    return _run(scenario, answer, crops, load, None)


def _run(scenario: Scenario, answer: Answer, crops: int, load: Load, rate: float | None, traced: bool = False) -> Traffic:
    import mlperf_loadgen as lg

    timed = Recorder(answer)
    together = FACES_PER_QUERY if scenario == "multi-stream" else 1
    queries: list[float] = []
    failed: list[BaseException] = []

    def issue(samples: list[Any]) -> None:
        for start in range(0, len(samples), together):
            query = samples[start : start + together]
            if not failed:
                try:
                    queries.append(sum(timed(sample.index) for sample in query))
                except BaseException as error:  # of Python: LoadGen's C++ threads would end the process over it
                    failed.append(error)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in query])
        if failed:  # LoadGen cannot be told to stop: this keeps it from filling the memory with queries until its end
            time.sleep(0.05)

    settings = _settings(lg, scenario, load, rate)
    sut, library = lg.ConstructSUT(issue, _nothing), lg.ConstructQSL(crops, crops, _nothing, _nothing)
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = lg.LogOutputSettings()
            output.outdir = folder
            logs = lg.LogSettings()
            logs.log_output, logs.enable_trace = output, traced
            # The audit file is read from the current folder; an unlikely name keeps a stray one from changing the run.
            lg.StartTestWithLogSettings(sut, library, settings, logs, "fer-edge-no-audit.config")
            if failed:
                raise failed[0]
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
            waited = _trace(Path(folder) / "mlperf_log_trace.json") if traced else None
            version = _version(Path(folder) / "mlperf_log_detail.txt")
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    details = {"generator": f"LoadGen {version}", "official": load.official, **_summary(summary)}
    if waited is not None and len(waited) != len(queries):
        raise EngineError(f"LoadGen's trace has {len(waited)} of {len(queries)} queries: this version writes another form")
    samples = tuple(queries if waited is None else waited)
    statistics = _statistics(summary, samples) if scenario == "server" and not traced else None
    count = len(timed.samples)
    per_second = details.get("loadgen_samples_per_s", count / timed.seconds)
    return Traffic(samples, count, per_second, timed.cpu_share, timed.seconds, details, statistics)


def _nothing(*_: object) -> None:
    """LoadGen wants to be told when samples are in memory and queries are flushed; ours always are."""


def _settings(lg: Any, scenario: Scenario, load: Load, rate: float | None) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, _NAMES[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    seconds = OFFICIAL_SECONDS if load.official else load.seconds
    settings.min_duration_ms = round(seconds * 1e3)
    settings.min_query_count = OFFICIAL_QUERIES[scenario] if load.official else FEWEST
    if not load.official:
        settings.max_duration_ms = round(max(load.longest, seconds) * 1e3)
    expected = max(1, round(load.expected_ms * 1e6))
    settings.single_stream_expected_latency_ns = expected
    settings.multi_stream_samples_per_query = FACES_PER_QUERY
    settings.multi_stream_expected_latency_ns = expected * FACES_PER_QUERY
    settings.multi_stream_target_latency_percentile = 0.99
    settings.offline_expected_qps = 1e3 / load.expected_ms
    if rate is not None:
        assert load.latency_bound_ms is not None
        settings.server_target_qps = rate
        settings.server_target_latency_ns = round(load.latency_bound_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
    return settings


def _highest_rate(answer: Answer, crops: int, load: Load) -> Traffic:
    """Bisection between no traffic and the service rate: above that, queues grow without end."""
    bound = load.latency_bound_ms or 2 * load.expected_ms
    load = replace(load, latency_bound_ms=bound)
    short = replace(load, official=False)
    low, high = 0.0, 1e3 / load.expected_ms
    best: tuple[float, Traffic] | None = None
    tried = []
    for _ in range(_SERVER_STEPS):
        rate = (low + high) / 2
        found = _run("server", answer, crops, short, rate, traced=True)
        good = found.latency.p99 <= bound
        tried.append({"rate_per_s": rate, "p99_ms": found.latency.p99, "kept": good})
        low, high = (rate, high) if good else (low, rate)
        if good or best is None:
            best = (rate if good else 0.0, found)
    assert best is not None
    rate, found = best
    if load.official and rate:
        found = _run("server", answer, crops, load, rate)
    details = {**found.details, "latency_bound_ms": bound, "highest_rate_per_s": rate, "tried": tried}
    return replace(found, throughput_per_s=rate, details=details)


def _trace(file: Path) -> list[float]:
    """Latency (ms) of each sample from the time it was scheduled for, waiting included."""
    found = []
    for line in file.read_text().splitlines():
        if '"name":"Sample"' in line and '"ph":"b"' in line:
            found.append(json.loads(line.rstrip().rstrip(","))["args"]["complete_ns"] / 1e6)
    return found


def _summary(text: str) -> dict[str, Any]:
    """LoadGen's own verdict, by the durations that it was told, and the figure that the scenario is judged by."""
    details: dict[str, Any] = {"loadgen_valid": re.search(r"^Result is : VALID", text, re.M) is not None}
    for pattern, name, scale in (
        (r"^[\d.]+th percentile latency \(ns\) : (\d+)", "loadgen_percentile_ms", 1e-6),
        (r"^Samples per second: ([\d.e+]+)", "loadgen_samples_per_s", 1.0),
        (r"^QPS w/ loadgen overhead\s*: ([\d.e+]+)", "loadgen_queries_per_s", 1.0),
        (r"^Scheduled samples per second : ([\d.e+]+)", "loadgen_scheduled_per_s", 1.0),
    ):
        if found := re.search(pattern, text, re.M):
            details[name] = float(found.group(1)) * scale
    return details


def _statistics(text: str, samples: tuple[float, ...]) -> Latency:
    """LoadGen's statistics from scheduled time to answer; the standard deviation is of the service times."""

    def of(name: str) -> float:
        found = re.search(rf"^{re.escape(name)}[^:]*: (\d+)", text, re.M)
        assert found, name
        return int(found.group(1)) / 1e6

    names = {"p50": "50.00 percentile", "p90": "90.00 percentile", "p95": "95.00 percentile", "p99": "99.00 percentile"}
    names |= {"p999": "99.90 percentile", "min": "Min", "max": "Max", "mean": "Mean"}
    return Latency(**{field: of(f"{name} latency") for field, name in names.items()}, std=latency(samples).std)


def _version(file: Path) -> str:
    found = re.search(r'"loadgen_version", "value": "([^"@ ]+)', file.read_text())
    return found.group(1) if found else "of unknown version"
