"""Scores that mean what they say: a temperature that makes a probability the share of right answers, and a threshold from
which an answer counts as certain. Both belong to a label set, and both are found on labelled faces that no training saw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accuracy import Interval, place_at_coverage
from .errors import UsageError

LIMIT = 50.0
"""A temperature beyond this, or below its inverse, is no finding: the answers hardly err, or are no better than chance."""
LEAST_CERTAIN = 30
"""Answers that have to count as certain, so that their error is one."""

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Temperature:
    """``value``, and its 95% interval over other faces of the same kind."""

    value: float
    interval: Interval


def likelihood_loss(logits: Logits, truth: NDArray[np.integer[Any]], temperature: float) -> float:
    """Mean negative log-likelihood of ``truth`` (N,), positions, under softmax(logits / temperature), (N, K)."""
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(1)
    return float((np.log(np.exp(scaled - top[:, None]).sum(1)) + top - scaled[np.arange(len(truth)), truth]).mean())


def fit_temperature(logits: Logits, truth: NDArray[np.integer[Any]]) -> Temperature:
    """The temperature under which ``truth`` (N,), positions of the right labels, is most likely, of logits (N, K) at
    temperature 1 (Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2).

    The loss is convex in the inverse temperature b: its slope, the mean over the faces of what softmax(b logits) expects of
    the logits less the logit of the truth, rises with b, and its root is found by halving. The interval is that of an
    estimate by a moment condition: the slope's standard error over the curvature (Newey and McFadden, 1994, section 3).

    Raises UsageError where no temperature from 1/LIMIT to LIMIT is the best one."""
    wide = np.asarray(logits, np.float64)
    own = wide[np.arange(len(truth)), truth]

    def moments(inverse: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What softmax expects (N,) of the logits, and their variance (N,) under it."""
        shares = np.exp(inverse * (wide - wide.max(1, keepdims=True)))
        shares /= shares.sum(1, keepdims=True)
        mean = (shares * wide).sum(1)
        variance: NDArray[np.float64] = (shares * (wide - mean[:, None]) ** 2).sum(1)
        return mean, variance

    def slope(inverse: float) -> float:
        return float((moments(inverse)[0] - own).mean())

    low, high = 1 / LIMIT, LIMIT
    if slope(low) >= 0:
        raise UsageError(
            f"no temperature fits: on these {len(truth)} faces the scores say less than chance; are their classes right?"
        )
    if slope(high) <= 0:
        raise UsageError(
            f"no temperature fits: {len(truth)} faces with hardly an error among them; take more, and harder ones"
        )
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    inverse = math.sqrt(low * high)
    mean, variance = moments(inverse)
    error = float((mean - own).std() / math.sqrt(len(truth)) / variance.mean())
    return Temperature(1 / inverse, (1 / (inverse + 1.96 * error), 1 / max(1 / LIMIT, inverse - 1.96 * error)))


def threshold_at_coverage(confidence: NDArray[np.floating[Any]], coverage: float) -> float:
    """The highest threshold that at least ``coverage`` of the faces reach, of the probability of their answers (N,)."""
    ordered = np.sort(confidence)[::-1]
    return _between(ordered, place_at_coverage(len(ordered), coverage))


def threshold_at_error(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], error: float) -> float:
    """The lowest threshold at which at most ``error`` of the answers that reach it are wrong, of at least LEAST_CERTAIN.

    Raises UsageError where there is none."""
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    counts = np.arange(1, len(ordered) + 1)
    errors = np.cumsum(~right[order]) / counts
    last_of_equals = np.append(ordered[1:] < ordered[:-1], True)
    enough = last_of_equals & (counts >= min(LEAST_CERTAIN, len(ordered)))
    places = np.flatnonzero(enough & (errors <= error))
    if not len(places):
        best = int(np.flatnonzero(enough)[errors[enough].argmin()])
        raise UsageError(
            f"no threshold brings the error of certain answers to {error:.1%}; the lowest is {errors[best]:.1%}, "
            f"of the surest {counts[best]} of {len(ordered)} answers"
        )
    return _between(ordered, int(places[-1]))


def length_at_loss(lengths: NDArray[np.floating[Any]], loss: float) -> float:
    """The highest length of a feature that all but at most ``loss`` of the faces reach, of their features' lengths (N,)."""
    return threshold_at_coverage(lengths, 1 - loss)


def _between(ordered: NDArray[np.floating[Any]], place: int) -> float:
    """Half way from the probability at ``place`` to the next lower one, or 0: engines differ in the last digits."""
    lower = ordered[ordered < ordered[place]]
    return float((float(ordered[place]) + float(lower[0])) / 2) if len(lower) else 0.0
