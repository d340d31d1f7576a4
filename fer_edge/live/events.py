"""What ``watch`` says: a face has appeared, its expression has changed, it has gone; and at the end, a summary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fer_edge.image import Box

Kind = Literal["appear", "change", "end"]


@dataclass(frozen=True)
class Event:
    """``time`` in seconds of the medium (of a live source: since the start); ``frame``: number of the frame; ``track``: id
    of the face; ``box`` (x, y, width, height) in pixels of the frame; ``label``, ``scores`` and ``certain`` as in a
    Prediction, of the track's window; None, empty and False while its face is too small to be judged; ``since``: when the
    label began, or the track where there is none."""

    event: Kind
    time: float
    frame: int
    track: int
    box: Box
    label: str | None
    scores: dict[str, float]
    certain: bool
    since: float

    def to_dict(self) -> dict[str, Any]:
        """The same names, ready for JSON."""
        return {**asdict(self), "box": list(self.box)}


@dataclass(frozen=True)
class Summary:
    """The last thing that ``watch`` says. ``frames``: seen; ``dropped``: delivered by the source and not seen; ``tracks``:
    faces that were followed; ``seconds``: of the clock."""

    frames: int
    dropped: int
    tracks: int
    seconds: float
    event: Literal["summary"] = "summary"

    def to_dict(self) -> dict[str, Any]:
        """The same names, ready for JSON."""
        return asdict(self)
