"""One frame in, events out: the way that ``watch`` and the camera's benchmark share."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_edge.classifier import Classifier, Prediction
from fer_edge.errors import ImageError, UsageError
from fer_edge.image import Box, face_corners, to_inputs

from .clock import Laps
from .events import Event, Kind
from .faces import LEAST_EYES, Face, FaceFinder
from .judgement import WINDOW, Judgement
from .predictions import Align, eye_angle
from .sources import Frame
from .tracks import Sighting, Tracker

STAGES = ("decode", "find", "track", "crop", "engine", "judge", "event")
"""What a frame goes through, in this order. A frame without a face to be judged has no crop, engine and judge."""
LONGEST = 320
"""Pixels of the longer side of what the detector looks at in a video, unless told otherwise."""


@dataclass(frozen=True)
class TrackState:
    """A track as it stands in one frame, for those who draw or count it. ``prediction``: of its window; None while it has
    not been judged."""

    track: int
    face: Face
    prediction: Prediction | None


@dataclass(frozen=True)
class Step:
    """What one frame gave. ``events`` in order; ``tracks``: those that were seen in it; ``classified``: how many of these
    were classified; ``stages``: milliseconds by stage: "decode" (the source's work on this frame, without waiting), "find"
    (the detector), "track", "crop", "engine", "judge" (mean, score and label of a track), "event"; ``age``: seconds since
    the frame arrived; ``dropped``: frames of the source that nobody looked at, until now."""

    frame: Frame
    events: tuple[Event, ...]
    tracks: tuple[TrackState, ...]
    classified: int
    stages: dict[str, float]
    age: float
    dropped: int


@dataclass
class _Track:
    judgement: Judgement
    box: Box
    since: float
    looked: float = -math.inf


class Pipeline:
    """Faces of frames, found, followed and judged. ``step`` takes frames in order; ``end`` ends all tracks. Not to be shared
    between threads. ``window``, ``align`` and ``least_eyes`` as in :func:`fer_edge.watch`; ``count``: tracks so far."""

    def __init__(
        self,
        clf: Classifier,
        finder: FaceFinder,
        *,
        window: float = WINDOW,
        align: Align = "none",
        least_eyes: float = LEAST_EYES,
    ) -> None:
        self._clf, self._finder, self._tracker = clf, finder, Tracker()
        self._window, self._align, self._least_eyes = window, align, least_eyes
        self._tracks: dict[int, _Track] = {}
        self._size: tuple[int, int] | None = None
        self._time = -math.inf
        self.count = 0

    def step(self, frame: Frame, *, dropped: int = 0, due: float | None = None) -> Step:
        """Look at one frame.

        ``due``: time.monotonic() when the next frame is there, None: there is time for all of this one. When it has passed,
        and as much time has gone into classifying as into finding the faces, the faces that are left are followed, not
        classified. The tracks whose last classification is oldest come first, so that each has its turn.

        ``dropped``: of the frame's source, until now; it stands in the step.

        Raises UsageError for a frame that is earlier than the one before it."""
        if not self._time <= frame.time < math.inf:  # evidence would grow without an end, and variances fall below 0
            before = "" if self._time == -math.inf else f", and the one before it {self._time:g} s"
            raise UsageError(f"frames must come in order of time: frame {frame.number} has {frame.time:g} s{before}")
        self._time = frame.time
        laps = Laps()
        self._fit(frame.size)
        faces = self._finder.find_frame(frame)
        laps("find")
        sightings, over = self._tracker.update(faces, frame.time)
        events = self._end(over, frame.time, frame.number)
        fresh = {sighting.track for sighting in sightings if sighting.track not in self._tracks}
        for sighting in sightings:
            if sighting.track in fresh:
                self._tracks[sighting.track] = _Track(Judgement(self._clf, self._window), sighting.face.box, frame.time)
            self._tracks[sighting.track].box = sighting.face.box
        self.count += len(fresh)
        laps("track")
        changed, classified = self._classify(frame, sightings, due, laps)
        for sighting in sightings:
            if sighting.track in fresh or sighting.track in changed:
                kind: Kind = "appear" if sighting.track in fresh else "change"
                events.append(self._event(kind, sighting.track, frame.time, frame.number))
        states = [TrackState(s.track, s.face, self._tracks[s.track].judgement.prediction) for s in sightings]
        laps("event")
        stages = {"decode": frame.decode_ms, **laps.stages}
        age = time.monotonic() - frame.arrived
        return Step(frame, tuple(events), tuple(states), classified, stages, age, dropped)

    def end(self, moment: float, number: int) -> list[Event]:
        """End all tracks at ``moment``, seconds of the medium; time may begin anew after it."""
        self._time = -math.inf
        return self._end(self._tracker.end(), moment, number)

    def _fit(self, size: tuple[int, int]) -> None:
        """A stream may go on with frames of another size: a face is then in the same place of a larger or smaller frame."""
        if self._size is not None and size != self._size:
            across, down = size[0] / self._size[0], size[1] / self._size[1]
            self._tracker.scale(across, down)
            for track in self._tracks.values():
                x, y, wide, high = track.box
                track.box = (x * across, y * down, wide * across, high * down)
        self._size = size

    def _classify(self, frame: Frame, sightings: Sequence[Sighting], due: float | None, laps: Laps) -> tuple[set[int], int]:
        """(tracks whose label has changed, faces that were classified)."""
        changed, classified = set(), 0
        began = time.monotonic()
        enough = began + laps.stages["find"] / 1e3
        for sighting in sorted(sightings, key=lambda s: self._tracks[s.track].looked):
            if classified and due is not None and time.monotonic() > max(due, enough):
                break
            track, crop = self._tracks[sighting.track], self._crop(frame, sighting.face)
            laps("crop")
            if crop is None:
                continue
            feature = self._clf.features([crop])[0]
            laps("engine")
            classified, track.looked = classified + 1, frame.time
            if track.judgement.add(feature, frame.time):
                track.since = frame.time
                changed.add(sighting.track)
            laps("judge")
        return changed, classified

    def _crop(self, frame: Frame, face: Face) -> NDArray[np.uint8] | None:
        """The face as the artefact takes it; None where it is too small to be judged."""
        if face.eye_distance < self._least_eyes:
            return None
        spec = self._clf.bundle.manifest.input
        size, color, scale = spec.size, spec.color, spec.crop.scale
        try:
            if self._align == "eyes":
                return to_inputs(frame.pixels, size, color, [face.box], scale=scale, angles=[eye_angle(face)])[0]
            left, top, right, bottom = face_corners(face.box, frame.size, scale=scale)
        except ImageError:  # a detector may see a face of which nothing lies in the picture
            return None
        x, y = max(left, 0), max(top, 0)
        part = frame.part(x, y, min(right, frame.size[0]), min(bottom, frame.size[1]))
        square = (float(left - x), float(top - y), float(right - left), float(bottom - top))
        return to_inputs(part, size, color, [square])[0]

    def _event(self, kind: Kind, number: int, moment: float, frame: int) -> Event:
        track = self._tracks[number]
        said = track.judgement.prediction
        label, scores, certain = (said.label, said.scores, said.certain) if said else (None, {}, False)
        return Event(kind, moment, frame, number, track.box, label, scores, certain, track.since)

    def _end(self, numbers: Sequence[int], moment: float, frame: int) -> list[Event]:
        events = [self._event("end", number, moment, frame) for number in numbers if number in self._tracks]
        for number in numbers:
            self._tracks.pop(number, None)
        return events
