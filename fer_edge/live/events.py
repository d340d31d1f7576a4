"""What ``watch`` says: a face has appeared, its expression has changed, it has gone; and at the end, a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fer_edge.image import Box

Kind = Literal["appear", "change", "end"]


@dataclass(frozen=True)
class Event:
    """``time`` in seconds of the medium (of a live source: since the start); ``frame``: number of the frame; ``track``: id
    of the face; ``box`` (x, y, width, height) in pixels of the frame; ``label``, ``scores`` and ``certain`` as in a
    Prediction, of the track's window; None, empty and False while its face is too small to be judged; ``since``: when the
    label began, or the track where there is none.

    A track has one "appear", when it is first seen, and one "end", when it has not been seen for the tracker's patience or
    the source is lost or over; ``box`` of an end is where it was seen last. A "change" lies between, whenever the label
    is another one (the first one, after an appear without a label). Events come in the order of ``time``."""

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
        """The same names, ready for JSON: times in whole milliseconds, boxes in tenths of a pixel, scores with 4 digits."""
        return {
            **asdict(self),
            "time": round(self.time, 3),
            "box": [round(value, 1) for value in self.box],
            "scores": {label: round(score, 4) for label, score in self.scores.items()},
            "since": round(self.since, 3),
        }


@dataclass(frozen=True)
class Summary:
    """The last thing that ``watch`` says.

    ``frames``: looked at; ``dropped``: delivered by the source and looked at by nobody; ``gaps``: how often the source was
    lost; ``tracks``: faces that were followed; ``faces``: seen, of all frames; ``classified``: of these; ``seconds`` of the
    clock, and ``fps``, frames looked at in one of them.

    ``latency_ms``: from a frame's decoding to its events, without waiting; ``age_ms``: from a frame's arrival to its events;
    ``stages_ms``: of each stage. All as {"p50", "p99"} over the frames, in milliseconds, within 1%; empty without a frame.

    ``source``: its name, without credentials; ``detector``, ``bundle``, ``labels``, ``runtime``, ``device``, ``precision``:
    what looked."""

    frames: int
    dropped: int
    tracks: int
    seconds: float
    fps: float
    gaps: int
    faces: int
    classified: int
    latency_ms: Mapping[str, float]
    age_ms: Mapping[str, float]
    stages_ms: Mapping[str, Mapping[str, float]]
    source: str
    live: bool
    detector: str
    bundle: str
    labels: str
    runtime: str
    device: str
    precision: str
    event: Literal["summary"] = "summary"

    def to_dict(self) -> dict[str, Any]:
        """The same names, ready for JSON: "event" comes first, milliseconds have 3 digits."""
        values = {"event": self.event, **asdict(self)}
        return {**values, "seconds": round(self.seconds, 3), "fps": round(self.fps, 2)}
