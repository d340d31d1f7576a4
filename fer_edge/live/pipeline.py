"""One frame in, events out: the way that ``watch`` and the camera's benchmark share."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fer_edge.classifier import Classifier, Prediction
from fer_edge.image import Box

from .events import Event, Kind
from .faces import Face, FaceFinder
from .judgement import Judgement
from .sources import Frame
from .tracks import Tracker

LEAST_EYES = 12.0
"""Pixels between the eyes below which a face is found and followed, but not judged."""


@dataclass(frozen=True)
class TrackState:
    """A track as it stands in one frame, for those who draw or count it."""

    track: int
    face: Face
    prediction: Prediction | None


@dataclass(frozen=True)
class Step:
    """What one frame gave. ``stages``: milliseconds by stage ("find", "judge", ...); ``age``: seconds since the frame
    arrived; ``dropped``: frames of the source that nobody saw, until now."""

    frame: Frame
    events: tuple[Event, ...]
    tracks: tuple[TrackState, ...]
    stages: dict[str, float]
    age: float
    dropped: int


@dataclass
class _Track:
    judgement: Judgement
    box: Box
    since: float


class Pipeline:
    """Faces of frames, found, followed and judged. ``step`` takes frames in order; ``end`` ends all tracks."""

    def __init__(self, clf: Classifier, finder: FaceFinder) -> None:
        self._clf, self._finder, self._tracker = clf, finder, Tracker()
        self._tracks: dict[int, _Track] = {}
        self.tracks = 0

    def step(self, frame: Frame, dropped: int = 0) -> Step:
        """Look at one frame. ``dropped``: of its source, until now."""
        faces = self._finder.find_rgb(frame.pixels)
        sightings, over = self._tracker.update(faces, frame.time)
        events = [self._end(track, frame.time, frame.number) for track in over]
        features = self._clf.box_features(frame.pixels, [sighting.face.box for sighting in sightings])
        states = []
        for sighting, feature in zip(sightings, features, strict=True):
            fresh = sighting.track not in self._tracks
            if fresh:
                self._tracks[sighting.track] = _Track(Judgement(self._clf), sighting.face.box, frame.time)
                self.tracks += 1
            track = self._tracks[sighting.track]
            track.box = sighting.face.box
            if track.judgement.add(feature, frame.time):
                track.since = frame.time
                events.append(self._event("appear" if fresh else "change", sighting.track, frame.time, frame.number))
            states.append(TrackState(sighting.track, sighting.face, track.judgement.prediction))
        return Step(frame, tuple(events), tuple(states), {}, time.monotonic() - frame.arrived, dropped)

    def end(self, moment: float, number: int) -> list[Event]:
        """End all tracks at ``moment``, seconds of the medium."""
        return [self._end(track, moment, number) for track in self._tracker.end()]

    def _event(self, kind: Kind, number: int, moment: float, frame: int) -> Event:
        track = self._tracks[number]
        said = track.judgement.prediction
        label, scores, certain = (said.label, said.scores, said.certain) if said else (None, {}, False)
        return Event(kind, moment, frame, number, track.box, label, scores, certain, track.since)

    def _end(self, number: int, moment: float, frame: int) -> Event:
        event = self._event("end", number, moment, frame)
        del self._tracks[number]
        return event
