"""Was last week's build faster? Two runs, or two bundles measured in turns, judged against the noise that they show.

An inference's times within a process are not independent, and processes differ among themselves (memory layout, the
machine's other work): so the bootstrap draws processes first, then stretches of consecutive inferences (Efron and
Tibshirani, "An Introduction to the Bootstrap", chapters 8 and 14; block bootstrap: Kunsch 1989), and what it gives is
called a difference only beyond the noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import UsageError

from .environment import WORDS, in_words
from .results import Configuration, Results, Row, named, several_bundles, units_text

DRAWS = 2000
BLOCKS = 20
"""Stretches that a process's samples are cut into."""
LONELY_FLOOR = 0.10
"""Where one process is all that there is, nobody knows how far processes lie apart: below this nothing is called."""
SMALLEST_FLOOR = 0.02
"""Differences below 2% are never called faster or slower: the same binary differs by as much between two processes."""

SHOWN = 0.5
"""A difference of two runs must show in their best moments too, by this share of it. What others do to a machine takes time
away and never gives any (Chen and Revels, "Robust benchmarking in noisy environments", 2016), and comes and goes within
seconds; more work is there at every moment."""
BEST = 10
"""Percentile of a process's samples that stands for its best moments."""

EXPLAINING = ("cpu", "usable_cores", "cpu_limit", "governors", "power_mode", "clocks_held", "board", "engines", "fer_edge")
"""Fields of the environment that explain a difference."""

Verdict = Literal["faster", "slower", "within noise"]
Answer = Literal["regression", "inconclusive", "no regression"]


@dataclass(frozen=True)
class Comparison:
    """``ratio``: B over A, so above 1 is slower; ``interval``: 95%; ``floor``: the relative difference that noise alone
    makes here; ``a_ms`` and ``b_ms``: what the ratio is of, the medians of the processes' medians, so that no process
    counts more because it was faster; ``a_p50_ms`` and ``b_p50_ms``: those of all samples, as ``bench`` shows them;
    ``best_ratio``: the ratio of the best moments."""

    configuration: Mapping[str, Any]
    scenario: str
    a_ms: float
    b_ms: float
    a_p50_ms: float
    b_p50_ms: float
    ratio: float
    interval: tuple[float, float]
    floor: float
    verdict: Verdict
    best_ratio: float

    @property
    def noise(self) -> float:
        """The largest slowdown that could hide here, as a share: of the floor, how far the interval reaches above the ratio,
        and the difference itself where that was called noise."""
        reach = np.log(self.interval[1] / self.ratio)
        hidden = abs(np.log(self.ratio)) if self.verdict == "within noise" else 0.0
        return float(np.expm1(max(self.floor, reach, hidden)))

    def answer(self, tolerance: float) -> Answer:
        """Is B slower by more than ``tolerance``? Nobody knows where the noise is larger than that, unless B is faster all
        the same."""
        if self.verdict == "slower" and self.ratio > 1 + tolerance:
            return "regression"
        return "inconclusive" if self.verdict != "faster" and self.noise > tolerance else "no regression"


def overall(found: Sequence[Comparison], tolerance: float) -> Answer:
    """Of several comparisons: one regression is one, and one that nobody knows of leaves the whole open."""
    answers = {c.answer(tolerance) for c in found}
    if "regression" in answers:
        return "regression"
    return "inconclusive" if "inconclusive" in answers else "no regression"


def compare(a: Results, b: Results, again: Results | None = None) -> list[Comparison]:
    """Pair the rows of two runs. ``again``: a second run of A, whose difference to A is noise by definition.

    Raises UsageError when they have no configuration and scenario in common, unless it is B that failed in those of A."""
    several = several_bundles(a) or several_bundles(b)
    ours, theirs = _keyed(a, several), _keyed(b, several)
    noise = _keyed(again, several) if again else {}
    shared = [key for key in ours if key in theirs]
    if not shared and not lost(a, b, partial=True):
        raise UsageError("the two runs have no runtime, precision, device, thread count, scenario and load in common")
    return [_pair(ours[key], theirs[key], noise.get(key), _apart(ours[key], a, theirs[key], b)) for key in shared]


def lost(a: Results, b: Results, partial: bool = False) -> list[str]:
    """What A measured and B did not, with the reason where B has one: a build that cannot run something is no faster one.
    ``partial``: only what B tried and failed in."""
    several = several_bundles(a) or several_bundles(b)
    why = {_which(f.configuration, several): f.problem for f in b.failures}
    there, theirs = {_which(row.configuration, several) for row in b.rows}, _keyed(b, several)
    missing: dict[str, None] = {}
    for key, row in _keyed(a, several).items():
        which, name = _which(row.configuration, several), named(row.configuration, a)
        if which in why:
            missing[f"{name}: {why[which]}"] = None
        elif which not in there and not partial:
            missing[f"{name}: not measured in B"] = None
        elif key not in theirs and not partial:
            missing[f"{name}, {_traffic(row)}: not measured in B"] = None
    return list(missing)


def _traffic(row: Row) -> str:
    """A row's scenario, and what a camera was asked for."""
    fps, faces, clip = (row.details.get(name) for name in ("fps", "faces", "clip"))
    shown = f"{faces} faces" if faces is not None else f"{clip}"
    return row.scenario if fps is None else f"{row.scenario} of {fps:g} frames a second and {shown}"


def unchecked(a: Results, b: Results) -> list[str]:
    """Configurations whose answers A checked and B did not: a fast row that nobody checked is no improvement."""
    several = several_bundles(a) or several_bundles(b)
    known = {_which(row.configuration, several) for row in a.rows if row.parity.get("status")}
    blind = [row.configuration for row in b.rows if not row.parity.get("status")]
    found = dict.fromkeys(named(c, b) for c in blind if _which(c, several) in known)
    return [f"{name}: its answers were not checked" for name in found]


def differences(a: Results, b: Results) -> list[str]:
    """What else differs between two runs, and what ``compare`` leaves out: read before the verdicts are believed."""
    notes = []
    for name in EXPLAINING:
        then, now = (run.environment.get(name) for run in (a, b))
        if then != now and name in a.environment and name in b.environment:
            notes.append(f"{WORDS[name]}: {in_words(name, then) or 'none'} in A, {in_words(name, now) or 'none'} in B")
    several = several_bundles(a) or several_bundles(b)
    ours, theirs = _keyed(a, several), _keyed(b, several)
    computed = {
        f"{row.configuration.name} computed in {row.execution_precision} in A, {theirs[key].execution_precision} in B"
        for key, row in ours.items()
        if key in theirs and theirs[key].execution_precision != row.execution_precision
    }
    notes += sorted(computed)
    notes += sorted(
        {
            f"{row.configuration.name} ran {units_text(row.units)} in A, {units_text(theirs[key].units)} in B"
            for key, row in ours.items()
            if key in theirs and row.units and theirs[key].units and _split(row) != _split(theirs[key])
        }
    )
    ended = [side for side, run in (("A", a), ("B", b)) if run.extras.get("interrupted")]
    notes += [f"{side} was interrupted: it rests on less than was asked for" for side in ended]
    asked = [{k: v for k, v in run.extras.get("run", {}).items() if k in ("seconds", "mlperf")} for run in (a, b)]
    if asked[0] and asked[1] and asked[0] != asked[1]:
        notes.append(f"length of the runs: {in_words('run', asked[0])} in A, {in_words('run', asked[1])} in B")
    if any(row.scenario == "server" for row in (*a.rows, *b.rows)):
        notes.append("server is not compared: its latencies are those at each run's own highest rate")
    return notes


def _split(row: Row) -> dict[str, int]:
    """Operators by compute unit."""
    return {unit.unit: unit.operators for unit in row.units}


def _which(c: Configuration, several: bool) -> tuple[Any, ...]:
    """A configuration but for the bundle, which is what two builds differ in; of several bundles, with its name. What was
    asked for counts: an engine's words for what it did change with its versions."""
    bundle = Path(c.bundle).name if several else None
    return (bundle, c.runtime, c.precision, c.device, c.threads, c.execution_precision)


def _keyed(results: Results, several: bool) -> dict[tuple[Any, ...], Row]:
    """Rows by configuration, scenario and a camera's load. The server scenario is left out: its latencies are those at each
    run's own highest rate."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in results.rows:
        if row.scenario != "server":
            load = tuple(row.details.get(name) for name in ("fps", "faces", "clip", "detector"))
            rows.setdefault((*_which(row.configuration, several), row.scenario, load), row)
    return rows


def _apart(a: Row, ours: Results, b: Row, theirs: Results) -> float | None:
    """How far fresh processes of this configuration lie apart in its other scenarios, in either run, at most; None when all
    had but one."""
    found = [
        _between(row)
        for one, run in ((a, ours), (b, theirs))
        for row in run.rows
        if row.configuration == one.configuration and row.scenario != "server" and len(row.samples) > 1
    ]
    return max(found, default=None)


def _pair(a: Row, b: Row, again: Row | None, between: float | None) -> Comparison:
    apart = max(_between(a), _between(b))
    if min(len(a.samples), len(b.samples)) == 1:
        apart = max(apart, LONELY_FLOOR if between is None else between)
    floor = max(SMALLEST_FLOOR, apart + _drift(a, b))  # added: the machine drifts, and its processes lie apart all the same
    if again is not None:
        floor = max(floor, abs(np.log(median(_medians(again)) / median(_medians(a)))), _between(again))
    ratio, interval = ratio_of_medians(a.samples, b.samples)
    named = {**asdict(a.configuration), "device": a.device}
    best = _best(b) / _best(a)
    judged = verdict(ratio, interval, float(floor))
    if judged != "within noise" and np.log(best) / np.log(ratio) < SHOWN:
        judged = "within noise"
    return Comparison(
        configuration=named,
        scenario=a.scenario,
        a_ms=median(_medians(a)),
        b_ms=median(_medians(b)),
        a_p50_ms=a.latency_ms.p50,
        b_p50_ms=b.latency_ms.p50,
        ratio=ratio,
        interval=interval,
        floor=float(floor),
        verdict=judged,
        best_ratio=best,
    )


def verdict(ratio: float, interval: tuple[float, float], floor: float) -> Verdict:
    """A difference is one when its interval leaves out 1 and it is larger than the floor."""
    if interval[0] > 1 and np.log(ratio) > floor:
        return "slower"
    if interval[1] < 1 and np.log(ratio) < -floor:
        return "faster"
    return "within noise"


def _medians(row: Row) -> list[float]:
    return [median(part) for part in row.samples]


def _best(row: Row) -> float:
    """ms in the best moments of the best process."""
    return min(float(np.percentile(part, BEST)) for part in row.samples)


def _between(row: Row) -> float:
    """How far processes of one build lie apart: the range of the logarithms of their medians."""
    middles = np.log(_medians(row))
    return float(middles.max() - middles.min())


def _drift(a: Row, b: Row) -> float:
    """How much the machine's own speed differs between two runs, by the fixed pieces of work that each process timed; what
    handing work to another processor costs counts for several threads."""
    pairs = [(a.reference_ms, b.reference_ms)]
    if max(a.configuration.threads, b.configuration.threads) > 1 and a.handover_us and b.handover_us:
        pairs.append((a.handover_us, b.handover_us))
    return max(float(abs(np.log(median(theirs) / median(ours)))) for ours, theirs in pairs)


def ratio_of_medians(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """(median of B / median of A, its 95% bootstrap interval); samples by process. The median of a run is the median of its
    processes' medians, so that no process counts more because it was faster."""
    generator = np.random.default_rng(seed)
    drawn = [_drawn(parts, generator) for parts in (a, b)]
    low, high = np.percentile(drawn[1] / drawn[0], (2.5, 97.5))
    ratio = median(median(part) for part in b) / median(median(part) for part in a)
    return ratio, (float(low), float(high))


def _drawn(parts: Sequence[Sequence[float]], generator: np.random.Generator) -> NDArray[np.float64]:
    """DRAWS bootstrap medians of a run."""
    middles = [np.array([np.median(block) for block in np.array_split(part, min(BLOCKS, len(part)))]) for part in parts]
    result = np.empty((DRAWS, len(parts)))
    chosen = generator.integers(len(parts), size=(DRAWS, len(parts)))
    for k, values in enumerate(middles):
        taken = chosen == k
        picks = generator.integers(len(values), size=(int(taken.sum()), len(values)))
        result[taken] = np.median(values[picks], axis=-1)
    middle: NDArray[np.float64] = np.median(result, axis=1)
    return middle
