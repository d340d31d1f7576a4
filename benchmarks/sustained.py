"""Half an hour later: does the box still run at the speed that a short benchmark saw?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from fer_edge.errors import FerEdgeError

from .results import Configuration
from .sensors import frequencies, temperatures
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
    """A second of work: ``at`` seconds after the start, latency in ms, mean MHz of the processors, the hottest sensor."""

    at: float
    p50_ms: float
    p90_ms: float
    mhz: float | None
    celsius: float | None


@dataclass(frozen=True)
class Ranked:
    """Median ms of a configuration before and after the work; ``after_ms`` is None where it failed then: ``problem``."""

    configuration: str
    before_ms: float
    after_ms: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Sustained:
    """``points`` of the one configuration that worked all the time; ``throttled_after_s``: when its latency rose for good,
    None: it did not; ``slowdown``: the median of the last points over that of the first; ``ranking``: all configurations;
    ``stopped``: why the work ended early, None: it did not."""

    configuration: str
    seconds: float
    points: tuple[Point, ...]
    throttled_after_s: float | None
    slowdown: float
    ranking: tuple[Ranked, ...]
    stopped: str | None = None


def sustained(
    configurations: Sequence[Configuration],
    seconds: float,
    on_progress: Callable[[float], None] = lambda done: None,
    root: Path = Path("/"),
) -> Sustained:
    """Rank the configurations, let the fastest work for ``seconds``, rank them again while the box is hot.

    Raises FerEdgeError when one cannot be opened at the start."""
    before = [_ranking(c) for c in configurations]
    fastest = configurations[min(range(len(before)), key=before.__getitem__)]
    points, stopped = _series(fastest, seconds, on_progress, root)
    ranking = tuple(_again(c, b) for c, b in zip(configurations, before, strict=True))
    slowdown = median(p.p50_ms for p in points[-FIRST:]) / _cool(points)
    return Sustained(fastest.name, seconds, tuple(points), throttled_after(points), slowdown, ranking, stopped)


def throttled_after(points: Sequence[Point]) -> float | None:
    """Seconds until the latency rose above SLOWER times that of the start and stayed there; None when it did not."""
    start = _cool(points)
    for i in range(len(points) - STAYS + 1):
        if all(p.p50_ms > SLOWER * start for p in points[i : i + STAYS]):
            rest = [p.p50_ms for p in points[i:]]
            if median(rest) > SLOWER * start:
                return points[i].at
    return None


def _cool(points: Sequence[Point]) -> float:
    """Median ms at the start; of a short run, of its first quarter."""
    return median(p.p50_ms for p in points[: max(1, min(FIRST, len(points) // 4))])


def _ranking(configuration: Configuration) -> float:
    with closing(Served(configuration)) as served:
        served.block(5)
        count = max(10, round(RANKING_SECONDS * 1e3 / median(served.block(5))))
        return median(served.block(count))


def _again(configuration: Configuration, before: float) -> Ranked:
    """When hot. What fails now does not take the series with it, which may have taken hours."""
    try:
        return Ranked(configuration.name, before, _ranking(configuration))
    except FerEdgeError as error:
        return Ranked(configuration.name, before, None, str(error))


def _series(
    configuration: Configuration, seconds: float, on_progress: Callable[[float], None], root: Path
) -> tuple[list[Point], str | None]:
    """Points, and why they end early: an engine that fails after an hour must not lose the hour. Raises FerEdgeError when it
    fails before the first."""
    points: list[Point] = []
    with closing(Served(configuration)) as served:
        typical = median(served.block(10))
        began = time.monotonic()
        while (at := time.monotonic() - began) < seconds or not points:
            try:
                block = sorted(served.block(max(3, round(POINT_SECONDS * 1e3 / typical))))
            except FerEdgeError as error:
                if not points:
                    raise
                return points, f"after {at:.0f} s: {error}"
            mhz, celsius = frequencies(root), temperatures(root).values()
            hottest = max(celsius) if celsius else None
            points.append(Point(at, median(block), block[int(0.9 * (len(block) - 1))], fmean(mhz) if mhz else None, hottest))
            on_progress(min(1.0, at / seconds))
    return points, None
