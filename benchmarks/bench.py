"""``fer-edge bench``: every configuration in fresh processes of its own, in turns, and what they found put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fer_edge import runtime as rt
from fer_edge.bundle import Bundle, open_bundle
from fer_edge.classifier import artefact_names, choose_artefact
from fer_edge.engines import PRECISIONS, RUNTIMES, installed, installed_engine
from fer_edge.errors import BundleError, FerEdgeError, UsageError

from .environment import environment
from .macs import count_macs
from .measure import Job, Part, run_job
from .placement import PROFILE_CALLS, Where, look
from .results import SCENARIOS, Configuration, Failure, Latency, Memory, Results, Row, Scenario, Start, latency
from .traffic import Load, Traffic
from .worker import isolated_peak, isolated_placement, run_isolated

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. Empty ``runtimes`` and ``precisions``: all that the bundle has and this machine can run; empty
    ``threads``: fer-edge's default; ``devices``: None stands for the engine's CPU. ``rounds``: fresh processes of each
    configuration; the first one loads cold. ``in_process``: all in this process, for debugging: loads are then not cold
    and memory is not a model's own. ``profile``: also ask the engines what each operator takes, in processes
    of their own, after everything was timed."""

    bundles: tuple[Path, ...]
    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    devices: tuple[str | None, ...] = (None,)
    threads: tuple[int, ...] = ()
    execution_precision: str | None = None
    scenarios: tuple[Scenario, ...] = ("single-stream", "offline")
    load: Load = field(default_factory=lambda: Load(1.0, 5.0))
    rounds: int = 3
    photo: str | None = None
    in_process: bool = False
    profile: bool = False


def bench(plan: Plan, on_progress: Progress = lambda done, text: None) -> Results:
    """Measure everything that the plan names. A configuration that fails is reported, with what was measured before, and the
    rest go on; interrupted, it gives what it has.

    Raises BundleError for what is no bundle, or when nothing in it fits the plan."""
    opened = {str(path): open_bundle(path) for path in plan.bundles}
    wanted, nothing = wanted_of(opened, plan)
    surroundings = environment().as_json()
    parts: dict[Configuration, list[Part]] = {c: [] for c in wanted}
    failures: dict[Configuration, Failure] = {}
    total, interrupted = plan.rounds * len(wanted), False
    for i, (turn, configuration) in enumerate(_turns(plan.rounds, wanted)):
        if configuration in failures:
            continue
        job = _job(plan, configuration, turn)

        def say(text: str, done: float = i / total, name: str = configuration.name) -> None:
            on_progress(done, f"{name}: {text}")

        try:
            parts[configuration].append(run_job(job, say) if plan.in_process else run_isolated(job, say))
        except FerEdgeError as error:
            failures[configuration] = Failure(configuration, str(error))
        except KeyboardInterrupt:
            if not any(parts.values()):  # nothing to keep, and last week's file must not become an empty one
                raise
            interrupted = True
            break
    macs = {name: count_macs(bundle) for name, bundle in opened.items()}
    measured = [c for c in wanted if parts[c]]
    peaks: Mapping[Configuration, float | None] = dict.fromkeys(measured)
    if not interrupted:
        on_progress(1.0, "peak of this machine")
        try:
            peaks = peaks_of(measured)
        except KeyboardInterrupt:  # what was measured stands without its share of the peak
            interrupted = True
    where: dict[Configuration, Where] = {}
    if not interrupted:
        on_progress(1.0, "where it ran")
        try:
            where = {c: _where(c, plan) for c in measured}
        except KeyboardInterrupt:
            interrupted = True
    rows = [row for c in measured for row in _rows(c, parts[c], macs[c.bundle], peaks[c], where.get(c, Where((), None, "")))]
    extras = {"run": _asked(plan), **({"skipped": nothing} if nothing else {}), **marked(interrupted)}
    extras |= {"in_process": True} if plan.in_process else {}
    return Results(surroundings, tuple(rows), tuple(failures.values()), extras)


def _where(configuration: Configuration, plan: Plan) -> Where:
    """Where a configuration runs; an engine that fails when it is asked has only that to say."""
    calls = PROFILE_CALLS if plan.profile else 0
    try:
        return look(configuration, calls) if plan.in_process else isolated_placement(configuration, calls)
    except FerEdgeError as error:
        return Where((), None, str(error))


def peaks_of(wanted: Sequence[Configuration]) -> dict[Configuration, float | None]:
    """What the fastest engine here reaches at the precision, threads and device of each, 10^9 multiply-accumulates a second:
    an engine that is slow at plain products too would come out well beside itself."""
    reached: dict[Configuration, float | None] = {}
    found: dict[Configuration, float | None] = {}
    for configuration in wanted:
        rates = []
        for runtime in RUNTIMES if configuration.runtime in RUNTIMES else ():
            probe = replace(configuration, bundle="", runtime=runtime)
            if probe not in reached:
                reached[probe] = isolated_peak(probe)
            rates.append(reached[probe])
        found[configuration] = max((rate for rate in rates if rate is not None), default=None)
    return found


def marked(interrupted: bool) -> dict[str, Any]:
    """What a run that somebody ended says of itself."""
    return {"interrupted": True} if interrupted else {}


def _asked(plan: Plan) -> dict[str, Any]:
    """How much a run was told to do: figures of another length are other figures."""
    load = plan.load
    said = {
        "rounds": plan.rounds,
        "seconds": load.seconds,
        "mlperf": load.official,
        "latency_bound_ms": load.latency_bound_ms,
    }
    camera = {"fps": load.fps, "faces": load.faces, "clip": load.clip, "detector": load.detector}
    return {**said, **camera, "photo": plan.photo}


def wanted_of(opened: Mapping[str, Bundle], plan: Plan) -> tuple[list[Configuration], list[dict[str, str]]]:
    """The plan's configurations, and, of several bundles, those that have nothing for this machine. Raises BundleError when
    none has."""
    wanted: list[Configuration] = []
    nothing: list[dict[str, str]] = []
    for path, bundle in opened.items():
        try:
            wanted += configurations(bundle, plan)
        except BundleError as error:
            if len(opened) == 1:
                raise
            nothing.append({"bundle": path, "problem": str(error)})
    if not wanted:
        raise BundleError(f"none of {len(opened)} bundles has anything to measure here; the first: {nothing[0]['problem']}")
    return wanted, nothing


def configurations(bundle: Bundle, plan: Plan) -> list[Configuration]:
    """What of a plan there is in a bundle: runtime x precision x device x threads. Raises BundleError when nothing is."""
    threads = plan.threads or (rt.default_threads(),)
    name = str(bundle.folder)
    if "null" in plan.runtimes:
        if len(plan.runtimes) > 1 or plan.precisions:
            raise UsageError("null runs no model: measure it alone, without --precision")
        pairs = [("null", "fp32")]
    else:
        for runtime in plan.runtimes:
            installed_engine(runtime)  # what is there stays out of this process, and of its memory
        pairs = [
            (a.runtime, a.precision)
            for a in bundle.manifest.general_artefacts
            if (a.runtime in plan.runtimes if plan.runtimes else installed(a.runtime))
            and a.precision in (plan.precisions or PRECISIONS)
        ]
    found = [
        Configuration(name, *pair, device, count, plan.execution_precision)
        for pair, device, count in product(pairs, plan.devices, threads)
    ]
    if not found:
        raise BundleError(f"{bundle.folder} has nothing to measure here; it has {artefact_names(bundle)}")
    return found


def _turns(rounds: int, wanted: Sequence[Configuration]) -> Iterator[tuple[int, Configuration]]:
    """(round, configuration) in rotating order, so that none is always measured on the hottest machine."""
    for turn in range(rounds):
        shift = turn * len(wanted) // rounds
        for configuration in [*wanted[shift:], *wanted[:shift]]:
            yield turn, configuration


def _job(plan: Plan, configuration: Configuration, turn: int) -> Job:
    last = turn == plan.rounds - 1
    needed = (*plan.scenarios, "single-stream") if "server" in plan.scenarios else plan.scenarios  # it sets the bound
    ordered = tuple(name for name in SCENARIOS if name in needed)
    scenarios = ordered if last else ordered[:1]  # the first one of every process is the warm latency
    return Job(configuration, plan.load, scenarios, turn == 0 and not plan.in_process, last, plan.photo)


def _rows(
    configuration: Configuration, parts: Sequence[Part], macs: int | None, peak: float | None, where: Where
) -> list[Row]:
    """A row for every scenario; what does not depend on it stands in each."""
    full = parts[-1]
    cached = [part.load_ms for part in parts[1:]]
    start = Start(parts[0].load_ms, median(cached) if cached else None, parts[0].first_ms)
    before, peak_mb = full.memory_mb["before"], full.memory_mb["peak"]
    memory = Memory(peak_mb, full.memory_mb["resident"], before, peak_mb - before)
    rows = []
    for scenario in full.traffic:
        had = [part for part in parts if scenario in part.traffic]
        traffic = [part.traffic[scenario] for part in had]
        energy = [e for part in had if (e := part.energy_mj[scenario]) is not None]
        rows.append(
            Row(
                configuration=configuration,
                digest=full.digest,
                engine=full.engine,
                device=full.device,
                execution_precision=full.execution_precision,
                scenario=scenario,  # type: ignore[arg-type]
                latency_ms=_pooled(traffic),
                throughput_per_s=median(t.throughput_per_s for t in traffic),
                start=start,
                memory=memory,
                stages_ms=_stages(traffic[-1], full),
                artefact_mb=full.artefact_mb,
                engine_mb=full.engine_mb,
                cpu_share=median(t.cpu_share for t in traffic),
                macs=macs,
                peak_gmacs_per_s=peak,
                energy_mj=median(energy) if energy else None,
                parity=full.parity,
                samples=tuple(t.samples for t in traffic),
                reference_ms=tuple(part.reference_ms for part in had),
                handover_us=tuple(part.handover_us for part in had if part.handover_us is not None),
                details=_details(traffic),
                units=where.units,
                profile=where.profile,
                where_note=where.note,
            )
        )
    return rows


def _stages(traffic: Traffic, full: Part) -> Mapping[str, float]:
    """Medians: of a camera those of its frames, of other scenarios those of a photo."""
    own = traffic.details.get("stages_ms")
    return full.stages_ms if own is None else {stage: spread["p50"] for stage, spread in own.items()}


def _pooled(traffic: Sequence[Traffic]) -> Latency:
    if len(traffic) == 1:
        return traffic[0].latency
    return latency(np.concatenate([t.samples for t in traffic]))


def _details(traffic: Sequence[Traffic]) -> dict[str, Any]:
    """The last process's; whether LoadGen calls the run valid is said of all of them together."""
    details = dict(traffic[-1].details)
    if "loadgen_valid" in details:
        details["loadgen_valid"] = all(t.details["loadgen_valid"] for t in traffic)
    return details


def official(plan: Plan) -> Plan:
    """The plan with MLPerf's own minimum durations: one process each, ten minutes a scenario."""
    return replace(plan, rounds=1, load=replace(plan.load, official=True))


def only(plan: Plan) -> list[Configuration]:
    """What a plan of one bundle means to runs that need few configurations: those that were named, or else the one that
    ``fer_edge.load`` takes. Raises FerEdgeError."""
    if len(plan.bundles) != 1:
        raise UsageError("this run takes one bundle")
    bundle = open_bundle(plan.bundles[0])
    if not plan.runtimes:
        name, _ = choose_artefact(bundle, None, plan.precisions[0] if plan.precisions else None)
        plan = replace(plan, runtimes=(name,))
    if not plan.precisions and plan.runtimes != ("null",):
        first = [choose_artefact(bundle, name, None)[1] for name in plan.runtimes]
        plan = replace(plan, precisions=tuple(dict.fromkeys(a.precision for a in first if a)))
    return configurations(bundle, plan)
