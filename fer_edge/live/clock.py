"""How long the stages of a frame take: laps of one frame, and their spread over any number of frames."""

from __future__ import annotations

import math
import time


class Laps:
    """Milliseconds by stage: each call gives the time since the last one to a stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + (now - self._since) * 1e3
        self._since = now


_STEP = math.log(1.02)
_LEAST = 1e-4


class Spread:
    """Percentiles of any number of values (milliseconds, from 0.1 us) in little memory: they are counted in steps of 2%, so
    a percentile is right within 1%. For watches that last for months."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._count = 0

    def add(self, value: float) -> None:
        """One more value."""
        step = int(math.log(max(value, _LEAST) / _LEAST) / _STEP)
        self._counts[step] = self._counts.get(step, 0) + 1
        self._count += 1

    def percentile(self, share: float) -> float:
        """The value below which ``share`` percent of the values lie (nearest rank). Raises ValueError without a value."""
        rank = max(1, math.ceil(self._count * share / 100))
        for step in sorted(self._counts):
            rank -= self._counts[step]
            if rank <= 0:
                return _LEAST * math.exp((step + 0.5) * _STEP)
        raise ValueError("there is no value")

    def as_dict(self) -> dict[str, float]:
        """{"p50", "p99"}, rounded to microseconds; empty without a value."""
        return {f"p{share}": round(self.percentile(share), 3) for share in (50, 99)} if self._count else {}
