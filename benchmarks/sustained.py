"""Half an hour later: does the box still run at the speed that a short benchmark saw?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from fer_edge.errors import FerEdgeError
from fer_edge.sensors import temperatures

from .results import Configuration
from .sensors import frequencies
from .worker import Served

POINT_SECONDS = 1.0
"""Of work behind one point of the time series."""
RANKING_SECONDS = 2.0
FIRST = 10
"""Points that say how fast a cool box is."""
SLOWER = 1.10
"""A box throttles when the latency stays this much above that of the first points ..."""
STAYS = 3
"""... for this many points."""


@dataclass(frozen=True)
class Point:
    """A second of work: ``at`` seconds after the start, latency in ms, mean MHz of the processors in the middle of it, the
    hottest sensor, resident memory of the working process."""

    at: float
    p50_ms: float
    p90_ms: float
    mhz: float | None
    celsius: float | None
    resident_mb: float | None = None


@dataclass(frozen=True)
class Ranked:
    """Median ms of a configuration before and after the work; ``after_ms`` is None where it failed then: ``problem``.
    ``digest``: of its bundle; ``answers``: parity on the golden set, "ok" or "miss" with what is off in ``wrong``."""

    configuration: str
    before_ms: float
    after_ms: float | None
    problem: str | None = None
    bundle: str = ""
    digest: str | None = None
    answers: str | None = None
    wrong: str | None = None


@dataclass(frozen=True)
class Sustained:
    """``points`` of the one configuration (of ``bundle``) that worked all the time; ``throttled_after_s``: when its latency
    rose for good, None: it did not; ``slowdown``: the median of the last points over that of the first; ``ranking``: all
    configurations; ``stopped``: why the work ended early, None: it did not; ``interrupted``: somebody wanted that."""

    configuration: str
    seconds: float
    points: tuple[Point, ...]
    throttled_after_s: float | None
    slowdown: float
    ranking: tuple[Ranked, ...]
    stopped: str | None = None
    bundle: str = ""
    interrupted: bool = False


def sustained(
    configurations: Sequence[Configuration],
    seconds: float,
    on_progress: Callable[[float], None] = lambda done: None,
    root: Path = Path("/"),
) -> Sustained:
    """Rank the configurations, let the fastest that answers rightly work for ``seconds``, rank them again while the box is
    hot. Interrupted once it is at work, it gives what it has.

    Raises FerEdgeError when one cannot be opened at the start."""
    before = [_ranking(c) for c in configurations]
    wrong = [r.answers == "miss" for r in before]
    chosen = min(range(len(before)), key=lambda i: (wrong[i], before[i].before_ms))
    fastest = configurations[chosen]
    points, stopped, interrupted = _series(fastest, seconds, on_progress, root)
    ranking = list(before)
    try:
        for i, configuration in enumerate(() if interrupted else configurations):
            ranking[i] = _again(configuration, before[i])
    except KeyboardInterrupt:  # the series stands, which may have taken hours
        interrupted = True
    slowdown = median(p.p50_ms for p in points[-_ends(points) :]) / _cool(points)
    when = throttled_after(points)
    series, ranked = tuple(points), tuple(ranking)
    return Sustained(fastest.name, seconds, series, when, slowdown, ranked, stopped, fastest.bundle, interrupted)


def throttled_after(points: Sequence[Point]) -> float | None:
    """Seconds until the latency rose above SLOWER times that of the start and stayed there; None when it did not.

    The moment that divides the points best: fewest slow ones before it, fewest fast ones after it."""
    limit = SLOWER * _cool(points)
    slow = [p.p50_ms > limit for p in points]
    misplaced = slow.count(False)
    best, at = misplaced, 0
    for i, is_slow in enumerate(slow, 1):
        misplaced += 1 if is_slow else -1
        if misplaced < best:
            best, at = misplaced, i
    rest = points[at:]
    lasting = len(rest) >= STAYS and median(p.p50_ms for p in rest) > limit
    return rest[0].at if lasting else None


def _cool(points: Sequence[Point]) -> float:
    """Median ms at the start."""
    return median(p.p50_ms for p in points[: _ends(points)])


def _ends(points: Sequence[Point]) -> int:
    """How many points are the start, or the end, of a series: of a short one, a quarter."""
    return max(1, min(FIRST, len(points) // 4))


def _ranking(configuration: Configuration) -> Ranked:
    with closing(Served(configuration)) as served:
        served.block(5)
        count = max(10, round(RANKING_SECONDS * 1e3 / median(served.block(5))))
        said, ms = served.ready, median(served.block(count))
        answers, wrong = (said.get(name) or None for name in ("answers", "problem"))
        return Ranked(configuration.name, ms, None, None, configuration.bundle, said.get("digest"), answers, wrong)


def _again(configuration: Configuration, before: Ranked) -> Ranked:
    """When hot. What fails now does not take the series with it, which may have taken hours."""
    try:
        return replace(before, after_ms=_ranking(configuration).before_ms)
    except FerEdgeError as error:
        return replace(before, problem=str(error))


def _series(
    configuration: Configuration, seconds: float, on_progress: Callable[[float], None], root: Path
) -> tuple[list[Point], str | None, bool]:
    """Points, why they end early, and whether somebody wanted that: an engine that fails after an hour must not lose the
    hour. Raises FerEdgeError when it fails before the first."""
    points: list[Point] = []
    clocks: list[tuple[float, ...]] = []

    def look() -> None:
        time.sleep(POINT_SECONDS / 2)
        clocks.append(frequencies(root))

    with closing(Served(configuration)) as served:
        typical = median(served.block(10))
        began = time.monotonic()
        while (at := time.monotonic() - began) < seconds or not points:
            try:
                block = sorted(served.block(max(3, round(POINT_SECONDS * 1e3 / typical)), look))
                resident = served.resident_mb()
            except (FerEdgeError, KeyboardInterrupt) as error:
                if not points:
                    raise
                interrupted = isinstance(error, KeyboardInterrupt)
                return points, f"after {at:.0f} s: {'interrupted' if interrupted else error}", interrupted
            mhz, celsius = clocks[-1], temperatures(root).values()
            hottest = max(celsius) if celsius else None
            p90 = block[int(0.9 * (len(block) - 1))]
            points.append(Point(at, median(block), p90, fmean(mhz) if mhz else None, hottest, resident))
            on_progress(min(1.0, at / seconds))
    return points, None, False
