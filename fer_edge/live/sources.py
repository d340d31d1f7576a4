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
    when it came."""

    number: int
    time: float
    pixels: NDArray[np.uint8]
    arrived: float


@dataclass(frozen=True)
class Gap:
    """A live source was lost, or has come back, and time has passed unseen: tracks end here. ``reason``: what happened."""

    time: float
    reason: str


class Source(Protocol):
    """Frames, one after the other. ``live``: frames that nobody was ready for are dropped, and counted in ``dropped``."""

    name: str
    live: bool

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

    def __iter__(self) -> Iterator[Frame | Gap]:
        import av

        with av.open(self.name) as container:
            stream = container.streams.video[0]
            for number, frame in enumerate(container.decode(stream)):
                yield Frame(number, frame.time or 0.0, frame.to_ndarray(format="rgb24"), time.monotonic())

    def close(self) -> None:
        """Nothing is held between two iterations."""

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_source(spec: str) -> Source:
    """The source that a text names."""
    return VideoFile(Path(spec))
