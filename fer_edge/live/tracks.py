"""Faces followed from frame to frame: which face of this frame is which person of the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fer_edge.image import Box

from .faces import Face


@dataclass(frozen=True)
class Sighting:
    """A face of this frame, and the track that it belongs to."""

    track: int
    face: Face


class Tracker:
    """``update`` with the faces of each frame, in order of time. A track that is unseen for ``patience`` seconds of the
    medium has ended."""

    def __init__(self, patience: float = 1.0) -> None:
        self.patience = patience
        self._seen: dict[int, tuple[Box, float]] = {}
        self._next = 1

    def update(self, faces: Sequence[Face], time: float) -> tuple[list[Sighting], list[int]]:
        """(the faces with their tracks, tracks that have ended)."""
        over = [track for track, (_, seen) in self._seen.items() if time - seen > self.patience]
        for track in over:
            del self._seen[track]
        free, sightings = dict(self._seen), []
        for face in faces:
            best = max(free, key=lambda track: _overlap(free[track][0], face.box), default=None)
            if best is None or _overlap(free[best][0], face.box) < 0.3:
                best, self._next = self._next, self._next + 1
            free.pop(best, None)
            self._seen[best] = (face.box, time)
            sightings.append(Sighting(best, face))
        return sightings, over

    def end(self) -> list[int]:
        """End all tracks: the source is lost or over."""
        over = list(self._seen)
        self._seen.clear()
        return over


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, high)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
