"""Faces followed from frame to frame: which face of this frame is which person of the last ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .faces import Face

Array = NDArray[np.float64]
# Lengths are in sizes of a face, the square root of its box's area.
PLACE_NOISE = 0.03
"""How far a box lies beside its face (standard deviation): YuNet's jitter on three clips is 0.004 to 0.02."""
ACCELERATION = 4.0
"""How much a velocity wanders, as a spectral density (sizes² / s³)."""
FIRST_SPEED = 1.0
"""How fast a new face may move (standard deviation, sizes / s)."""
SIZE_NOISE = 0.15
"""How much the logarithm of a size differs between two sights of a face (standard deviation)."""
SIZE_GAIN = 0.3
"""Share of a new box in the size of a track."""
GATE = 16.3
"""Squared misfit above which a face is somebody else: chi-squared of two places and a size at 0.999."""
OUTLIER = 6.0
"""Squared misfit of a place above which its box counts for less: chi-squared of two places at 0.95. Where one face hides
another, YuNet's box jumps for some frames, and a track that believed it would be elsewhere when the face is found again."""
SETTLE = 0.2
"""Seconds for which a face must be seen until it is followed."""
UNMATCHED = 40.0
"""Cost of leaving a face and a track alone; more than any pair within the gate costs."""

INSTANT = 1e-6
"""Seconds by which differences of times may be wrong: 0.7 - 0.5 is less than 0.2."""


@dataclass(frozen=True)
class Sighting:
    """A face of this frame, and the track that it belongs to."""

    track: int
    face: Face


class Tracker:
    """``update`` with the faces of each frame, in order of time.

    Faces that the detector is sure of are assigned first, then the others, which go on with a track but begin none
    (ByteTrack: Zhang et al., ECCV 2022). Places follow a Kalman filter of constant velocity over seconds of the medium, and
    what is assigned together is what is likeliest together. A face that was not followed before gets a track once it has
    been seen for ``settle`` seconds. A track that is unseen for more than ``patience`` seconds has ended; its number is
    never used again. ``sure``: the least score of a face that can begin a track."""

    def __init__(self, patience: float = 1.5, settle: float = SETTLE, sure: float = 0.6) -> None:
        self.patience, self.settle, self.sure = patience, settle, sure
        self._tracks: list[Track] = []
        self._next = 1

    def update(self, faces: Sequence[Face], time: float) -> tuple[list[Sighting], list[int]]:
        """(the faces that have a track, in the order given; tracks that have ended)."""
        for track in self._tracks:
            track.move(time)
        sure = [i for i, face in enumerate(faces) if face.score >= self.sure]
        owners = self._assign(faces, sure, self._tracks)
        fresh = [i for i in sure if i not in owners]
        matched = set(owners.values())
        settled = [track for track in self._tracks if track.number is not None and track not in matched]
        owners.update(self._assign(faces, [i for i, face in enumerate(faces) if face.score < self.sure], settled))
        for i, track in owners.items():
            track.correct(faces[i])
            if track.number is None and time - track.since > self.settle - INSTANT:
                track.number, self._next = self._next, self._next + 1
        over = [track.number for track in self._tracks if track.number is not None and time - track.seen > self.patience]
        self._tracks = [track for track in self._tracks if time - track.seen <= self._patience(track)]
        self._tracks += [Track(faces[i], time) for i in fresh]
        numbers = {i: track.number for i, track in owners.items()}
        return [Sighting(n, face) for i, face in enumerate(faces) if (n := numbers.get(i)) is not None], over

    def scale(self, across: float, down: float) -> None:
        """Frames have so many times as many pixels from now on; what is in them stays where it is."""
        for track in self._tracks:
            track.x, track.across = track.x * across, track.across * across
            track.y, track.down = track.y * down, track.down * down
            track.size *= math.sqrt(across * down)

    def end(self) -> list[int]:
        """End all tracks: the source is lost or over."""
        over = [track.number for track in self._tracks if track.number is not None]
        self._tracks.clear()
        return over

    def _patience(self, track: Track) -> float:
        return self.settle / 2 if track.number is None else self.patience

    def _assign(self, faces: Sequence[Face], indices: list[int], tracks: list[Track]) -> dict[int, Track]:
        """Index of a face -> its track, which may be unseen: the likeliest assignment of all."""
        if not indices or not tracks:
            return {}
        if len(indices) == len(tracks) == 1:  # the most frequent case by far, without numpy's dozen calls
            return {indices[0]: tracks[0]} if _may_be(tracks[0], faces[indices[0]]) else {}
        placed = np.array([_placed(faces[i]) for i in indices])
        state = np.array([(track.x, track.y, track.size, track.variance) for track in tracks])
        size = state[:, None, 2]
        variance = state[:, None, 3] + PLACE_NOISE**2
        squared = ((placed[None, :, :2] - state[:, None, :2]) ** 2).sum(2) / size**2
        misfit = squared / variance + (np.log(placed[None, :, 2] / size) / SIZE_NOISE) ** 2
        # Twice the negative logarithm of a normal density: without its determinant, a lost track's wide one wins.
        cost = misfit + 2 * np.log(variance / PLACE_NOISE**2) - UNMATCHED
        pairs = assignment(np.where(misfit < GATE, cost, 0.0))
        return {indices[column]: tracks[row] for row, column in pairs}


class Track:
    """A face's place (pixels), velocity and size. Variances are in squared sizes; they are the same for x and y."""

    def __init__(self, face: Face, time: float) -> None:
        self.number: int | None = None
        self.since = self.seen = self.time = time
        self.x, self.y, self.size = _placed(face)
        self.across = self.down = 0.0
        self.variance, self.covariance, self.speed_variance = PLACE_NOISE**2, 0.0, FIRST_SPEED**2

    def move(self, time: float) -> None:
        """To where it should be at ``time`` (Bar-Shalom, Li, Kirubarajan 2001, section 6.2.2: white noise
        acceleration)."""
        step, self.time = time - self.time, time
        self.x += self.across * step
        self.y += self.down * step
        self.variance += step * (2 * self.covariance + step * (self.speed_variance + ACCELERATION * step / 3))
        self.covariance += step * (self.speed_variance + ACCELERATION * step / 2)
        self.speed_variance += ACCELERATION * step

    def correct(self, face: Face) -> None:
        """By a face seen now."""
        self.seen = self.time
        x, y, size = _placed(face)
        right, below = x - self.x, y - self.y
        spread = self.variance + PLACE_NOISE**2
        # Chang, Journal of Geodesy 88, 2014: the spread that makes an outlier just fit.
        spread = max(spread, (right**2 + below**2) / self.size**2 / OUTLIER)
        gain, speed_gain = self.variance / spread, self.covariance / spread
        self.x, self.y = self.x + gain * right, self.y + gain * below
        self.across, self.down = self.across + speed_gain * right, self.down + speed_gain * below
        self.speed_variance -= speed_gain * self.covariance
        self.variance, self.covariance = (1 - gain) * self.variance, (1 - gain) * self.covariance
        self.size += SIZE_GAIN * (size - self.size)


def _may_be(track: Track, face: Face) -> bool:
    """Whether a face is likelier to be the only track's than somebody else: as :meth:`Tracker._assign` has it."""
    x, y, size = _placed(face)
    variance = track.variance + PLACE_NOISE**2
    squared = ((x - track.x) ** 2 + (y - track.y) ** 2) / track.size**2
    misfit = squared / variance + (math.log(size / track.size) / SIZE_NOISE) ** 2
    return misfit < GATE and misfit + 2 * math.log(variance / PLACE_NOISE**2) < UNMATCHED


def _placed(face: Face) -> tuple[float, float, float]:
    """Centre and size, in pixels."""
    x, y, wide, high = face.box
    return x + wide / 2, y + high / 2, max(1.0, math.sqrt(wide * high))


def assignment(cost: Array) -> list[tuple[int, int]]:
    """Pairs (row, column) of least total cost, each row and column at most once; only pairs of negative cost are made.

    Where the best columns of all rows differ, these are it; otherwise by shortest augmenting paths (Jonker and Volgenant,
    Computing 38, 1987, in the form of Crouse, IEEE TAES 52(4), 2016)."""
    below = cost < 0
    rows, columns = np.flatnonzero(below.any(1)), np.flatnonzero(below.any(0))
    if not len(rows):
        return []
    if len(rows) > len(columns):
        return [(row, column) for column, row in assignment(cost.T)]
    part = np.minimum(cost[np.ix_(rows, columns)], 0.0)
    best = part.argmin(1)
    if len(set(best.tolist())) < len(rows):
        best = _augmented(part)
    return [(int(rows[i]), int(columns[j])) for i, j in enumerate(best) if part[i, j] < 0]


def _augmented(cost: Array) -> NDArray[np.intp]:
    """The column of every row, of least total cost; there are at least as many columns as rows."""
    high, wide = cost.shape
    row_price, column_price = np.zeros(high), np.zeros(wide)
    column_of, row_of = np.full(high, -1), np.full(wide, -1)
    for start in range(high):
        length, before, open_ = np.full(wide, np.inf), np.full(wide, start), np.ones(wide, bool)
        row, so_far, visited = start, 0.0, []
        while True:
            through = cost[row] - row_price[row] - column_price + so_far
            shorter = open_ & (through < length)
            length[shorter], before[shorter] = through[shorter], row
            column = int(np.where(open_, length, np.inf).argmin())
            so_far, open_[column] = float(length[column]), False
            if row_of[column] < 0:
                break
            visited.append(column)
            row = int(row_of[column])
        row_price[start] += so_far
        row_price[row_of[visited]] += so_far - length[visited]
        column_price[visited] -= so_far - length[visited]
        row = -1
        while row != start:
            row_of[column] = row = int(before[column])
            column_of[row], column = column, int(column_of[row])
    return column_of
