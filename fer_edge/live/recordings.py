"""Sources that wait for us: files, animations, folders of frames. Every frame, in order, none dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import ImageSequence

from fer_edge.decode import MAX_PIXELS, UNREADABLE, Budget, checked_size, decoding_bytes, opened, reason
from fer_edge.errors import ImageError, SourceError
from fer_edge.image import load_picture, turn_of
from fer_edge.video import frame_files, upright

from .decoder import Decoder
from .frames import Frame, Gap, Pixels

FOLDER_FPS = 25.0
"""Pictures of a folder a second, unless it is said."""

_ANIMATION_STEP = 0.1
"""Seconds of a picture of an animation that says none, as browsers show it."""

_JITTER = 1.0
"""Seconds that a time may fall back and be taken for a muxer's slip; more is a new beginning."""


class MediumTime:
    """Seconds of the medium from its time stamps: from 0 with the first picture, never backwards. ``rate``: pictures a
    second, for those without a stamp."""

    def __init__(self, rate: float | None) -> None:
        self._step = 1.0 / rate if rate else 1.0 / 25
        self._start: float | None = None
        self._last = -self._step

    def of(self, stamp: float | None) -> float:
        """The time of the next picture."""
        following = self._last + self._step
        if stamp is None:
            moment = following
        else:
            if self._start is None or stamp - self._start < self._last - _JITTER:  # a file put behind another one
                self._start = stamp - following
            moment = stamp - self._start
        self._last = max(moment, self._last, 0.0)
        return self._last


class Recording:
    """What all of them share: iterated once, closed from whichever thread."""

    live = False
    dropped = 0
    single = False
    """Whether it is known to be one photo."""

    def __init__(self, name: str, seconds: float | None = None) -> None:
        self.name, self.seconds = name, seconds
        self._over = threading.Event()
        self._frames: Iterator[Frame] = iter(())

    def __iter__(self) -> Iterator[Frame | Gap]:
        for frame in self._frames:
            if self._over.is_set():
                return
            yield frame

    def close(self) -> None:
        """The iteration ends before its next frame."""
        self._over.set()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _begin(self, frames: Iterator[Frame]) -> None:
        """Decode the first frame now: what has none is refused before anything runs."""
        first = next(frames, None)
        if first is None:
            raise SourceError(f"{self.name} has no frame that can be decoded")

        def all_of_them() -> Iterator[Frame]:
            yield first
            yield from frames

        self._frames = all_of_them()


class VideoFile(Recording):
    """Every frame of a video file. Raises SourceError; also after the last frame, where some could not be decoded."""

    def __init__(self, path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(str(path))
        if path.stat().st_size == 0:
            raise SourceError(f"{path} is empty")
        # With its protocol named, a file called concat:x is a file.
        self._decoder = Decoder(f"file:{path}", self.name, max_pixels=max_pixels)
        self.seconds = self._decoder.seconds
        self._begin(frames_of(self._decoder, self._over))


def frames_of(decoder: Decoder, over: threading.Event) -> Iterator[Frame]:
    """Every frame of a decoder, at its own time. Raises SourceError; after the last one, where some could not be decoded."""
    clock = MediumTime(decoder.rate)
    with decoder:
        for number, decoded in enumerate(decoder.pictures()):
            yield Frame(number, clock.of(decoded.time), decoded.picture, decoded.arrived, decoded.decode_ms)
            if over.is_set():
                return
        if decoder.broken:
            raise SourceError(
                f"{decoder.name} is damaged: {decoder.broken} packets could not be decoded, the first after "
                f"{decoder.broken_at:.1f} s; all others were"
            )


class PictureFile(Recording):
    """A photo, or every frame of an animated picture (GIF, WebP, PNG, AVIF). Raises ImageError."""

    def __init__(self, path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(str(path))
        self._budget = Budget(max_pixels)
        self._begin(self._read(path, max_pixels))

    def _read(self, path: Path, max_pixels: int) -> Iterator[Frame]:
        began, moment = time.perf_counter(), 0.0
        try:
            with opened(path, self._budget) as animation:
                # The further pictures of an MPO are other views of the same moment, or how bright it was.
                if animation.format == "MPO" or getattr(animation, "n_frames", 1) == 1:
                    self.single = True
                    yield _frame(0, 0.0, np.asarray(load_picture(path, max_pixels).convert("RGB")), began)
                    return
                for number, picture in enumerate(ImageSequence.Iterator(animation)):
                    size = checked_size(picture, self.name)  # a frame may be larger than the first one
                    self._budget.check(decoding_bytes(picture), size, self.name)
                    pixels = np.asarray(upright(picture, turn_of(picture), 1).convert("RGB"))
                    step = picture.info.get("duration", 0) / 1e3 or _ANIMATION_STEP  # known when it is decoded
                    yield _frame(number, moment, pixels, began)
                    began, moment = time.perf_counter(), moment + step
        except ImageError:
            raise
        except UNREADABLE as error:
            raise ImageError(f"{path} cannot be decoded: {reason(error)}") from error


class FrameFolder(Recording):
    """The pictures of a folder, by name, ``fps`` a second. Raises ImageError, where there is none and for a broken one."""

    def __init__(self, path: Path, *, fps: float = FOLDER_FPS, max_pixels: int = MAX_PIXELS) -> None:
        files = frame_files(path)
        if not files:
            raise SourceError(f"{path} has no frames: it is empty")
        super().__init__(str(path), len(files) / fps)
        self.single = len(files) == 1
        self._begin(self._read(files, fps, max_pixels))

    @staticmethod
    def _read(files: list[Path], fps: float, max_pixels: int) -> Iterator[Frame]:
        for number, file in enumerate(files):
            began = time.perf_counter()
            yield _frame(number, number / fps, np.asarray(load_picture(file, max_pixels).convert("RGB")), began)


def _frame(number: int, moment: float, pixels: Pixels, began: float) -> Frame:
    return Frame(number, moment, pixels, time.monotonic(), (time.perf_counter() - began) * 1e3)
