"""Faces of a picture: where they are, and how sure the detector is."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.arguments import checked
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import EngineError, UsageError
from fer_edge.image import Box, ImageLike, rgb_array

from .detectors import Detector, detector_name, open_detector
from .frames import Frame
from .noise import smoothed
from .yunet import opencv

Point = tuple[float, float]
LONGEST = 640
"""Pixels of the longer side of what the detector looks at; larger pictures are looked at smaller."""
LEAST_EYES = 12.0
"""Pixels between the eyes of a face below which it is found, and not judged."""
LEAST_BOX = 2.0
"""Pixels of a box's sides: what is smaller is no face, and rounded to whole pixels it may be nothing."""


@dataclass(frozen=True)
class Face:
    """A face in pixels of the upright picture, to a hundredth: ``box`` (x, y, width, height), which may leave the picture;
    ``score`` of the detector in [0, 1]; ``landmarks`` five points (x, y): right eye, left eye, nose, right and left corner
    of the mouth, right and left of the person seen (YuNet's order)."""

    box: Box
    score: float
    landmarks: tuple[Point, Point, Point, Point, Point]

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return math.dist(*self.landmarks[:2])

    def times(self, factor: int) -> Face:
        """The same face in a picture so many times larger."""
        if factor == 1:
            return self
        x, y, w, h = (value * factor for value in self.box)
        marks = tuple((x * factor, y * factor) for x, y in self.landmarks)
        return Face((x, y, w, h), self.score, marks)  # type: ignore[arg-type]  # five of them

    def to_dict(self) -> dict[str, Any]:
        """{"box", "score", "landmarks"}, ready for JSON."""
        return {"box": list(self.box), "score": self.score, "landmarks": [list(point) for point in self.landmarks]}


class FaceFinder:
    """Finds the faces of pictures, by OpenCV's YuNet unless told otherwise. May be shared between threads, which then wait
    for each other. A picture with a sensor's grain is smoothed for the detector (:mod:`.noise`).

    ``detector``: None: YuNet, with the weights that ``fer-edge faces fetch`` has put into the user's cache; a file of such
    weights; the name of another package's detector (entry point ``fer_edge.detectors``); or an open one
    (``fer_edge.live.detectors.Detector``), which is then closed with the finder. ``longest``: pixels of the longer side
    of what the detector looks at. ``least_score``: what the detector is less sure of is no face. ``name``: the detector's.

    OpenCV has one pool of threads for the whole process, which is the application's: ``cv2.setNumThreads`` sets it, and
    nothing here does. Its number changes how long finding takes, and no face.

    Raises UsageError when there is no such detector, EngineError for a file that is none, MissingExtraError."""

    @checked()
    def __init__(
        self,
        detector: str | os.PathLike[str] | Detector | None = None,
        *,
        longest: int = LONGEST,
        least_score: float = 0.6,
    ) -> None:
        if longest < 1:
            raise UsageError(f"longest must be at least 1 pixel; got {longest}")
        if not 0 <= least_score <= 1:
            raise UsageError(f"least_score must be from 0 to 1; got {least_score}")
        opencv()  # pictures are shrunk by it, whatever the detector
        self.longest = longest
        self.name = detector_name(detector)
        self._detector: Detector | None = open_detector(detector, least_score)
        self._lock = threading.Lock()

    @checked("photo")
    def find(self, photo: ImageLike, *, max_pixels: int = MAX_PIXELS) -> list[Face]:
        """The faces of a photo (as :meth:`fer_edge.Classifier.predict` takes one; OpenCV's BGR is to be turned to RGB
        first), the largest first, equal ones from the left. Raises ImageError, and UsageError after :meth:`close`."""
        self._open()
        pixels, shrunk = rgb_array(photo, max_pixels)
        return [face.times(shrunk) for face in self.find_rgb(pixels)]

    def find_rgb(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """As :meth:`find`, of an array uint8 (H, W, 3) RGB that is not looked at first: for frames."""
        return self.find_frame(Frame(0, 0.0, pixels, 0.0))

    def find_frame(self, frame: Frame) -> list[Face]:
        """As :meth:`find_rgb`, of a frame; its decoder shrinks one that is too large."""
        wide, high = size = frame.size
        if (shrink := max(size) / self.longest) > 1:
            size = (max(1, round(wide / shrink)), max(1, round(high / shrink)))
            small = frame.shrunk(size)
        else:
            small = np.ascontiguousarray(frame.pixels)
        with self._lock:
            rows = np.asarray(self._open().detect(smoothed(small)), np.float64)
        return faces_of(rows, size, (wide, high)) if len(rows) else []

    def _open(self) -> Detector:
        if self._detector is None:
            raise UsageError("this finder is closed; make a new one")
        return self._detector

    def close(self) -> None:
        """Give the detector back. Closing twice is fine."""
        with self._lock:
            detector, self._detector = self._detector, None
        if detector is not None:
            detector.close()

    def __enter__(self) -> FaceFinder:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def faces_of(rows: NDArray[np.float64], seen: tuple[int, int], picture: tuple[int, int]) -> list[Face]:
    """A detector's rows (N, 15) as faces, the largest first. ``seen``: (width, height) of what it saw, ``picture``: of the
    picture that faces are told in. A box whose centre lies outside the picture, or smaller than LEAST_BOX there, is no face.
    Raises EngineError for rows that are none."""
    if rows.ndim != 2 or rows.shape[1] != 15 or not np.isfinite(rows).all():
        raise EngineError(f"the face detector answered with {rows.shape} numbers, not (N, 15) that are finite")
    (wide, high), (across, down) = picture, (picture[0] / seen[0], picture[1] / seen[1])
    found = []
    for row in rows.tolist():  # of a face or two, quicker than a dozen calls of numpy
        xs = [round(value * across * 100) / 100 for value in row[0:14:2]]
        ys = [round(value * down * 100) / 100 for value in row[1:14:2]]
        x, y = xs[0] + xs[1] / 2, ys[0] + ys[1] / 2
        if 0 <= x < wide and 0 <= y < high and xs[1] >= LEAST_BOX and ys[1] >= LEAST_BOX:
            marks = tuple(zip(xs[2:], ys[2:], strict=True))
            found.append(Face((xs[0], ys[0], xs[1], ys[1]), row[14], marks))  # type: ignore[arg-type]  # five of them
    return sorted(found, key=lambda face: (-face.box[2] * face.box[3], face.box[0], face.box[1]))


def use_threads(threads: int) -> None:
    """Let OpenCV use so many threads, in the whole process: for a command, whose process is ours."""
    opencv().setNumThreads(threads)
