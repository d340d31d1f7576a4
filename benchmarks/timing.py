"""Timing on noisy machines: things are measured in turns, in one process, and compared by ratios of medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray


def interleaved(
    calls: Mapping[str, Callable[[int], object]], rounds: int, warmup: int = 10, pause: float = 0.0
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds (rounds,) of each call; every round calls each once, with the round's number, in rotating order.

    ``pause``: seconds of sleep before each call. Engines' threads spin for a while after their work, and with two cores
    the next engine in turn would pay for that.
    """
    names = list(calls)
    samples = {name: np.empty(rounds) for name in names}
    for i in range(warmup):
        for name in names:
            calls[name](i)
    for i in range(rounds):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            if pause:
                time.sleep(pause)
            began = time.perf_counter()
            calls[name](i)
            samples[name][i] = (time.perf_counter() - began) * 1e3
    return samples


def medians(samples: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Median milliseconds of each."""
    return {name: float(np.median(values)) for name, values in samples.items()}
