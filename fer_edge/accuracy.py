"""How accurate answers are, and how far such a figure can be trusted.

A confusion matrix (K, K) has the truth in rows and the answer in columns; it may have one more column, of faces without an
answer. WAR is the share of right answers (accuracy), UAR the mean recall of the classes present; all are fractions of 1.
A truth of -1 is no truth: it counts nowhere.
Intervals are drawn by the bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) with a
fixed seed: to draw n faces with replacement is to draw their cells from the multinomial distribution of their shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Interval: TypeAlias = "tuple[float, float]"
"""(low, high)."""
Positions: TypeAlias = "NDArray[np.integer[Any]]"
"""(N,) positions of classes."""

DRAWS = 4000
LEVEL = 0.95
DIFFERENCE_LEVEL = 0.98
"""Higher than LEVEL, because a difference is acted upon: with few and unequal faces per class, percentile intervals of 95%
call equal classifiers different in 5 to 8% of cases, those of 98% in 2 to 4% (60 to 1,000 faces, seven classes of which
the smallest had 2%)."""
CALIBRATION_BINS = 15
"""Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017."""


@dataclass(frozen=True)
class Intervals:
    """95% intervals; a class without a face has None."""

    war: Interval
    uar: Interval
    per_class_recall: dict[str, Interval | None]


@dataclass(frozen=True)
class Difference:
    """What one classifier gains on another over the same faces (fractions of 1, below 0 for a loss), with 98% intervals."""

    war: float
    war_interval: Interval
    uar: float
    uar_interval: Interval


@dataclass(frozen=True)
class ReliabilityBin:
    """``faces`` whose answers are about equally probable: their mean probability, and the share of right answers."""

    faces: int
    confidence: float
    right: float


def differs(interval: Interval) -> bool:
    """Whether the interval of a difference leaves out none at all."""
    low, high = interval
    return low > 0 or high < 0


def confusion_matrix(truth: Positions, predicted: Positions, classes: int) -> NDArray[np.int64]:
    """Counts (K, K) of ``truth`` (N,) and ``predicted`` (N,), positions below ``classes``."""
    kept = truth >= 0
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth[kept], predicted[kept]), 1)
    return table


def recalls(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Recall (K,) of each class; NaN for a class without a face."""
    faces = confusion.sum(1)
    found: NDArray[np.float64] = np.divide(confusion.diagonal(), faces, out=np.full(len(faces), np.nan), where=faces > 0)
    return found


def recall_by_label(confusion: NDArray[np.int64], labels: Sequence[str]) -> dict[str, float | None]:
    """Recall of each label; None for one without a face."""
    return {label: None if np.isnan(r) else float(r) for label, r in zip(labels, recalls(confusion), strict=True)}


def war(confusion: NDArray[np.int64]) -> float:
    """Share of right answers; NaN without a face."""
    count = confusion.sum()
    return float(confusion.diagonal().sum() / count) if count else float("nan")


def uar(confusion: NDArray[np.int64]) -> float:
    """Mean recall of the classes that have a face; NaN without any."""
    present = recalls(confusion)[confusion.sum(1) > 0]
    return float(present.mean()) if len(present) else float("nan")


def war_uar(predicted: Positions, truth: Positions) -> tuple[float, float]:
    """WAR and UAR of answers (N,); NaN where no face has a truth."""
    classes = 1 + max(int(predicted.max(initial=0)), int(truth.max(initial=0)))
    table = confusion_matrix(truth, predicted, classes)
    return war(table), uar(table)


def intervals(confusion: NDArray[np.int64], labels: Sequence[str], draws: int = DRAWS) -> Intervals:
    """95% intervals from a confusion matrix of at least one face. A class that a draw misses is not in that draw's UAR."""
    n, (k, columns) = int(confusion.sum()), confusion.shape
    cells = np.union1d(np.flatnonzero(confusion), k * columns - 1)  # most labels have no face; the last takes the rest
    drawn = np.random.default_rng(0).multinomial(n, confusion.ravel()[cells] / n, draws)
    right, faces = np.zeros((draws, k)), np.zeros((draws, k), np.int64)
    for cell, counts in zip(cells, drawn.T, strict=True):
        row = cell // columns
        faces[:, row] += counts
        if row == cell % columns:
            right[:, row] = counts
    drawn_recalls = np.divide(right, faces, out=np.full((draws, k), np.nan), where=faces > 0)
    present = confusion.sum(1) > 0
    by_class = {label: _middle(drawn_recalls[:, i]) if present[i] else None for i, label in enumerate(labels)}
    return Intervals(_middle(right.sum(1) / n), _middle(np.nanmean(drawn_recalls[:, present], axis=1)), by_class)


def paired_difference(truth: Positions, before: Positions, after: Positions, draws: int = DRAWS) -> Difference:
    """What ``after`` gains on ``before``, two classifiers' answers to the same faces, of which at least one has a truth.

    Faces are drawn, each with both answers: two classifiers err on the same hard faces, and both figures move with the
    faces that happened to be taken. The interval of one, compared with the figure of the other, allows for neither."""
    kept = truth >= 0
    _, rows = np.unique(truth[kept], return_inverse=True)
    gain = (after[kept] == truth[kept]).astype(np.int64) - (before[kept] == truth[kept])
    classes, n = int(rows.max()) + 1, len(rows)
    table = np.bincount(rows * 3 + gain + 1, minlength=3 * classes)
    drawn = np.random.default_rng(0).multinomial(n, table / n, draws).reshape(draws, classes, 3)
    net, faces = (drawn[:, :, 2] - drawn[:, :, 0]).astype(np.float64), drawn.sum(2)
    by_class = np.divide(net, faces, out=np.full((draws, classes), np.nan), where=faces > 0)
    means = np.bincount(rows, weights=gain) / np.bincount(rows)
    war_interval = _middle(net.sum(1) / n, DIFFERENCE_LEVEL)
    uar_interval = _middle(np.nanmean(by_class, axis=1), DIFFERENCE_LEVEL)
    return Difference(float(gain.mean()), war_interval, float(means.mean()), uar_interval)


def calibration_error(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: how far ``confidence`` (N,) in (0, 1] and the share of right answers lie apart, in the
    mean over the faces; NaN without a face. Bins are of equal width, closed above (Guo et al., equation 3)."""
    if not len(confidence):
        return float("nan")
    gaps = [entry.faces * abs(entry.confidence - entry.right) for entry in reliability(confidence, right, bins)]
    return float(sum(gaps) / len(confidence))


def reliability(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of :func:`calibration_error` that hold a face, from unsure to sure."""
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    faces, sure, good = (
        np.bincount(place, weights=weights, minlength=bins) for weights in (None, confidence, right.astype(np.float64))
    )
    return tuple(
        ReliabilityBin(int(faces[i]), float(sure[i] / faces[i]), float(good[i] / faces[i])) for i in np.flatnonzero(faces)
    )


def error_at_coverage(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], coverage: float) -> float:
    """Share of wrong answers among the surest ``coverage`` of the faces (N,), a fraction above 0; faces as sure as the last
    of them count too. NaN without a face. (Selective risk: El-Yaniv and Wiener, JMLR 2010.)"""
    if not len(confidence):
        return float("nan")
    sorted_confidence = np.sort(confidence)[::-1]
    kept = confidence >= sorted_confidence[place_at_coverage(len(confidence), coverage)]
    return float(1 - right[kept].mean())


def place_at_coverage(count: int, coverage: float) -> int:
    """Which of ``count`` faces, from the surest on, is the last of the smallest share that is at least ``coverage``."""
    return min(count, max(1, math.ceil(round(coverage * count, 6)))) - 1


def _middle(values: NDArray[np.float64], level: float = LEVEL) -> Interval:
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, (tail, 100 - tail))
    return float(low), float(high)
