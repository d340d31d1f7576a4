"""Faces of a picture: where they are, and how sure the detector is."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.arguments import checked
from fer_edge.console import need_extra
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import UsageError
from fer_edge.image import Box, ImageLike, load_picture

Point = tuple[float, float]
LONGEST = 640
"""Pixels of the longer side of what the detector looks at; larger pictures are looked at smaller."""


@dataclass(frozen=True)
class Face:
    """A face in pixels of the upright picture: ``box`` (x, y, width, height), ``score`` of the detector in [0, 1],
    ``landmarks`` five points (x, y): right eye, left eye, nose, right and left corner of the mouth, right and left of the
    person seen (YuNet's order)."""

    box: Box
    score: float
    landmarks: tuple[Point, Point, Point, Point, Point]

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return math.dist(*self.landmarks[:2])

    def to_dict(self) -> dict[str, Any]:
        """{"box", "score", "landmarks"}, ready for JSON."""
        return {"box": list(self.box), "score": self.score, "landmarks": [list(point) for point in self.landmarks]}


class FaceFinder:
    """Finds faces with YuNet (OpenCV). ``detector``: its file. Not to be shared between threads."""

    def __init__(
        self, detector: str | os.PathLike[str] | None = None, *, longest: int = LONGEST, least_score: float = 0.6
    ) -> None:
        need_extra(extra="live")
        import cv2

        if detector is None:
            raise UsageError("no detector is installed; run: fer-edge faces fetch")
        self.name = Path(detector).name
        self.longest = longest
        self._net = cv2.FaceDetectorYN.create(str(Path(detector)), "", (320, 320), score_threshold=least_score)

    @checked("photo")
    def find(self, photo: ImageLike, *, max_pixels: int = MAX_PIXELS) -> list[Face]:
        """The faces of a photo (as ``Classifier.predict`` takes one), the surest first. Raises ImageError."""
        if not (isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3):
            photo = np.asarray(load_picture(photo, max_pixels).convert("RGB"))
        return self.find_rgb(photo)

    def find_rgb(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """As :meth:`find`, of an array (H, W, 3) RGB, without a look at it: for frames."""
        import cv2

        high, wide = pixels.shape[:2]
        shrink = max(1.0, max(high, wide) / self.longest)
        size = (max(1, round(wide / shrink)), max(1, round(high / shrink)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if shrink > 1 else pixels
        self._net.setInputSize(size)
        _, rows = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        scale = np.array([wide / size[0], high / size[1]] * 7)
        faces = []
        for row in rows:
            x, y, w, h, *points = (row[:14] * scale).tolist()
            marks = tuple(zip(points[::2], points[1::2], strict=True))
            faces.append(Face((x, y, w, h), float(row[14]), marks))  # type: ignore[arg-type]  # five of them
        return sorted(faces, key=lambda face: -face.score)

    def close(self) -> None:
        """Give the detector back."""

    def __enter__(self) -> FaceFinder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
