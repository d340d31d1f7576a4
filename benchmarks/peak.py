"""What a plain chain of matrix products reaches on this machine: the probe in ``probe/`` (made by
``lab/probe.py``), run at the same precision and with the same threads as the model, in one engine after another."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fer_edge import runtime as rt
from fer_edge.engines import ENGINES, RUNTIMES
from fer_edge.errors import EngineError, MissingExtraError

from .results import Configuration

PROBE = Path(__file__).parent / "probe"
SIDE, CHANNELS, PRODUCTS = 32, 256, 8
"""Pixels of a side, channels, and products in a row of the probe."""
MACS = SIDE * SIDE * (3 * CHANNELS + PRODUCTS * CHANNELS * CHANNELS)
SECONDS = 0.5


def peak_gmacs_per_s(configuration: Configuration) -> float | None:
    """10^9 multiply-accumulates a second, by the fastest tenth of half a second's runs. None for what is none of
    our runtimes, and where the engine refuses it."""
    if configuration.runtime not in RUNTIMES:
        return None
    name = f"{configuration.runtime}-{configuration.precision}"
    files = [PROBE / f"{name}{suffix}" for suffix in ENGINES[configuration.runtime].suffixes]
    crop = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    try:
        asked = (configuration.precision, configuration.device, configuration.threads, configuration.execution_precision)
        session = rt.open_model(configuration.runtime, files, *asked, rt.signature(SIDE, SIDE, 3, 2, 2))
        try:
            times: list[float] = []
            end = time.perf_counter() + SECONDS
            while len(times) < 10 or time.perf_counter() < end:
                began = time.perf_counter()
                rt.run(session, crop)
                times.append(time.perf_counter() - began)
        finally:
            session.close()
    except (EngineError, MissingExtraError):
        return None
    return float(MACS / np.percentile(times, 10) / 1e9)
