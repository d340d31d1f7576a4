"""YuNet (Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research, 2023), as OpenCV
runs it: ``cv2.FaceDetectorYN``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.console import need_extra
from fer_edge.errors import EngineError, UsageError

from .weights import WEIGHTS, is_right, read_installed

PUBLISHED = WEIGHTS["yunet"]
LARGEST = 64_000_000
"""Bytes of a file that is tried."""
LEAST_SIDE = 64
"""Pixels. With a side of 32, OpenCV 4.10 and 4.12 read memory that was never written: faces at 1e24, others at each run."""
_STEPS, _PARTS = (8, 16, 32), {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
"""Outputs of the network: for each cell of a step, so many numbers (OpenCV modules/objdetect/src/face_detect.cpp)."""


class YuNet:
    """An open detector."""

    def __init__(self, content: bytes, least_score: float) -> None:
        cv2 = opencv()
        self._convert, self._code = cv2.cvtColor, cv2.COLOR_RGB2BGR
        with _silent(cv2):
            weights = np.frombuffer(content, np.uint8)
            self._net = cv2.FaceDetectorYN.create("onnx", weights, np.empty(0, np.uint8), (320, 320), least_score)
        self._size = (320, 320)

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        """Faces (N, 15), as :class:`~.detectors.Detector` says."""
        high, wide = pixels.shape[:2]
        if min(high, wide) < LEAST_SIDE:  # OpenCV would fill up with zeros as well, to the next 32
            room = np.zeros((max(high, LEAST_SIDE), max(wide, LEAST_SIDE), 3), np.uint8)
            room[:high, :wide] = pixels
            pixels = room
        size = (pixels.shape[1], pixels.shape[0])
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        rows = self._net.detect(self._convert(pixels, self._code))[1]
        return np.empty((0, 15), np.float32) if rows is None else rows

    def close(self) -> None:
        """Let the network go."""
        self._net = None


def open(file: Path | None, least_score: float) -> YuNet:
    """YuNet with the published weights from the user's cache, or with those of a file, which is tried unless it is the
    published one. Raises UsageError, EngineError or MissingExtraError."""
    opencv()
    if file is None:
        return YuNet(read_installed(PUBLISHED)[1], least_score)
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if not content or len(content) > LARGEST:
        raise EngineError(f"{file} is no face detector: it {'has more than 64 MB' if content else 'is empty'}")
    if is_right(content, PUBLISHED):
        return YuNet(content, least_score)
    if problem := _trial(content):
        raise EngineError(
            f"{file} is no face detector of YuNet's kind: {problem}; fer-edge faces fetch gets the published one"
        )
    return YuNet(content, least_score)


def opencv() -> Any:
    """The module cv2, whatever distribution it is of, if it has YuNet. Raises MissingExtraError or EngineError."""
    need_extra("opencv-python-headless", extra="live")
    try:
        import cv2
    except ImportError as error:  # opencv-python without a screen's libraries
        raise EngineError(
            f"OpenCV is installed but does not import: {error}; opencv-python-headless needs no screen"
        ) from error
    if not hasattr(cv2, "FaceDetectorYN"):
        raise EngineError(f"OpenCV {getattr(cv2, '__version__', '')} has no FaceDetectorYN; 4.10 and later have it")
    return cv2


def _trial(content: bytes) -> str:
    """What is wrong with weights that are not the published ones; "" when they answer as YuNet does.

    ``FaceDetectorYN`` reads its network's outputs without a look at their shapes, so they are looked at first."""
    cv2, side = opencv(), 96
    expected = {f"{part}_{step}": ((side // step) ** 2, n) for step in _STEPS for part, n in _PARTS.items()}
    with _silent(cv2):
        try:
            net = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
            names = net.getUnconnectedOutLayersNames()
            if set(names) != set(expected):
                return (
                    f"its outputs are {', '.join(sorted(names)[:4]) or 'none'}, not YuNet's cls_8, obj_8, bbox_8, kps_8 ..."
                )
            net.setInput(np.zeros((1, 3, side, side), np.float32))
            for name, output in zip(names, net.forward(names), strict=True):
                if output.size != np.prod(expected[name]) or output.shape[-1] != expected[name][1]:
                    return f"its output {name} is {output.shape}, not (1, {expected[name][0]}, {expected[name][1]})"
                if not np.isfinite(output).all():
                    return f"its output {name} has numbers that are none"
            YuNet(content, 0.5).detect(np.zeros((side, side, 3), np.uint8))
        except cv2.error as error:
            return " ".join(str(getattr(error, "err", "") or error).split())[:200].rstrip(".")
    return ""


_levels = threading.RLock()


@contextmanager
def _silent(cv2: Any) -> Iterator[None]:
    """OpenCV prints nothing on stderr meanwhile: 5.0 warns at each opening of a detector that its new engine has no targets,
    all print a file that they refuse, and an exception says that as well. The level is the whole process's (OpenCV has no
    other), so it is silent for the milliseconds of an opening only, and then as it was."""
    where = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # 4, and 5
    with _levels:
        before = where.getLogLevel()
        where.setLogLevel(0)
        try:
            yield
        finally:
            where.setLogLevel(before)
