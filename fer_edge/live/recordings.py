"""Sources that wait for nobody: files, animations, folders of frames, and what comes through standard input. Every frame, in
order, none dropped."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import ImageSequence

from fer_edge.decode import MAX_PIXELS, UNREADABLE, Budget, checked_size, decoding_bytes, opened, reason
from fer_edge.errors import ImageError, SourceError
from fer_edge.image import IMAGE_SUFFIXES, load_picture, turn_of
from fer_edge.video import frame_files, upright

from .decoder import Decoder
from .frames import Frame, Gap, Pixels, Size

FOLDER_FPS = 25.0
"""Pictures of a folder a second, unless it is said."""

_ANIMATION_STEP = 0.1
"""Seconds of a picture of an animation that says none, as browsers show it."""

_JITTER = 1.0
"""Seconds that a time may fall back and be taken for a muxer's slip; more is a new beginning."""

_PICTURE_STARTS = (b"GIF8", b"\x89PNG", b"BM", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")


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
        self._begin(_frames_of(self._decoder, self._over))


def _frames_of(decoder: Decoder, over: threading.Event) -> Iterator[Frame]:
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
        self._begin(self._read(files, fps, max_pixels))

    @staticmethod
    def _read(files: list[Path], fps: float, max_pixels: int) -> Iterator[Frame]:
        for number, file in enumerate(files):
            began = time.perf_counter()
            yield _frame(number, number / fps, np.asarray(load_picture(file, max_pixels).convert("RGB")), began)


def _frame(number: int, moment: float, pixels: Pixels, began: float) -> Frame:
    return Frame(number, moment, pixels, time.monotonic(), (time.perf_counter() - began) * 1e3)


def is_picture(path: Path) -> bool:
    """Whether Pillow is to read a file: by its first bytes, or its ending."""
    with path.open("rb") as file:
        start = file.read(16)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    brand = start[4:8] == b"ftyp" and start[8:12] in _PICTURE_BRANDS
    return start.startswith(_PICTURE_STARTS) or webp or brand or path.suffix.lower() in IMAGE_SUFFIXES


RAW_BYTES = {"rgb24": 3.0, "bgr24": 3.0, "gray8": 1.0, "yuv420p": 1.5, "nv12": 1.5, "yuyv422": 2.0}
"""Formats of raw frames -> bytes per pixel, where the sides are even."""


@dataclass(frozen=True)
class RawFormat:
    """Frames without a container: ``size`` (width, height), ``pixels`` a name of RAW_BYTES, ``fps`` a second."""

    size: Size
    pixels: str
    fps: float

    @property
    def bytes(self) -> int:
        """Of one frame."""
        return int(self.size[0] * self.size[1] * RAW_BYTES[self.pixels])


class Piped(Recording):
    """Every frame that comes through a file descriptor: a container as libav knows it (MPEG-TS, Matroska, YUV4MPEG, MJPEG),
    or raw frames. The writer is held back while nobody takes them. Raises SourceError, also when the last raw frame is cut
    short."""

    def __init__(self, descriptor: int, name: str, *, raw: RawFormat | None = None, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(name)
        if os.isatty(descriptor):
            raise SourceError(f"{name} is a terminal; pipe a video into it, or name a file")
        self._frames = self._read(descriptor, raw, max_pixels)

    def _read(self, descriptor: int, raw: RawFormat | None, max_pixels: int) -> Iterator[Frame]:
        pipe = _pipe(descriptor, self.name, self._over)
        options, container, buffer = {"protocol_whitelist": "data"}, None, 1 << 16
        if raw is not None:
            container, buffer = "rawvideo", raw.bytes
            wide, high = raw.size
            options |= {"video_size": f"{wide}x{high}", "pixel_format": raw.pixels, "framerate": f"{raw.fps:g}"}
        elif not isinstance(pipe, _File) and pipe.starts_with(
            b"\xff\xd8\xff"
        ):  # libav does not dare to guess it before the end
            container = "mjpeg"
        try:
            decoder = Decoder(pipe, self.name, format=container, options=options, buffer=buffer, max_pixels=max_pixels)
            self.seconds = decoder.seconds
            yield from _frames_of(decoder, self._over)
        except SourceError:
            if self._over.is_set():
                return
            self._check(pipe.count, raw)
            raise
        if not self._over.is_set():
            self._check(pipe.count, raw)

    def _check(self, count: int, raw: RawFormat | None) -> None:
        if count == 0:
            raise SourceError(f"{self.name} gave nothing")
        if raw is not None and count % raw.bytes:
            whole, rest = divmod(count, raw.bytes)
            raise SourceError(
                f"{self.name} ended in the middle of a frame: after {whole} frames there are {rest} bytes of {raw.bytes} "
                f"({raw.size[0]} x {raw.size[1]} {raw.pixels})"
            )


class _Pipe:
    """A file descriptor as libav reads it: a read that waits ends when the source is closed."""

    def __init__(self, descriptor: int, name: str, over: threading.Event) -> None:
        self.name, self.count = name, 0
        self._descriptor, self._over, self._head = descriptor, over, b""

    def read(self, count: int) -> bytes:
        """At most so many bytes; none at the end."""
        if self._head:
            head, self._head = self._head[:count], self._head[count:]
            return head
        while not self._over.is_set():
            if select.select([self._descriptor], [], [], 0.2)[0]:
                data = os.read(self._descriptor, count)
                self.count += len(data)
                return data
        return b""

    def starts_with(self, start: bytes) -> bool:
        """Whether the first bytes are these; they will be read yet."""
        head = b""
        while len(head) < len(start) and (piece := self.read(len(start) - len(head))):
            head += piece
        self._head = head
        return head == start


class _File(_Pipe):
    """A file that is standard input: containers may have their table at the end."""

    def seek(self, offset: int, whence: int) -> int:
        """As of files."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """As of files."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)


def _pipe(descriptor: int, name: str, over: threading.Event) -> _Pipe:
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return (_File if regular else _Pipe)(descriptor, name, over)
