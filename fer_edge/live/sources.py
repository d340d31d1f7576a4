"""Where frames come from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fer_edge.console import need_extra
from fer_edge.errors import ImageError


@dataclass(frozen=True)
class Frame:
    """``pixels`` uint8 (H, W, 3) RGB, upright; ``number`` counts what the source delivered, from 0, dropped frames
    included; ``time`` in seconds of the medium (of a live source: since the first frame); ``arrived``: time.monotonic()
    when it came; ``decode_ms``: milliseconds of work on it until then, reading and decoding, without waiting."""

    number: int
    time: float
    pixels: NDArray[np.uint8]
    arrived: float
    decode_ms: float = 0.0


@dataclass(frozen=True)
class Gap:
    """A live source was lost, or has come back, and time has passed unseen: tracks end here. ``reason``: what happened."""

    time: float
    reason: str


class Source(Protocol):
    """Frames, one after the other. ``name``: without credentials; ``live``: frames that nobody was ready for are dropped,
    and counted in ``dropped``; ``seconds``: length of the medium, None where it has none or none is known."""

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


class VideoFile:
    """Every frame of a video file, in order."""

    live = False
    dropped = 0

    def __init__(self, path: Path) -> None:
        need_extra(extra="live")
        if not path.is_file():
            raise ImageError(f"{path} does not exist")
        self.name = str(path)
        self.seconds: float | None = None

    def __iter__(self) -> Iterator[Frame | Gap]:
        import av

        with av.open(self.name) as container:
            stream = container.streams.video[0]
            self.seconds = container.duration / av.time_base if container.duration else None
            began = time.perf_counter()
            for number, frame in enumerate(container.decode(stream)):
                pixels = frame.to_ndarray(format="rgb24")
                spent = (time.perf_counter() - began) * 1e3
                yield Frame(number, frame.time or 0.0, pixels, time.monotonic(), spent)
                began = time.perf_counter()

    def close(self) -> None:
        """Nothing is held between two iterations."""

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_source(spec: str) -> Source:
    """The source that a text names."""
    return VideoFile(Path(spec))
