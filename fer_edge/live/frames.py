"""What a source gives: frames whose pixels are made when somebody asks for them, and gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


class Picture(Protocol):
    """A picture as a decoder left it. ``size``: (width, height) of the upright picture."""

    @property
    def size(self) -> Size: ...

    def rgb(self) -> Pixels:
        """uint8 (H, W, 3) RGB, upright."""
        ...

    def shrunk(self, size: Size) -> Pixels:
        """uint8 (height, width, 3) RGB, upright, averaged down to ``size`` = (width, height)."""
        ...

    def part(self, left: int, top: int, right: int, bottom: int) -> Pixels | None:
        """As ``rgb()[top:bottom, left:right]``; None where that is the quicker way."""
        ...


@dataclass(frozen=True)
class ArrayPicture:
    """Pixels that are there already, uint8 (H, W, 3) RGB."""

    pixels: Pixels

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def rgb(self) -> Pixels:
        """The pixels."""
        return self.pixels

    def shrunk(self, size: Size) -> Pixels:
        """RGB of a smaller size."""
        import cv2

        small: Pixels = cv2.resize(np.ascontiguousarray(self.pixels), size, interpolation=cv2.INTER_AREA)
        return small

    def part(self, left: int, top: int, right: int, bottom: int) -> Pixels | None:
        """They are there."""
        return None


class Frame:
    """``number`` counts what the source delivered, from 0, dropped frames included; ``time`` in seconds of the medium (of a
    live source: since the first frame); ``arrived``: time.monotonic() when it came; ``decode_ms``: milliseconds of work on
    it until then, reading and decoding, without waiting.

    ``pixels`` is an array, uint8 (H, W, 3) RGB, or a picture whose pixels are made when they are first asked for."""

    __slots__ = ("_pixels", "arrived", "decode_ms", "number", "picture", "time")

    def __init__(self, number: int, time: float, pixels: Pixels | Picture, arrived: float, decode_ms: float = 0.0) -> None:
        self.number, self.time, self.arrived, self.decode_ms = number, time, arrived, decode_ms
        self.picture: Picture = ArrayPicture(pixels) if isinstance(pixels, np.ndarray) else pixels
        self._pixels: Pixels | None = None

    @property
    def size(self) -> Size:
        """(width, height) of the upright picture, without making its pixels."""
        return self.picture.size

    @property
    def pixels(self) -> Pixels:
        """uint8 (H, W, 3) RGB, upright; made once. From whichever thread."""
        if self._pixels is None:
            self._pixels = self.picture.rgb()
        return self._pixels

    def shrunk(self, size: Size) -> Pixels:
        """uint8 (height, width, 3) RGB of the whole picture, averaged down to ``size`` = (width, height): for detectors, and
        straight from what the decoder left, which is quicker than by way of the pixels."""
        if self.size == (2 * size[0], 2 * size[1]):  # OpenCV halves pixels quicker than libswscale shrinks planes
            return ArrayPicture(self.pixels).shrunk(size)
        return self.picture.shrunk(size)

    def part(self, left: int, top: int, right: int, bottom: int) -> Pixels:
        """As ``pixels[top:bottom, left:right]``, for what lies in the picture; a small part of a large frame is made without
        the whole of it."""
        part = self.picture.part(left, top, right, bottom) if self._pixels is None else None
        return self.pixels[top:bottom, left:right] if part is None else part

    def __repr__(self) -> str:
        return f"Frame({self.number}, {self.time:.3f} s, {self.size[0]} x {self.size[1]})"


@dataclass(frozen=True)
class Gap:
    """A live source was lost, or has come back, and time has passed unseen: tracks end here. ``reason``: what happened."""

    time: float
    reason: str


class Source(Protocol):
    """Frames, one after the other; iterated once. ``name``: without credentials; ``live``: frames that nobody was ready for
    are dropped, and counted in ``dropped``; ``seconds``: length of the medium, None where it has none or none is known."""

    name: str
    live: bool
    seconds: float | None

    @property
    def dropped(self) -> int:
        """Frames that nobody saw."""
        ...

    def __iter__(self) -> Iterator[Frame | Gap]: ...

    def close(self) -> None:
        """Stop reading, from whichever thread; the iteration ends."""
        ...
