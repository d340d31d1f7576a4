"""What the tests of the camera's way share: sources from memory, a finder that knows where faces are, an output that keeps
what it gets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge import Face
from fer_edge.live.events import Event, Summary
from fer_edge.live.faces import FaceFinder
from fer_edge.live.pipeline import Step
from fer_edge.live.sources import Frame, Gap

Pixels = NDArray[np.uint8]


class Reel:
    """Pictures, or gaps, as a source: ``fps`` a second of the medium, without waiting; ``late``: seconds that each frame has
    waited before it is handed over."""

    name = "reel"

    def __init__(self, items: Sequence[Pixels | Gap], fps: float = 10.0, live: bool = False, late: float = 0.0) -> None:
        self.items, self.fps, self.live, self.late = items, fps, live, late
        self.seconds: float | None = len(items) / fps
        self.dropped = 0
        self.closed = 0

    def __iter__(self) -> Iterator[Frame | Gap]:
        number = 0
        for item in self.items:
            if self.closed:
                return
            if isinstance(item, Gap):
                yield item
            else:
                yield Frame(number, number / self.fps, item, time.monotonic() - self.late)
                number += 1

    def close(self) -> None:
        """Once is enough, and counted."""
        self.closed += 1


class Planted(FaceFinder):
    """Faces where a test has put them: by number of the frame."""

    name = "planted"

    def __init__(self, faces: Mapping[int, Sequence[Face]]) -> None:
        self.faces, self.number = faces, -1

    def find_frame(self, frame: Frame) -> list[Face]:
        self.number += 1
        return list(self.faces.get(self.number, ()))


def face(x: float, y: float, side: float, eyes: float | None = None) -> Face:
    """A face in a square box, ``eyes`` pixels between its eyes."""
    gap = (side * 0.4 if eyes is None else eyes) / 2
    middle = x + side / 2
    marks = ((middle - gap, y + side / 3), (middle + gap, y + side / 3), (middle, y + side / 2))
    return Face((x, y, side, side), 0.9, (*marks, (middle - gap, y + side * 0.8), (middle + gap, y + side * 0.8)))


def always(count: int, *faces: Face) -> dict[int, tuple[Face, ...]]:
    """The same faces in each of so many frames."""
    return dict.fromkeys(range(count), faces)


class Kept:
    """An output that keeps all it is given."""

    name = "kept"

    def __init__(self) -> None:
        self.events: list[Event | Summary] = []
        self.steps: list[Step] = []
        self.gaps: list[Gap] = []
        self.closed = 0

    def event(self, event: Event | Summary) -> None:
        self.events.append(event)

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def lost(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def close(self) -> None:
        self.closed += 1


def kinds(events: Sequence[Any]) -> list[tuple[str, int]]:
    """(event, track) of each event but the summary."""
    return [(event.event, event.track) for event in events if isinstance(event, Event)]
