"""An open video, whatever it comes from: its pictures one after the other, by PyAV."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fer_edge.decode import MAX_PIXELS, Budget
from fer_edge.errors import SourceError
from fer_edge.video import VIDEO_PIXEL_BYTES, square_size, turn_of_frame

from .frames import ArrayPicture, Picture, Pixels, Size

_HTTP_REFUSALS = ("HTTPUnauthorizedError", "HTTPForbiddenError", "HTTPNotFoundError", "HTTPBadRequestError")
_SWAPS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE)


class Readable(Protocol):
    """What libav needs of a file that we read for it."""

    name: str

    def read(self, count: int) -> bytes: ...


class Converter:
    """From a decoder's planes to RGB; keeps libswscale's tables from frame to frame. From whichever thread."""

    def __init__(self) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        # Since 17 libswscale starts a thread for each processor unless it is told; before, it had one.
        self._options = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
        self._new_frame = av.VideoFrame.from_ndarray
        self._whole: Any = VideoReformatter()
        self._small: Any = VideoReformatter()
        self._part: Any = VideoReformatter()
        self._lock = threading.Lock()

    def rgb(self, frame: Any) -> Pixels:
        """The whole frame, RGB."""
        with self._lock:
            made: Pixels = self._whole.reformat(frame, format="rgb24", **self._options).to_ndarray()
        return made

    def shrunk(self, frame: Any, size: Size) -> Pixels:
        """The whole frame in a smaller size, RGB."""
        if frame.interlaced_frame:  # libswscale would shrink each field by itself
            return ArrayPicture(self.rgb(frame)).shrunk(size)
        with self._lock:
            small = self._small.reformat(frame, *size, "rgb24", interpolation="AREA", **self._options)
            made: Pixels = small.to_ndarray()
        return made

    def part(self, frame: Any, left: int, top: int, right: int, bottom: int) -> Pixels | None:
        """A part of the frame, RGB, to the pixel as it lies in the whole; None where that has to be made. Two by two pixels
        share their colour (planes of 4:2:0), so the part begins and ends between two such squares."""
        x0, y0, x1, y1 = left & ~1, top & ~1, right + 1 & ~1, bottom + 1 & ~1
        small = 4 * (x1 - x0) * (y1 - y0) < frame.width * frame.height and x1 <= frame.width and y1 <= frame.height
        kind = frame.format.name
        if not small or kind not in ("yuv420p", "yuvj420p") or frame.interlaced_frame:
            return None
        wide, high = x1 - x0, y1 - y0
        planes = np.empty((high * 3 // 2, wide), np.uint8)
        for plane, start, step in zip(frame.planes, (0, high * wide, high * wide * 5 // 4), (1, 2, 2), strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            lying = planes.reshape(-1)[start : start + high * wide // step**2].reshape(high // step, wide // step)
            lying[:] = rows[y0 // step : y1 // step, x0 // step : x1 // step]
        part = self._new_frame(planes, kind)
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        with self._lock:
            made: Pixels = self._part.reformat(part, format="rgb24", **self._options).to_ndarray()
        return made[top - y0 : bottom - y0, left - x0 : right - x0]


class DecodedPicture:
    """A frame of libav; its display matrix's turn is applied to whatever is asked of it. ``aspect``: width of a stored pixel
    by its height, None: not told; pixels that are given are square."""

    __slots__ = ("_converter", "_frame", "_lying", "_turn", "size")

    def __init__(self, frame: Any, turn: Image.Transpose | None, converter: Converter, aspect: Any = None) -> None:
        self._frame, self._turn, self._converter = frame, turn, converter
        self._lying: Size = square_size((int(frame.width), int(frame.height)), aspect)
        self.size: Size = self._lying[::-1] if turn in _SWAPS else self._lying

    def rgb(self) -> Pixels:
        """uint8 (H, W, 3) RGB, upright."""
        pixels = self._converter.rgb(self._frame)
        if self._lying != (self._frame.width, self._frame.height):
            import cv2

            pixels = cv2.resize(pixels, self._lying, interpolation=cv2.INTER_LINEAR)
        return _turned(pixels, self._turn)

    def shrunk(self, size: Size) -> Pixels:
        """uint8 (height, width, 3) RGB, upright."""
        return _turned(self._converter.shrunk(self._frame, size[::-1] if self._turn in _SWAPS else size), self._turn)

    def part(self, left: int, top: int, right: int, bottom: int) -> Pixels | None:
        """A part of the upright picture; None where the whole has to be made."""
        if self._turn is not None or self._lying != (self._frame.width, self._frame.height):
            return None
        return self._converter.part(self._frame, left, top, right, bottom)


def _turned(pixels: Pixels, turn: Image.Transpose | None) -> Pixels:
    if turn is None:
        return pixels
    import cv2

    kind = Image.Transpose
    if turn is kind.TRANSPOSE:
        made = cv2.transpose(pixels)
    elif turn is kind.TRANSVERSE:
        made = cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
    elif turn is kind.FLIP_LEFT_RIGHT:
        made = cv2.flip(pixels, 1)
    elif turn is kind.FLIP_TOP_BOTTOM:
        made = cv2.flip(pixels, 0)
    else:  # Pillow turns to the left, OpenCV to the right
        made = cv2.rotate(
            pixels,
            {
                kind.ROTATE_90: cv2.ROTATE_90_COUNTERCLOCKWISE,
                kind.ROTATE_180: cv2.ROTATE_180,
                kind.ROTATE_270: cv2.ROTATE_90_CLOCKWISE,
            }[turn],
        )
    upright: Pixels = made
    return upright


@dataclass(frozen=True)
class Decoded:
    """One picture. ``time``: seconds of the medium as it stands there, None where none does; ``arrived``: time.monotonic()
    when its last byte was there; ``decode_ms``: milliseconds of decoding, of a file with reading."""

    picture: Picture
    time: float | None
    arrived: float
    decode_ms: float


class Turns:
    """What frames' display matrices ask for: looked at once for each angle, also of a source that comes back."""

    def __init__(self) -> None:
        self._known: dict[int, Image.Transpose | None] = {}

    def of(self, frame: Any, decoder: str) -> Image.Transpose | None:
        """The turn of a frame that a decoder of this name gave."""
        angle = frame.rotation
        if angle not in self._known:
            self._known[angle] = turn_of_frame(frame, decoder)
        return self._known[angle]


MOST_LATE, HARDLY_LATE = 2.0, 0.5
"""Seconds that a live picture may be read after it came; and what counts as caught up."""


class Backlog:
    """Tells what to leave out where a live stream comes faster than this box decodes it: else the pictures would wait in
    the network's buffers, and answers be older and older. What is too late is left out up to a key frame that is not.

    Time stamps are held against the clock. A stream whose pictures stay late though they are not decoded is late by itself,
    and its time stamps are none to go by: after two such trials everything is decoded."""

    def __init__(self) -> None:
        self._base: float | None = None
        self._since, self._lag, self._trials = 0.0, 0.0, 0
        self._skipping = False

    def leaves_out(self, stamp: float | None, arrived: float, key: bool) -> bool:
        """Whether a packet is to be left out. ``stamp``: its time in seconds of the stream; ``arrived``: of our clock;
        ``key``: it can be decoded without others."""
        if stamp is None or self._trials == 2:
            return False
        offset = arrived - stamp
        if self._base is None or offset < self._base or offset - self._base > 60:  # stamps may begin anew
            self._base = offset
        lag = offset - self._base
        if not self._skipping:
            if lag <= MOST_LATE:
                return False
            self._skipping, self._since, self._lag = True, arrived, lag
        if not key:
            return True
        if lag > HARDLY_LATE:
            if arrived - self._since < 0.5 or lag < self._lag / 2:
                return True
            self._trials, self._base = self._trials + 1, offset
        else:
            self._trials = 0
        self._skipping = False
        return False


class RefusedError(SourceError):
    """What no waiting mends."""


class Decoder:
    """An open container, and its first stream of video. ``medium``: an address that libav understands, or a file of ours;
    ``name`` for messages; ``wait``: seconds to wait for the opening, and for each packet after it, None: for ever;
    ``seconds``: its length, if it says one; ``rate``: its pictures a second, if it says so. ``broken``: packets that could
    not be decoded, since the first picture; ``broken_at``: seconds of the medium of the picture before the first of them.
    ``borrows``: its packets lie in memory that goes when it is closed, so that pixels are made at once. ``skipped``: packets
    that were left out, with ``wait``, because they were read too late (:class:`Backlog`).

    Raises SourceError of one line, without the address: that may hold a password."""

    def __init__(
        self,
        medium: str | Readable,
        name: str,
        *,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        wait: tuple[float, float] | None = None,
        buffer: int = 1 << 16,
        max_pixels: int = MAX_PIXELS,
        turns: Turns | None = None,
        borrows: bool = False,
    ) -> None:
        import av

        self.name, self.broken, self.broken_at, self.skipped = name, 0, 0.0, 0
        self._turns, self._converter = turns or Turns(), Converter()
        self._stall, self._borrows = wait[1] if wait else None, borrows
        self._seen: float | None = None
        self._most = Budget(max_pixels).bytes // VIDEO_PIXEL_BYTES
        self._max_pixels = max_pixels
        try:
            self._container = av.open(
                medium,
                format=format,
                container_options=dict(options or {}),  # as plain options they would be laid over what a camera says, too
                timeout=wait,
                buffer_size=buffer,
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _refusal(name, error, wait[0] if wait else 0.0) from None  # the error's own text has the address
        try:
            self._stream = self._checked()
        except BaseException:
            self._container.close()
            raise
        rate = self._stream.guessed_rate or self._stream.average_rate
        self.rate = float(rate) if rate else None
        self._codec = self._stream.codec_context.name
        self.size: Size = (self._stream.codec_context.width, self._stream.codec_context.height)
        length = self._container.duration
        self.seconds = length / av.time_base if length and length > 0 else None

    def _checked(self) -> Any:
        videos = [stream for stream in self._container.streams.video if not _is_cover(stream)]
        if not videos:
            sound = "; it has sound alone" if self._container.streams.audio else ""
            raise RefusedError(f"{self.name} has no video{sound}")
        stream = videos[0]
        if stream.codec_context is None:
            raise RefusedError(f"{self.name}: PyAV here cannot decode its video")
        stored = (stream.codec_context.width, stream.codec_context.height)
        self._check_size(stored)
        self._check_size(square_size(stored, stream.sample_aspect_ratio))
        # The size may change on the way; decoders count their margins, too.
        stream.codec_context.options = {"max_pixels": str(self._most + self._most // 10 + (1 << 16))}
        # One thread: frame threads hold pictures back, and the processors belong to the detector.
        stream.codec_context.thread_count = 1
        return stream

    def _check_size(self, size: Size) -> None:
        if size[0] * size[1] > self._most:
            raise RefusedError(
                f"{self.name} has frames of {size[0]} x {size[1]} pixels; the limit is {self._most:,} pixels: make it "
                f"smaller, or raise max_pixels (now {self._max_pixels:,})"
            )

    def pictures(self) -> Iterator[Decoded]:
        """Every picture, in the order in which they are shown. Raises SourceError when reading fails, or waits too long;
        a packet that cannot be decoded is counted and left out."""
        import av

        began, last = time.perf_counter(), time.monotonic()
        packets = self._container.demux() if self._stall is not None else self._container.demux(self._stream)
        backlog = None if self._stall is None or self._stream.codec_context.codec.intra_only else Backlog()
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise _refusal(self.name, error, self._stall or 0.0) from None
            if packet is None:
                return
            arrived, is_data = time.monotonic(), packet.size > 0
            if self._stall is not None:
                began = time.perf_counter()
            decoded: list[Decoded] = []
            if packet.stream.index == self._stream.index:
                stamp = None if packet.dts is None else float(packet.dts * packet.time_base)
                if backlog is not None and backlog.leaves_out(stamp, arrived, packet.is_keyframe):
                    self.skipped += 1
                else:
                    decoded = self._pictures_of(packet, arrived, began)
            del packet  # a camera's lies in its driver's memory, which goes when the device is closed
            for one in decoded:
                last = arrived
                yield one
                began = time.perf_counter()
            # Sound may go on where the picture stands still.
            if self._stall is not None and is_data and arrived - last > self._stall:
                raise SourceError(f"{self.name}: no picture for {self._stall:g} s")

    def _pictures_of(self, packet: Any, arrived: float, began: float) -> list[Decoded]:
        import av

        try:
            frames = self._decode(packet)
        except (av.error.FFmpegError, ValueError):
            if self._seen is not None:
                self.broken_at = self.broken_at if self.broken else self._seen
                self.broken += 1
            return []
        decoded = []
        for frame in frames:
            moment = frame.time
            self._seen = (self._seen or 0.0) if moment is None else moment
            picture: Picture
            if self._borrows:
                picture = ArrayPicture(self._converter.rgb(frame))
            else:
                turn, aspect = self._turns.of(frame, self._codec), self._stream.sample_aspect_ratio
                picture = DecodedPicture(frame, turn, self._converter, aspect)
                self._check_size(picture.size)  # it may change on the way
            decoded.append(Decoded(picture, moment, arrived, (time.perf_counter() - began) * 1e3))
            began = time.perf_counter()
        return decoded

    def _decode(self, packet: Any) -> list[Any]:
        frames: list[Any] = packet.decode()
        return frames

    def close(self) -> None:
        """Close it; by the thread that reads."""
        self._container.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the one picture of an audio file (libavformat's AV_DISPOSITION_ATTACHED_PIC)."""
    disposition = stream.disposition
    return bool(int(getattr(disposition, "value", disposition)) & 0x400)


def _refusal(name: str, error: BaseException, waited: float) -> SourceError:
    """What to tell of an error of libav; its text would name the address, its ``strerror`` does not."""
    import av

    if isinstance(error, av.error.ExitError):
        return SourceError(f"{name}: no picture for {waited:g} s")
    text = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, av.error.ProtocolNotFoundError):
        return RefusedError(f"{name}: the FFmpeg in PyAV here does not know this kind of address")
    lasting = (*_HTTP_REFUSALS, "InvalidDataError", "FileNotFoundError", "PermissionError", "DemuxerNotFoundError")
    kind = RefusedError if type(error).__name__ in lasting else SourceError
    return kind(f"{name}: {text}")
