"""What a benchmark finds, and its JSON: frozen dataclasses, one schema with a number.

``latency_ms`` is the time of the engine's call on a prepared crop; what surrounds it is in ``stages_ms``. Times are
milliseconds, memory and files are MB (10^6 bytes), MACs are multiply-accumulates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import UsageError

SCHEMA = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""

Scenario = Literal["single-stream", "offline", "multi-stream", "server", "camera"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


@dataclass(frozen=True)
class Configuration:
    """What is measured. ``device``: the engine's name for it, None: its CPU; ``execution_precision``: None: the
    artefact's own arithmetic."""

    bundle: str
    runtime: str
    precision: str
    device: str | None
    threads: int
    execution_precision: str | None = None

    @property
    def name(self) -> str:
        """For people: "openvino int8, 2 threads"."""
        device = f" on {self.device}" if self.device else ""
        computed = f" computed in {self.execution_precision}" if self.execution_precision else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime} {self.precision}{device}{computed}, {threads}"


@dataclass(frozen=True)
class Latency:
    """Of raw samples: percentiles (linear interpolation), extremes, mean and standard deviation (n - 1), in ms."""

    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    min: float
    max: float
    mean: float
    std: float


def latency(samples: Sequence[float] | NDArray[np.float64]) -> Latency:
    """Statistics of at least one sample. A single sample has a standard deviation of 0."""
    values = np.asarray(samples, np.float64)
    p50, p90, p95, p99, p999 = (float(v) for v in np.percentile(values, (50, 90, 95, 99, 99.9)))
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Latency(p50, p90, p95, p99, p999, float(values.min()), float(values.max()), float(values.mean()), std)


@dataclass(frozen=True)
class Start:
    """How long the first answer takes. ``load_ms``: fer_edge.load in a fresh process after the kernel was asked to forget
    the files of artefact and engine; ``cached_load_ms``: with them in memory (None: there was one process only); both
    contain the import of the engine and the check of the artefact's hash. ``first_ms``: the first inference after the
    cold load."""

    load_ms: float
    cached_load_ms: float | None
    first_ms: float


@dataclass(frozen=True)
class Memory:
    """Of a process that loads and runs the artefact. ``peak_rss_mb`` and ``resident_mb`` count the whole process;
    ``harness_mb`` is what it held before anything was loaded, and ``model_mb`` the peak less that: engine, model and
    working memory."""

    peak_rss_mb: float
    resident_mb: float
    harness_mb: float
    model_mb: float


@dataclass(frozen=True)
class Unit:
    """A compute unit that part of an artefact runs on. ``operators``: how many the engine put there, ``operators_share`` of
    all; ``macs_share``: of the multiply-accumulates, None where they cannot be counted by operator; ``kernels``: the
    operators by the engine's name for what runs them, or else by their kind."""

    unit: str
    operators: int
    operators_share: float
    macs_share: float | None
    kernels: Mapping[str, int]


@dataclass(frozen=True)
class OperatorCost:
    """An operator's time in one inference, by the engine's own profiler; ``share`` of the profiled call."""

    name: str
    kind: str
    unit: str
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Times by operator, from a run of its own: the profiler takes time too. ``call_ms``: a whole call in that run;
    ``covered``: the operators' share of it; ``between_ms``: the rest, which the engine spends between its operators."""

    call_ms: float
    covered: float
    between_ms: float
    operators: tuple[OperatorCost, ...]


@dataclass(frozen=True)
class Row:
    """One scenario of one configuration. ``samples``: ms, a list per process; for ``camera`` from the arrival of a frame to
    its events. ``reference_ms``, ``handover_us``: how fast the machine was (``machine.py``), by process. ``parity``:
    the golden set's numbers, ``status`` ("ok" ...) and ``problem`` (see ``fer-edge verify``). ``cpu_share``: processor time
    over wall time, 1 = one core busy. ``details``: what only this scenario has. ``units``: where it ran (empty: the engine
    does not tell), ``profile``: what each operator took, where it was asked for, ``where_note``: what the engine does not
    tell of either. None: nothing to measure it with."""

    configuration: Configuration
    digest: str
    engine: str
    device: str
    execution_precision: str
    scenario: Scenario
    latency_ms: Latency
    throughput_per_s: float
    start: Start
    memory: Memory
    stages_ms: Mapping[str, float]
    artefact_mb: float
    engine_mb: float | None
    cpu_share: float
    macs: int | None
    peak_gmacs_per_s: float | None
    energy_mj: float | None
    parity: Mapping[str, Any]
    samples: tuple[tuple[float, ...], ...]
    reference_ms: tuple[float, ...]
    handover_us: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    units: tuple[Unit, ...] = ()
    profile: Profile | None = None
    where_note: str = ""

    @property
    def bundle_name(self) -> str:
        """Of the bundle's folder."""
        return Path(self.configuration.bundle).name

    @property
    def precision_text(self) -> str:
        """The artefact's precision, and what was asked for instead of its own arithmetic: "fp32 in bf16"."""
        asked = self.configuration.execution_precision
        return self.configuration.precision + (f" in {asked}" if asked else "")

    @property
    def gmacs_per_s(self) -> float | None:
        """10^9 multiply-accumulates a second in the median inference; None where a query is more than that."""
        if self.macs is None or self.scenario not in ("single-stream", "offline"):
            return None
        return self.macs / self.latency_ms.p50 / 1e6

    @property
    def share_of_peak(self) -> float | None:
        """Of what a plain matrix product reaches here at this precision and threads, in the engine that is fastest at it."""
        rate, peak = self.gmacs_per_s, self.peak_gmacs_per_s
        return None if rate is None or not peak else rate / peak

    def as_json(self) -> dict[str, Any]:
        """Flat, with the names of the contract."""
        plain = asdict(self)
        flat = {**plain.pop("configuration"), **plain.pop("start"), **plain.pop("memory")}
        asked = {"device_asked": flat.pop("device"), "execution_precision_asked": flat.pop("execution_precision")}
        plain["samples"] = [[round(v, 5) for v in part] for part in self.samples]  # 10 ns is less than a clock's error
        return {**flat, **asked, **plain, "gmacs_per_s": self.gmacs_per_s, "share_of_peak": self.share_of_peak}


@dataclass(frozen=True)
class Failure:
    """A configuration that could not be measured, and why, in one line."""

    configuration: Configuration
    problem: str


@dataclass(frozen=True)
class Results:
    """A whole run. ``extras``: parts that only some runs have (``interleaved``, ``sustained``, ``accuracy``; ``run``: how
    long it was told to measure; ``skipped``: bundles with nothing for this machine; ``in_process``: true where no process
    was fresh; ``interrupted``: true where somebody ended it)."""

    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The contract's ``{"environment", "results"}``, with ``schema`` and ``failures``."""
        failures = [{**asdict(f.configuration), "problem": f.problem} for f in self.failures]
        rows = [row.as_json() for row in self.rows]
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "results": rows,
            "failures": failures,
            **self.extras,
        }


def _share(value: float | None) -> str:
    """A share in percent, whole where it is whole."""
    return "an unknown share" if value is None else f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def units_text(units: Sequence[Unit]) -> str:
    """Where an artefact runs: "18 of 20 operators and 100% of the multiplications on CPU, XNNPACK; 2 and 0% on ..."."""
    every = sum(unit.operators for unit in units)
    if len(units) == 1:
        return f"all {every} operators on {units[0].unit}"
    first, *others = units
    head = f"{first.operators} of {every} operators and {_share(first.macs_share)} of the multiplications on {first.unit}"
    return "; ".join([head, *(f"{u.operators} and {_share(u.macs_share)} on {u.unit}" for u in others)])


def several_bundles(results: Results) -> bool:
    """Whether one needs to say which bundle something is of."""
    measured = {row.configuration.bundle for row in results.rows}
    return len(measured | {failure.configuration.bundle for failure in results.failures}) > 1


def named(configuration: Configuration, results: Results) -> str:
    """A configuration's name, with its bundle's where the run has several."""
    bundle = f"{Path(configuration.bundle).name}, " if several_bundles(results) else ""
    return bundle + configuration.name


def read_results(path: Path) -> Results:
    """Read what ``bench --json`` printed. Raises UsageError for anything else, or for a newer schema."""
    try:
        value = json.loads(path.read_text(), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {' '.join(str(error).split())[:120]}") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(f"{path} has schema {schema}, this fer-edge reads up to {SCHEMA}: upgrade fer-edge")
    if schema != SCHEMA:
        raise UsageError(f"{path} does not hold what 'fer-edge bench --json' prints")
    try:
        rows = tuple(_row(row) for row in value["results"])
        failures = tuple(Failure(_configuration(f), str(f["problem"])) for f in value["failures"])
        environment = dict(value["environment"])
        known = {"schema", "environment", "results", "failures"}
        extras = _extras({k: v for k, v in value.items() if k not in known})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} does not hold what 'fer-edge bench --json' prints ({error!r:.80})") from error
    return Results(environment, rows, failures, extras)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _extras(value: dict[str, Any]) -> dict[str, Any]:
    """The parts that only some runs have, of the kinds that are read again."""
    for name, kind in (("run", dict), ("sustained", dict), ("interleaved", list), ("accuracy", dict), ("skipped", list)):
        if name in value and not isinstance(value[name], kind):
            raise ValueError(name)
    for ranked in value.get("sustained", {}).get("ranking", ()):
        str(ranked["configuration"]), str(ranked["bundle"]), ranked.get("answers"), ranked.get("wrong")
    for entry in value.get("interleaved", ()):
        str(entry["name"]), entry["a"].get("answers"), entry["b"].get("answers")
    return value


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no measurement")
    return number


def _configuration(row: Mapping[str, Any]) -> Configuration:
    asked = {"device": row.get("device_asked", row.get("device"))}
    asked["execution_precision"] = row.get("execution_precision_asked", row.get("execution_precision"))
    named = {k: row[k] for k in ("bundle", "runtime", "precision", "threads")}
    texts = all(isinstance(named[k], str) for k in ("bundle", "runtime", "precision"))
    if not texts or type(named["threads"]) is not int or not all(isinstance(v, (str, type(None))) for v in asked.values()):
        raise ValueError("configuration")
    return Configuration(**named, **asked)


_READ_BY_THEMSELVES = ("configuration", "latency_ms", "start", "memory", "samples", "reference_ms", "handover_us")
_KINDS = (
    (str, ("where_note", "digest", "engine", "device", "execution_precision", "bundle", "runtime", "precision")),
    ((dict,), ("stages_ms", "parity", "details", "latency_ms")),
    ((int, float), ("throughput_per_s", "artefact_mb", "cpu_share", "threads")),
    ((str, type(None)), ("device_asked", "execution_precision_asked")),
    ((int, float, type(None)), ("engine_mb", "macs", "peak_gmacs_per_s", "energy_mj")),
)


def _row(row: Mapping[str, Any]) -> Row:
    samples = tuple(tuple(map(_finite, part)) for part in row["samples"])
    reference, hands = (tuple(map(_finite, row.get(name, ()))) for name in ("reference_ms", "handover_us"))
    row = {"units": (), "profile": None, "where_note": "", **row}  # of files written before there were these
    if not all(samples) or not samples or not reference or row["scenario"] not in SCENARIOS:
        raise ValueError("samples, reference_ms or scenario")
    times = np.concatenate([*samples, reference, hands])
    if not (times > 0).all():
        raise ValueError("samples or reference_ms: no positive numbers")
    taken: dict[str, Any] = {
        name: row[name] for name in Row.__dataclass_fields__ if name not in (*_READ_BY_THEMSELVES, "units", "profile")
    }
    for kinds, names in _KINDS:
        for name in names:
            if not isinstance(row[name], kinds) or isinstance(row[name], bool):
                raise ValueError(name)
    if not all(isinstance(row["details"].get(name), (int, float, type(None))) for name in ("fps", "faces")):
        raise ValueError("details")
    times_of_start = (row[name] for name in Start.__dataclass_fields__)
    start = Start(*(None if value is None else _finite(value) for value in times_of_start))  # type: ignore[arg-type]
    if start.load_ms is None or start.first_ms is None:
        raise ValueError("load_ms or first_ms")
    memory = Memory(*(_finite(row[name]) for name in Memory.__dataclass_fields__))
    statistics = Latency(*(_finite(row["latency_ms"][name]) for name in Latency.__dataclass_fields__))
    taken |= {"units": _units(row["units"]), "profile": _profile(row["profile"])}
    taken |= {"latency_ms": statistics, "start": start, "memory": memory, "samples": samples}
    return Row(configuration=_configuration(row), reference_ms=reference, handover_us=hands, **taken)


def _units(value: Any) -> tuple[Unit, ...]:
    """Units as JSON has them."""
    return tuple(
        Unit(
            str(entry["unit"]),
            int(entry["operators"]),
            _finite(entry["operators_share"]),
            None if entry["macs_share"] is None else _finite(entry["macs_share"]),
            {str(name): int(count) for name, count in entry["kernels"].items()},
        )
        for entry in value
    )


def _profile(value: Any) -> Profile | None:
    if value is None:
        return None
    costs = tuple(
        OperatorCost(
            str(entry["name"]), str(entry["kind"]), str(entry["unit"]), _finite(entry["ms"]), _finite(entry["share"])
        )
        for entry in value["operators"]
    )
    return Profile(_finite(value["call_ms"]), _finite(value["covered"]), _finite(value["between_ms"]), costs)


def units_and_profile(value: Mapping[str, Any]) -> tuple[tuple[Unit, ...], Profile | None]:
    """The members ``units`` and ``profile`` of JSON. Raises KeyError, TypeError, ValueError or AttributeError."""
    return _units(value["units"]), _profile(value["profile"])
