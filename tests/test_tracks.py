"""Faces followed: against scipy's assignment, on made scenes with known truth, and for whatever a detector may say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fer_edge.live.faces import Face
from fer_edge.live.tracks import ACCELERATION, FIRST_SPEED, PLACE_NOISE, Track, Tracker, assignment

NOWHERE = ((0.0, 0.0),) * 5


def face(x: float, y: float, size: float = 60.0, score: float = 0.9) -> Face:
    """With its middle at (x, y)."""
    return Face((x - size / 2, y - size / 2, size, size), score, NOWHERE)


def times(seconds: float, fps: float = 25.0, rng: np.random.Generator | None = None) -> Iterator[float]:
    """Of frames; with ``rng``, every pause is 0.4 to 1.8 times as long as the mean."""
    time = 0.0
    while time < seconds:
        yield time
        time += (rng.uniform(0.4, 1.8) if rng else 1.0) / fps


def follow(tracker: Tracker, frames: Iterable[tuple[float, Sequence[Face | None]]]) -> list[list[int | None]]:
    """The track of each place of each frame: None where it has no face, or the face no track."""
    numbers = []
    for time, faces in frames:
        sightings, _ = tracker.update([f for f in faces if f is not None], time)
        tracks = {id(sighting.face): sighting.track for sighting in sightings}
        numbers.append([tracks.get(id(f)) for f in faces])
    return numbers


costs = st.integers(1, 7).flatmap(
    lambda n: st.integers(1, 7).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(-4, 2) | st.floats(-5, 2, allow_subnormal=False), min_size=m, max_size=m),
            min_size=n,
            max_size=n,
        )
    )
)


@given(costs)
def test_assignment_is_scipys(cost: list[list[float]]) -> None:
    """Alone costs nothing, so scipy is given the costs cut at 0."""
    table = np.array(cost, float)
    pairs = assignment(table)
    rows, columns = linear_sum_assignment(np.minimum(table, 0))
    assert sum(table[pair] for pair in pairs) == pytest.approx(np.minimum(table, 0)[rows, columns].sum())
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(table[pair] < 0 for pair in pairs)


@pytest.mark.parametrize("shape", [(300, 300), (250, 300), (300, 250)])
def test_assignment_of_300_is_scipys(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).uniform(-1, 0.2, shape)
    rows, columns = linear_sum_assignment(np.minimum(table, 0))
    expected = np.minimum(table, 0)[rows, columns].sum()
    assert sum(table[pair] for pair in assignment(table)) == pytest.approx(expected)


@given(st.floats(-120, 120), st.floats(-120, 120), st.floats(10, 300), st.floats(0.01, 1.4))
def test_one_face_and_one_track_are_as_among_many(right: float, below: float, size: float, pause: float) -> None:
    """The short way gives what the table gives, into which a face that is far away forces it."""
    tracker = Tracker()
    tracker.update([face(500, 500)], 0.0)
    (track,) = tracker._tracks
    track.move(pause)
    one, far = face(500 + right, 500 + below, size), face(9000, 9000)
    assert tracker._assign([one], [0], [track]) == tracker._assign([one, far], [0, 1], [track])


def test_nobody_has_no_track() -> None:
    tracker = Tracker()
    assert [tracker.update([], time) for time in (0.0, 0.5)] == [([], []), ([], [])]
    assert tracker.end() == []
    assert assignment(np.empty((0, 3))) == []


@pytest.mark.parametrize("fps", [2.0, 10.0, 25.0, 240.0])
def test_a_face_is_followed_once_it_has_been_seen_for_a_fifth_of_a_second(fps: float) -> None:
    tracker = Tracker()
    first = next(t for t in times(2, fps) if tracker.update([face(100, 100)], t)[0])
    assert 0.2 <= first <= 0.2 + 1 / fps


@pytest.mark.parametrize("seen", [[0], [0, 1, 2], [0, 2, 4], [0, 4, 8, 12]])
def test_a_flicker_gets_no_track(seen: list[int]) -> None:
    """The shirt of a clip is a face for three frames at most; one frame of four is no face either."""
    tracker = Tracker()
    frames = [(number / 25, [face(100, 100)] if number in seen else []) for number in range(60)]
    assert all(tracker.update(faces, time) == ([], []) for time, faces in frames)
    assert tracker.end() == []


def test_a_face_that_nobody_is_sure_of_begins_nothing_and_goes_on() -> None:
    tracker = Tracker()
    assert follow(tracker, ((t, [face(100, 100, score=0.4)]) for t in times(1)))[-1] == [None]
    scores = {t: 0.9 if t < 1 else 0.4 for t in times(5)}
    assert follow(tracker, ((t + 1, [face(100, 100, score=s)]) for t, s in scores.items()))[-1] == [1]


def test_a_second_face_in_the_same_place_is_not_the_same() -> None:
    frames = [(t, [face(100, 100), face(103, 100, score=0.5)]) for t in times(1)]
    assert follow(Tracker(), frames)[-1] == [1, None]


def test_places_are_filtered_as_kalman_says() -> None:
    """Against the filter's matrices, at uneven pauses."""
    rng = np.random.default_rng(4)
    track = Track(face(100, 100), 0.0)
    state, spread = np.array([100.0, 0.0]), np.diag([(PLACE_NOISE * 60) ** 2, (FIRST_SPEED * 60) ** 2])
    time = 0.0
    for pause in rng.uniform(0.01, 0.4, 50):
        time += pause
        motion = np.array([[1, pause], [0, 1]])
        noise = np.array([[pause**3 / 3, pause**2 / 2], [pause**2 / 2, pause]]) * ACCELERATION * 60**2
        state, spread = motion @ state, motion @ spread @ motion.T + noise
        x = 100 + 30 * time + rng.normal(0, 1)
        track.move(time)
        assert track.x == pytest.approx(state[0])
        assert track.variance * 60**2 == pytest.approx(spread[0, 0])
        track.correct(face(x, 100))
        gain = spread[:, :1] / (spread[0, 0] + (PLACE_NOISE * 60) ** 2)
        state, spread = state + gain[:, 0] * (x - state[0]), spread - gain @ spread[:1]
    assert (track.x, track.across) == pytest.approx(tuple(state))


@pytest.mark.parametrize("fps", [10.0, 25.0, 60.0])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_walker_hidden_for_a_second_keeps_the_number(fps: float, uneven: bool) -> None:
    rng = np.random.default_rng(1)
    moments = list(times(6, fps, rng if uneven else None))
    walk = [face(50 + 70 * t + rng.normal(0, 1), 200 + rng.normal(0, 1)) for t in moments]
    frames = [(t, [None if 3 <= t < 4 else f]) for t, f in zip(moments, walk, strict=True)]
    numbers = [row[0] for (t, _), row in zip(frames, follow(Tracker(), frames), strict=True) if not (t < 0.4 or 3 <= t < 4)]
    assert set(numbers) == {1}


@pytest.mark.parametrize("speed", [40.0, 80.0, 160.0])
@pytest.mark.parametrize("uneven", [False, True])
def test_two_who_cross_keep_their_numbers(speed: float, uneven: bool) -> None:
    """The one behind is not seen while half of the face is hidden."""
    rng = np.random.default_rng(2)
    frames = []
    middle = 250 / speed
    for t in times(2 * middle, 25, rng if uneven else None):
        front, behind = 320 + speed * (t - middle), 320 - speed * (t - middle)
        hidden = abs(front - behind) < 45
        one, other = face(front + rng.normal(0, 1), 200), face(behind + rng.normal(0, 1), 205, 55)
        frames.append((t, [one, None if hidden else other]))
    numbers = follow(Tracker(), frames)
    assert {row[0] for row in numbers[10:]} == {1}
    assert {row[1] for row in numbers[10:]} == {2, None}
    assert numbers[-1] == [1, 2]


def test_a_box_that_jumps_carries_no_track_away() -> None:
    """As YuNet's does where two faces meet, in a film of two who cross: two boxes lie beside their face, then it is as it
    was."""
    walk = [(t, 225 + 129 * t, 110.0, 100.0) for t in times(3.0)]
    walk[32] = (walk[32][0], walk[32][1] + 10, 97.0, 114.0)
    walk[33] = (walk[33][0], walk[33][1] + 14, 99.0, 122.0)
    frames = [(t, [face(x, y, size)]) for t, x, y, size in walk]
    assert {row[0] for row in follow(Tracker(), frames)} == {None, 1}


def test_a_face_ends_when_patience_is_over_and_its_number_is_not_used_again() -> None:
    tracker = Tracker()
    follow(tracker, ((t, [face(100, 100)]) for t in times(1)))
    ends = [(t, over) for t in times(4) if t > 1 and (over := tracker.update([], t)[1])]
    assert [over for _, over in ends] == [[1]]
    assert ends[0][0] == pytest.approx(0.96 + 1.5, abs=0.05)
    assert follow(tracker, ((5 + t, [face(100, 100)]) for t in times(1)))[-1] == [2]
    assert tracker.end() == [2]
    assert follow(tracker, ((7 + t, [face(100, 100)]) for t in times(1)))[-1] == [3]


def test_a_source_of_a_frame_every_three_seconds() -> None:
    """A pause in which nobody looked is no absence."""
    numbers = follow(Tracker(), ((3.0 * n, [face(100 + n, 100)]) for n in range(10)))
    assert numbers == [[None], *[[1]] * 9]


def test_300_faces_keep_their_numbers() -> None:
    rng = np.random.default_rng(3)
    places = np.stack(np.meshgrid(np.arange(20) * 32.0, np.arange(15) * 32.0), -1).reshape(-1, 2)
    drift = rng.normal(0, 8, places.shape)
    frames = []
    for t in times(1):
        now = places + drift * t + rng.normal(0, 0.4, places.shape)
        frames.append((t, [face(x, y, 24) for x, y in now]))
    numbers = follow(Tracker(), frames)
    assert sorted(n for n in numbers[-1] if n) == list(range(1, 301))
    assert all(row == numbers[-1] for row in numbers[6:])


anything = st.lists(
    st.tuples(
        st.floats(0.001, 0.8),
        st.lists(
            st.builds(
                face,
                st.sampled_from([50.0, 60.0, 75.0, 300.0]) | st.floats(-100, 2000),
                st.sampled_from([50.0, 55.0, 400.0]) | st.floats(-100, 2000),
                st.sampled_from([40.0, 60.0]) | st.floats(0, 500),
                st.sampled_from([0.9, 0.7, 0.5, 0.3]),
            ),
            max_size=6,
        ),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(anything, st.floats(0, 2), st.floats(0, 0.5))
def test_whatever_a_detector_says(frames: list[tuple[float, list[Face]]], patience: float, settle: float) -> None:
    """No number twice in a frame, none after its end, none begun before the one before it, every end once and after a
    sighting; a sighting is one of the faces, in their order."""
    tracker, time = Tracker(patience, settle), 0.0
    begun: set[int] = set()
    ended: list[int] = []
    for pause, faces in frames:
        time += pause
        sightings, over = tracker.update(faces, time)
        numbers = [sighting.track for sighting in sightings]
        assert len(set(numbers)) == len(numbers)
        ended += over
        assert not set(numbers) & set(ended)
        fresh = [number for number in numbers if number not in begun]
        assert sorted(fresh) == list(range(len(begun) + 1, len(begun) + len(fresh) + 1))
        begun.update(fresh)
        places = [next(i for i, f in enumerate(faces) if f is sighting.face) for sighting in sightings]
        assert places == sorted(set(places))
    ended += tracker.end()
    assert sorted(ended) == sorted(begun)
    assert tracker.end() == []
