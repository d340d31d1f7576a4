"""One frame in, events out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from watching import Kept, Pixels, Planted, Reel, always, face, kinds

import fer_edge
from fer_edge import Classifier, FaceFinder, UsageError
from fer_edge.live.clock import Spread
from fer_edge.live.events import Event, Summary
from fer_edge.live.predictions import Align
from fer_edge.live.sources import Frame, Gap


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_a_track_has_one_appear_and_one_end(clf: Classifier, picture: Pixels) -> None:
    here, there = face(10, 10, 40), face(100, 50, 40)
    planted = {**{n: [here] for n in range(5, 30)}, **{n: [here, there] for n in range(30, 35)}}
    events = list(fer_edge.watch(Reel([picture] * 60), clf, Planted(planted)))
    seen = kinds(events)
    for track in (1, 2):
        kind = [kind for kind, number in seen if number == track]
        assert (kind[0], kind[-1]) == ("appear", "end")
        assert set(kind[1:-1]) <= {"change"}
    assert isinstance(events[-1], Summary)
    assert not any(isinstance(event, Summary) for event in events[:-1])
    times = [event.time for event in events if isinstance(event, Event)]
    assert times == sorted(times)
    assert (events[-1].frames, events[-1].tracks, events[-1].faces, events[-1].classified) == (60, 2, 31, 31)


def test_a_face_too_small_is_followed_and_not_judged(clf: Classifier, picture: Pixels) -> None:
    """And judged as soon as it is large enough: then its label is the change."""
    planted = {n: [face(20 - n, 20, 40 + 2 * n, eyes=6.0 + n)] for n in range(14)}
    events = list(fer_edge.watch(Reel([picture] * 14), clf, Planted(planted)))
    appear, change = events[:2]
    assert isinstance(appear, Event)
    assert (appear.event, appear.label, appear.scores, appear.certain) == ("appear", None, {}, False)
    assert isinstance(change, Event)
    assert (change.event, change.frame) == ("change", 6)
    assert change.label in clf.labels
    end = events[-2]
    assert isinstance(end, Event)
    assert (appear.since, change.since, end.since) == (appear.time, change.time, change.time)
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert (summary.faces, summary.classified) == (12, 8)


@pytest.mark.parametrize("odd", [0.3, -1e9, math.nan, math.inf])
def test_a_source_that_goes_back_in_time_is_an_error(odd: float, clf: Classifier, picture: Pixels) -> None:
    """Ours never do; evidence that is summed over a negative time would change labels, and a variance be negative."""

    class Odd(Reel):
        def __iter__(self) -> Iterator[Frame | Gap]:
            for number, moment in enumerate([0.0, 0.1, 0.2, 0.3, 0.4, odd, 0.5]):
                yield Frame(number, moment, picture, time.monotonic())

    kept = Kept()
    with pytest.raises(UsageError, match=r"in order of time: frame 5 has .* and the one before it 0\.4 s"):
        list(fer_edge.watch(Odd([picture] * 7), clf, Planted(always(7, face(10, 10, 40))), outputs=[kept]))
    assert [event.event for event in kept.events if isinstance(event, Event)] == ["appear", "end"]
    assert isinstance(kept.events[-1], Summary)


def test_a_gap_ends_all_tracks(clf: Classifier, picture: Pixels) -> None:
    kept = Kept()
    planted = {n: [face(10, 10, 40)] for n in range(20)}
    gap = Gap(1.0, "the camera has gone")
    events = list(fer_edge.watch(Reel([picture] * 10 + [gap] + [picture] * 10), clf, Planted(planted), outputs=[kept]))
    edges = [(kind, track) for kind, track in kinds(events) if kind != "change"]
    assert edges == [("appear", 1), ("end", 1), ("appear", 2), ("end", 2)]
    assert (kept.gaps, kept.events, kept.closed) == ([gap], events, 1)
    assert isinstance(events[-1], Summary)
    assert events[-1].gaps == 1


def test_time_is_short_then_each_face_has_its_turn(clf: Classifier, picture: Pixels) -> None:
    """Of a live source whose next frame has come already, one face is classified at least, the oldest answer first."""
    faces = [face(10 + 50 * i, 10, 40) for i in range(3)]
    kept = Kept()
    reel = Reel([picture] * 31, live=True, late=5.0)
    list(fer_edge.watch(reel, clf, Planted(always(31, *faces)), outputs=[kept]))
    assert [step.classified for step in kept.steps] == [0, 0, *[1] * 29]
    assert all(state.prediction is not None for step in kept.steps[4:] for state in step.tracks)


def test_numbers_for_json_are_short(clf: Classifier, picture: Pixels) -> None:
    planted = {n: [face(10.123456, 10.98765, 40.5555)] for n in range(3)}
    first, *_, last = fer_edge.watch(Reel([picture] * 4, fps=7), clf, Planted(planted))
    row = first.to_dict()
    assert list(row) == ["event", "time", "frame", "track", "box", "label", "scores", "certain", "since"]
    assert row["box"] == [10.1, 11.0, 40.6, 40.6]
    assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert json.loads(json.dumps(last.to_dict(), allow_nan=False))["event"] == "summary"


def test_percentiles_of_months_are_right_within_a_percent() -> None:
    values = np.random.default_rng(1).lognormal(1.0, 0.7, 20000)
    spread = Spread()
    for value in values:
        spread.add(value)
    for share in (1, 50, 99):
        assert spread.percentile(share) == pytest.approx(np.percentile(values, share), rel=0.011)
    assert Spread().as_dict() == {}


def test_frames_of_another_size_show_the_same_face(clf: Classifier, picture: Pixels) -> None:
    """A stream that goes on with twice the pixels: the face is where it was."""
    large = np.kron(picture, np.ones((2, 2, 1), np.uint8))
    planted = {n: [face(30 + n, 20, 40) if n < 10 else face(60 + 2 * n, 40, 80)] for n in range(20)}
    *events, summary = fer_edge.watch(Reel([picture] * 10 + [large] * 20), clf, Planted(planted))
    assert [kind for kind, _ in kinds(events) if kind != "change"] == ["appear", "end"]
    assert isinstance(summary, Summary)
    assert summary.tracks == 1


@pytest.mark.parametrize("align", ["none", "eyes"])
def test_a_face_that_stays_is_judged_as_in_a_photo(align: Align, clf: Classifier, portrait: Path, yunet: Path) -> None:
    """The mean of equal features is the feature: a still film and ``predict_faces`` agree."""
    with Image.open(portrait) as photo:
        pixels = np.asarray(photo.convert("RGB").rotate(20, Image.Resampling.BICUBIC))
    kept = Kept()
    with FaceFinder(yunet) as finder:
        (expected,) = clf.predict_faces(pixels, finder, align=align)
        list(fer_edge.watch(Reel([pixels] * 6), clf, finder, align=align, outputs=[kept]))
    (state,) = kept.steps[-1].tracks
    assert state.prediction is not None
    assert state.face.box == expected.box
    assert state.prediction.scores == pytest.approx(expected.scores, abs=1e-5)
