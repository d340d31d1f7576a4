"""Two bundles or two builds in turns, in one run: what the machine does meanwhile, it does to both.

Every round starts three fresh processes: A, A once more, and B. They work in turns, a block of inferences each. B against
the mean of both A is the answer; A against A is the noise of processes, measured in the very same minutes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import exp, sqrt
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from .compare import DRAWS, LONELY_FLOOR, SMALLEST_FLOOR, Verdict, verdict
from .results import Configuration
from .worker import Served

ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))
"""In which A, A once more and B are started, round after round; of any two rounds, one is the other backwards."""
BLOCK_MS = 25.0
SKIPPED = 0.2
"""Share of a block that only warms the caches which the others have emptied."""


@dataclass(frozen=True)
class Interleaved:
    """``ratio``: B over A, above 1 is slower; ``interval``: 95%, drawn over rounds and blocks; ``floor``: two standard
    errors of what fresh processes of one build differ by; ``rounds`` and ``noise``: B / A and A / A of each round; ``a`` and
    ``b``: engine, device and fer-edge's version, as the processes told them; ``interrupted``: after fewer rounds than
    asked for."""

    a: dict[str, str]
    b: dict[str, str]
    a_ms: float
    b_ms: float
    ratio: float
    interval: tuple[float, float]
    floor: float
    verdict: Verdict
    rounds: tuple[float, ...]
    noise: tuple[float, ...]
    interrupted: bool = False


def interleave(
    a: Configuration,
    b: Configuration,
    rounds: int = 6,
    turns: int = 40,
    python: str | None = None,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Interleaved:
    """Measure A and B in turns. ``python``: the interpreter of another environment that B runs in, with its own build of
    fer-edge. Interrupted after a round, it judges those that it has. Raises FerEdgeError."""
    found: list[NDArray[np.float64]] = []
    said: list[dict[str, str]] = []
    interrupted = False
    for k in range(rounds):

        def show(done: float, k: int = k) -> None:
            on_progress((k + done) / rounds)

        try:
            blocks, said = _round(a, b, k, turns, python, show)
        except KeyboardInterrupt:
            if not found:
                raise
            interrupted = True
            break
        found.append(blocks)
    return replace(judge(np.stack(found), said[0], said[2]), interrupted=interrupted)


def _round(
    a: Configuration, b: Configuration, k: int, turns: int, python: str | None, on_progress: Callable[[float], None]
) -> tuple[NDArray[np.float64], list[dict[str, str]]]:
    """Block medians (turns, 3) of A, A again and B in round ``k``, and what the processes said of themselves."""
    found = np.empty((turns, 3))
    with ExitStack() as stack:
        started: dict[int, Served] = {}
        # Each is the first to be started in as many rounds: that alone makes a per cent or two.
        for which in ORDERS[k % len(ORDERS)]:
            started[which] = Served(b, python) if which == 2 and python else Served(b if which == 2 else a)
            stack.callback(started[which].close)
        served = [started[which] for which in range(3)]
        counts = [max(4, round(BLOCK_MS / median(one.block(5)[1:]))) for one in served]
        for turn in range(turns):
            for i in range(3):
                # In both directions: what one leaves in the caches must not always burden the same other.
                which = (turn + k + (i if turn % 2 else -i)) % 3
                block = served[which].block(counts[which])
                found[turn, which] = median(block[int(len(block) * SKIPPED) :])
            on_progress((turn + 1) / turns)
        return found, [{name: str(value) for name, value in one.ready.items()} for one in served]


def judge(blocks: NDArray[np.float64], a: dict[str, str], b: dict[str, str], seed: int = 0) -> Interleaved:
    """The verdict on block medians (rounds, turns, 3) of A, A again and B, in ms.

    With s the standard deviation between processes of one build, A against A has the variance 2 s^2, B against the mean of
    two A 1.5 s^2, and the mean over R rounds an R-th of that."""
    logs = np.log(blocks)
    differences = logs[:, :, 2] - logs[:, :, :2].mean(2)
    noise = np.median(logs[:, :, 1] - logs[:, :, 0], axis=1)
    middles = np.median(differences, axis=1)
    floor = max(SMALLEST_FLOOR, 2 * sqrt(0.75 * fmean(noise**2) / len(noise)))
    if len(noise) == 1:
        floor = max(floor, LONELY_FLOOR)
    generator = np.random.default_rng(seed)
    count, turns = differences.shape
    chosen = generator.integers(count, size=(DRAWS, count))
    picks = generator.integers(turns, size=(DRAWS, count, turns))
    drawn = np.median(differences[chosen[:, :, None], picks], axis=2).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    ratio, interval = exp(fmean(middles)), (exp(low), exp(high))
    a_ms = exp(float(np.median(logs[:, :, :2])))
    return Interleaved(
        a,
        b,
        a_ms,
        float(np.median(blocks[:, :, 2])),
        ratio,
        interval,
        floor,
        verdict(ratio, interval, floor),
        tuple(np.exp(middles).tolist()),
        tuple(np.exp(noise).tolist()),
    )
