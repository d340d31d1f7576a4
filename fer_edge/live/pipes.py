"""What comes through standard input: a container, or raw frames."""

from __future__ import annotations

import os
import re
import select
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import SourceError, UsageError

from .decoder import Decoded, Decoder, Turns
from .frames import Frame, Size
from .recordings import Recording, frames_of

RAW_BYTES = {"rgb24": 3.0, "bgr24": 3.0, "gray8": 1.0, "yuv420p": 1.5, "nv12": 1.5, "yuyv422": 2.0}
"""Formats of raw frames -> bytes per pixel, where the sides are even."""

_RAW = re.compile(r"(\d{1,5})x(\d{1,5}):(\w+)@(\d{1,4}(?:\.\d+)?)")


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

    def __str__(self) -> str:
        return f"{self.size[0]} x {self.size[1]} {self.pixels}"


def raw_format(text: str) -> RawFormat:
    """A text as 640x480:rgb24@30. Raises UsageError."""
    wide, high, pixels, fps = match.groups() if (match := _RAW.fullmatch(text)) else ("0", "0", "", "0")
    if pixels not in RAW_BYTES or not (int(wide) and int(high) and float(fps)):
        formats = ", ".join(RAW_BYTES)
        raise UsageError(f"raw frames are told as WIDTHxHEIGHT:FORMAT@FPS with a format of {formats}; got {text!r}")
    if RAW_BYTES[pixels] not in (1.0, 3.0) and (int(wide) % 2 or int(high) % 2):
        raise UsageError(f"raw frames of {pixels} have even sides; got {wide} x {high}")
    return RawFormat((int(wide), int(high)), pixels, float(fps))


class PipeDecoder(Decoder):
    """A decoder of what comes through a file descriptor: a container as libav knows it (MPEG-TS, Matroska, YUV4MPEG, MJPEG),
    or raw frames. ``over``: it ends, though it waits. Raises SourceError as :class:`Decoder`, and where nothing came or the
    last raw frame is cut short."""

    def __init__(
        self,
        descriptor: int,
        name: str,
        over: threading.Event,
        raw: RawFormat | None,
        *,
        wait: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        turns: Turns | None = None,
    ) -> None:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._pipe = (_File if regular else _Pipe)(descriptor, name, over)
        self._over, self._raw = over, raw
        options, kind, size = {"protocol_whitelist": "data"}, None, 1 << 16
        if raw is not None:
            kind, size = "rawvideo", raw.bytes
            wide, high = raw.size
            options |= {"video_size": f"{wide}x{high}", "pixel_format": raw.pixels, "framerate": f"{raw.fps:g}"}
        elif not regular and self._pipe.starts_with(b"\xff\xd8\xff"):
            kind = "mjpeg"  # libav does not dare to guess it before it has seen the end
        try:
            how: dict[str, Any] = {"wait": wait, "max_pixels": max_pixels, "turns": turns}
            super().__init__(self._pipe, name, format=kind, options=options, buffer=size, **how)
        except SourceError:
            self._check(name)
            raise

    def pictures(self) -> Iterator[Decoded]:
        """As of a decoder."""
        try:
            yield from super().pictures()
        except SourceError:
            self._check(self.name)
            if not self._over.is_set():
                raise
        else:
            self._check(self.name)

    def _check(self, name: str) -> None:
        count, raw = self._pipe.count, self._raw
        if self._over.is_set():
            return
        if count == 0:
            raise SourceError(f"{name} gave nothing")
        if raw is not None and count % raw.bytes:
            whole, rest = divmod(count, raw.bytes)
            raise SourceError(
                f"{name} ended in the middle of a frame: after {whole} frames there are {rest} bytes of {raw.bytes} ({raw})"
            )


class Piped(Recording):
    """Every frame that comes through a file descriptor, at its own time. The writer is held back while nobody takes them.
    Raises SourceError as :class:`PipeDecoder`."""

    def __init__(self, descriptor: int, name: str, *, raw: RawFormat | None = None, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(name)
        refuse_terminal(descriptor, name)
        self._frames = self._read(descriptor, raw, max_pixels)

    def _read(self, descriptor: int, raw: RawFormat | None, max_pixels: int) -> Iterator[Frame]:
        try:
            decoder = PipeDecoder(descriptor, self.name, self._over, raw, max_pixels=max_pixels)
        except SourceError:
            if self._over.is_set():
                return
            raise
        self.seconds = decoder.seconds
        yield from frames_of(decoder, self._over)


def refuse_terminal(descriptor: int, name: str) -> None:
    """Raise SourceError where a person would have to type a video."""
    if os.isatty(descriptor):
        raise SourceError(f"{name} is a terminal; pipe a video into it, or name a file")


class _Pipe:
    """A file descriptor as libav reads it: a read that waits ends when the source is closed. ``count``: bytes so far."""

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
