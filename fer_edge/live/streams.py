"""Sources that wait for nobody and may be lost: network streams and cameras. A thread reads; the newest frame wins."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import SourceError, UsageError

from .decoder import Decoder, RefusedError, Turns
from .frames import Frame, Gap, Size
from .recordings import MediumTime

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "rtp", "rtmp", "rtmps", "srt")
"""Kinds of addresses; which of them libav opens depends on how it was built."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 1.0
"""Seconds between two tries to reach a lost source; they double."""


@dataclass(frozen=True)
class Patience:
    """How long a live source is waited for, in seconds. ``wait``: for its first frame; ``stall``: for a frame after another
    one, until it counts as lost; ``give_up``: for a lost source, None: for ever. Raises UsageError."""

    wait: float = 20.0
    stall: float = 5.0
    give_up: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("wait", self.wait), ("stall", self.stall), ("give_up", self.give_up)):
            if value is not None and not 0 < value <= 1e6:
                raise UsageError(f"{name} must be a number of seconds above 0; got {value:g}")


Connect = Callable[[tuple[float, float], Turns, threading.Event], Decoder]
"""Opens a source; takes the seconds to wait for the opening and for each packet, what is known of turns, and what is set
when the source is closed."""

OPENING = 10.0
"""Seconds that one try to open a source may take: a camera that starts its encoder takes some."""


class LiveSource:
    """The newest frame of what a thread reads; ``connect`` opens it, as often as it is lost. Iterated once, closed from
    whichever thread: the iteration then ends at once, and the thread as soon as libav lets go, OPENING seconds at most.

    On a loss there is one :class:`Gap`; then the source is tried again, after pauses that double from FIRST_PAUSE to
    LONGEST_PAUSE. ``time`` of a frame is that of its arrival, since the first one's. ``ends``: "always" for what comes but
    once, as through a pipe; "recording" where a source that tells its length is a recording: every frame in order, at its
    own time, and not tried again after its end.

    Raises SourceError while iterating: for what no waiting mends, when no frame came within ``patience.wait``, and when a
    lost source stays away for longer than ``patience.give_up``."""

    def __init__(
        self, name: str, connect: Connect, patience: Patience, *, ends: Literal["never", "recording", "always"] = "never"
    ) -> None:
        self.name, self.live, self.dropped = name, True, 0
        self.seconds: float | None = None
        self._connect, self._patience, self._ends = connect, patience, ends
        self._turns = Turns()
        self._changed = threading.Condition()
        self._items: deque[Frame | Gap] = deque()
        self._over, self._done = threading.Event(), False
        self._failure: BaseException | None = None
        self._number = 0
        self._began: float | None = None
        self._lost_at: float | None = time.monotonic()
        self._last, self._reason = 0.0, "nothing has come"
        self._thread = threading.Thread(target=self._read, name=f"frames of {name}", daemon=True)

    def __iter__(self) -> Iterator[Frame | Gap]:
        if self._over.is_set():
            return
        self._lost_at = time.monotonic()
        self._thread.start()
        try:
            while (item := self._next()) is not None:
                yield item
        finally:
            self.close()
            self._thread.join(1.0)  # one that hangs in a connect ends by itself

    def close(self) -> None:
        """The iteration ends at once."""
        self._over.set()
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _next(self) -> Frame | Gap | None:
        """What comes next; None at the end."""
        with self._changed:
            while not self._over.is_set():
                if self._items:
                    item = self._items.popleft()
                    self._changed.notify_all()
                    return item
                if self._failure is not None:
                    raise self._failure
                if self._done:
                    break
                self._check_patience()
                self._changed.wait(0.2)
            self.dropped += sum(isinstance(item, Frame) for item in self._items)
            self._items.clear()
            return None

    def _check_patience(self) -> None:
        if self._lost_at is None:
            # Not every wait of libav ends by itself: that for a camera's driver does not.
            if time.monotonic() - self._last > 1.5 * self._patience.stall:
                self._lose(f"no picture for {1.5 * self._patience.stall:g} s")
            return
        passed, patience = time.monotonic() - self._lost_at, self._patience
        if self._began is None and passed > patience.wait:
            raise SourceError(f"{self._why()} (no frame within {patience.wait:g} s)")
        if self._began is not None and patience.give_up is not None and passed > patience.give_up:
            raise SourceError(f"{self._why()} (it did not come back within {patience.give_up:g} s)")

    def _why(self) -> str:
        return self._reason if self._reason.startswith(self.name) else f"{self.name}: {self._reason}"

    # What follows runs on the thread.

    def _read(self) -> None:
        try:
            self._keep_reading()
        except BaseException as error:  # whoever iterates gets it
            self._fail(error)

    def _keep_reading(self) -> None:
        pause = FIRST_PAUSE
        while not self._over.is_set():
            before = self._number
            try:
                if self._follow():
                    break
                reason = f"{self.name}: the stream has ended"
            except SourceError as error:
                if self._ends == "always" or (self._began is None and isinstance(error, RefusedError)):
                    self._fail(error)
                    return
                reason = str(error)
            if self._number > before:
                pause = FIRST_PAUSE
            self._lose(reason)
            self._over.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _follow(self) -> bool:
        """Read until the source ends; whether it will not come back."""
        with self._connect((OPENING, self._patience.stall), self._turns, self._over) as decoder:
            recording = self._ends == "recording" and decoder.seconds is not None
            clock = MediumTime(decoder.rate) if recording else None
            if recording:
                self.live, self.seconds = False, decoder.seconds
            skipped = 0
            for decoded in decoder.pictures():
                if self._over.is_set():
                    break
                self._skip(decoder.skipped - skipped)
                skipped = decoder.skipped
                if self._began is None:
                    self._began = decoded.arrived
                moment = decoded.arrived - self._began if clock is None else clock.of(decoded.time)
                frame = Frame(self._number, moment, decoded.picture, decoded.arrived, decoded.decode_ms)
                self._put(frame, wait=recording)
            return recording or self._ends == "always"

    def _skip(self, count: int) -> None:
        with self._changed:
            self._number += count
            self.dropped += count

    def _put(self, frame: Frame, wait: bool) -> None:
        with self._changed:
            while wait and self._items and not self._over.is_set():
                self._changed.wait(0.2)
            if self._items and isinstance(self._items[-1], Frame):
                self._items.pop()
                self.dropped += 1
            self._items.append(frame)
            self._number += 1
            self._lost_at, self._last = None, frame.arrived
            self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._reason = reason
            if self._lost_at is None:
                now = time.monotonic()
                self._lost_at = now
                # Who does not keep up with losses has one of them, and the frame before.
                while any(isinstance(item, Gap) for item in self._items):
                    self.dropped += isinstance(self._items.pop(), Frame)
                self._items.append(Gap(now - (self._began or now), reason.removeprefix(f"{self.name}: ")))
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()


def open_stream(address: str, patience: Patience, max_pixels: int = MAX_PIXELS) -> LiveSource:
    """A network stream. One that is a file of known length behind http(s) is a recording: every frame, until its end.
    Nothing is connected before the iteration begins. Raises UsageError."""
    name, scheme = public_address(address), address.partition("://")[0].lower()
    options = {"analyzeduration": "500000"}
    if scheme in ("rtsp", "rtsps"):
        options |= {"rtsp_flags": "prefer_tcp", "timeout": f"{2e6 * patience.stall:.0f}"}
    elif scheme == "udp":
        options |= {"overrun_nonfatal": "1"}  # a burst that does not fit is lost, and not the stream

    def connect(wait: tuple[float, float], turns: Turns, over: threading.Event) -> Decoder:
        return Decoder(address, name, options=options, wait=wait, max_pixels=max_pixels, turns=turns)

    return LiveSource(name, connect, patience, ends="recording" if scheme in ("http", "https") else "never")


def public_address(address: str) -> str:
    """An address as it may be shown: without user, password, query and fragment, and without what looks like a password in
    its path (some cameras want it there). Raises UsageError."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        raise UsageError(f"{address.partition('://')[0]}://... is no address: its host or port cannot be read") from None
    if "@" in address.partition("://")[2].removeprefix(parts.netloc) and "@" not in parts.netloc:
        return f"{parts.scheme}://..."  # what should have been percent-encoded may be a part of a password
    host = f"[{host}]" if ":" in host else host
    path = re.sub(r"(?i)((?:pass\w*|pwd|token|key|secret|auth\w*)[=_:])[^/&_;]*", r"\1...", parts.path)
    return f"{parts.scheme}://{host}{port}{path}"


def open_camera(device: str, patience: Patience, *, size: Size | None, fps: float | None, max_pixels: int) -> LiveSource:
    """A camera of this box, by Video4Linux. ``size`` (width, height) and ``fps`` are asked for, and one that does not have
    them is refused; None: as it stands. Above 640 x 480 MJPEG is tried first: USB 2 has no room for more than 10 raw
    frames a second there. It is looked for at once, and opened when the iteration begins."""
    options = {}
    if size is not None:
        options["video_size"] = f"{size[0]}x{size[1]}"
    if fps is not None:
        options["framerate"] = f"{fps:g}"
    raw, mjpeg = options, {**options, "input_format": "mjpeg"}
    large = size is not None and size[0] * size[1] > 640 * 480
    ways = [mjpeg, raw] if large else [raw, mjpeg] if options else [raw]

    def connect(wait: tuple[float, float], turns: Turns, over: threading.Event) -> Decoder:
        how: dict[str, Any] = {"wait": wait, "max_pixels": max_pixels, "turns": turns}
        refusal: SourceError | None = None
        for way in ways:
            try:
                decoder = Decoder(device, device, format="v4l2", options=way, borrows=True, **how)
            except SourceError as error:
                refusal = RefusedError(str(error))
                continue
            if not (problem := _unlike(decoder, size, fps)):
                return decoder
            decoder.close()
            refusal = RefusedError(f"{device} {problem}")
        assert refusal is not None
        raise refusal

    if not Path(device).exists():
        there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise SourceError(f"{device} does not exist; cameras of this box: {there}")
    return LiveSource(device, connect, patience)


def _unlike(camera: Decoder, size: Size | None, fps: float | None) -> str:
    """What is not as it was asked for; drivers take the nearest without a word."""
    if size is not None and camera.size != size:
        return f"has no {size[0]} x {size[1]} pixels; the nearest it has are {camera.size[0]} x {camera.size[1]}"
    if fps is not None and camera.rate is not None and abs(camera.rate - fps) > 0.1 * fps:
        return f"gives {camera.rate:g} frames a second at this size, and not {fps:g}"
    return ""
