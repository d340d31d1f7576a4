"""Was last week's build faster? Two runs, or two bundles measured in turns, judged against the noise that they show.

An inference's times within a process are not independent, and processes differ among themselves (memory layout, the
machine's other work): so the bootstrap draws processes first, then stretches of consecutive inferences (Efron and
Tibshirani, "An Introduction to the Bootstrap", chapters 8 and 14; block bootstrap: Kunsch 1989), and what it gives is
called a difference only beyond the noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import UsageError

from .results import Results, Row

DRAWS = 2000
BLOCKS = 20
"""Stretches that a process's samples are cut into."""
LONELY_FLOOR = 0.10
"""Where one process is all that there is, nobody knows how far processes lie apart: below this nothing is called."""
SMALLEST_FLOOR = 0.02
"""Differences below 2% are never called faster or slower: the same binary differs by as much between two processes."""

Verdict = Literal["faster", "slower", "within noise"]


@dataclass(frozen=True)
class Comparison:
    """``ratio``: median of B over median of A, so above 1 is slower; ``interval``: 95%; ``floor``: the relative difference
    that noise alone makes here; ``a_ms`` and ``b_ms``: the medians."""

    configuration: Mapping[str, Any]
    scenario: str
    a_ms: float
    b_ms: float
    ratio: float
    interval: tuple[float, float]
    floor: float
    verdict: Verdict

    def regressed(self, tolerance: float) -> bool:
        """Slower, and by more than ``tolerance``."""
        return self.verdict == "slower" and self.ratio > 1 + tolerance


def compare(a: Results, b: Results, again: Results | None = None) -> list[Comparison]:
    """Pair the rows of two runs. ``again``: a second run of A, whose difference to A is noise by definition.

    Raises UsageError when they have no configuration and scenario in common."""
    several = any(len({row.configuration.bundle for row in run.rows}) > 1 for run in (a, b))
    ours, theirs = _keyed(a, several), _keyed(b, several)
    noise = _keyed(again, several) if again else {}
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UsageError("the two runs have no runtime, precision, device, thread count, scenario and load in common")
    between = max(_apart(a), _apart(b), key=lambda found: -1.0 if found is None else found)
    return [_pair(ours[key], theirs[key], noise.get(key), between) for key in shared]


def lost(a: Results, b: Results) -> list[str]:
    """What A measured and B could not: a build that fails is no faster one."""
    measured = {(c.runtime, c.precision, c.device, c.threads) for c in (row.configuration for row in a.rows)}
    failed = ((f.configuration, f.problem) for f in b.failures)
    return [f"{c.name}: {problem}" for c, problem in failed if (c.runtime, c.precision, c.device, c.threads) in measured]


def _keyed(results: Results, several: bool) -> dict[tuple[Any, ...], Row]:
    """Rows by everything but the bundle, which is what two builds differ in; of several bundles, by its name too. A camera's
    load belongs to the key. The server scenario is left out: its latencies are those at each run's own highest rate."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in results.rows:
        if row.scenario == "server":
            continue
        c = row.configuration
        load = tuple(row.details.get(name) for name in ("fps", "faces"))
        which = (row.bundle_name if several else None, c.runtime, c.precision, row.device, c.threads)
        rows.setdefault((*which, row.execution_precision, row.scenario, load), row)
    return rows


def _apart(results: Results) -> float | None:
    """How far fresh processes of one configuration lie apart in this run, at most; None when each had but one."""
    return max((_between(row) for row in results.rows if len(row.samples) > 1), default=None)


def _pair(a: Row, b: Row, again: Row | None, between: float | None) -> Comparison:
    floor = max(SMALLEST_FLOOR, _between(a), _between(b), _drift(a, b))
    if min(len(a.samples), len(b.samples)) == 1:
        floor = max(floor, LONELY_FLOOR if between is None else between)
    if again is not None:
        floor = max(floor, abs(np.log(median(_medians(again)) / median(_medians(a)))), _between(again))
    ratio, interval = ratio_of_medians(a.samples, b.samples)
    named = {**asdict(a.configuration), "device": a.device}
    middles = [median(_medians(row)) for row in (a, b)]
    judged = verdict(ratio, interval, float(floor))
    return Comparison(named, a.scenario, middles[0], middles[1], ratio, interval, float(floor), judged)


def verdict(ratio: float, interval: tuple[float, float], floor: float) -> Verdict:
    """A difference is one when its interval leaves out 1 and it is larger than the floor."""
    if interval[0] > 1 and np.log(ratio) > floor:
        return "slower"
    if interval[1] < 1 and np.log(ratio) < -floor:
        return "faster"
    return "within noise"


def _medians(row: Row) -> list[float]:
    return [median(part) for part in row.samples]


def _between(row: Row) -> float:
    """How far processes of one build lie apart: the range of the logarithms of their medians."""
    middles = np.log(_medians(row))
    return float(middles.max() - middles.min())


def _drift(a: Row, b: Row) -> float:
    """How much the machine's own speed differs between two runs, by the fixed piece of work that each process timed."""
    return float(abs(np.log(median(b.reference_ms) / median(a.reference_ms))))


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
        picks = values[generator.integers(len(values), size=(*chosen.shape, len(values)))]
        result = np.where(chosen == k, np.median(picks, axis=-1), result)
    middle: NDArray[np.float64] = np.median(result, axis=1)
    return middle
