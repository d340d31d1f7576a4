"""How steady ``watch`` is, on clips with known truth and on real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fer_edge
from fer_edge import Classifier, FaceFinder
from fer_edge.live.events import Event, Summary
from lab.scenes import Actor, Film, Photo, even, people, uneven, wander
from lab.steadiness_figures import LABELS, Steps, changes, crossing_film, numbers_of, take_of

SIZE = (160, 120)


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def finder(yunet: Path) -> Iterator[FaceFinder]:
    with FaceFinder(yunet, longest=320) as opened:
        yield opened


@pytest.fixture(scope="module")
def everyone(data: Path) -> list[Photo]:
    """Photos of the people that nothing was chosen on."""
    folder = data / "lfw_expressions"
    if not folder.is_dir():
        pytest.skip(f"no photos of people at {folder}")
    return [photo for own in people(folder, 1).values() for photo in own]


@pytest.fixture(scope="module")
def photos(everyone: list[Photo], clf: Classifier) -> dict[str, Photo]:
    """The face of each of three labels, of forty, that is judged the surest."""
    return {label: nearest(everyone, clf, label, 1.0) for label in ("happiness", "neutral", "surprise")}


def nearest(everyone: list[Photo], clf: Classifier, label: str, score: float) -> Photo:
    """Of forty photos with a label, the one whose score is nearest to another."""
    some = [photo for photo in everyone if photo.label == label][:40]
    return min(some, key=lambda photo: abs(clf.predict(photo.path).scores[label] - score))


def film_of(*shows: tuple[float, Photo], moments: list[float], fade: float = 0.0) -> Film:
    return Film([Actor(shows, wander(np.random.default_rng(5), SIZE, 70))], moments, size=SIZE, fade=fade, seed=5)


def test_films_are_what_they_say(photos: dict[str, Photo]) -> None:
    one, other = photos["neutral"], photos["happiness"]
    actor = Actor(((0.0, one), (2.0, other)), wander(np.random.default_rng(0), SIZE, 70), ((1.0, 1.5),))
    assert [actor.photo(t).label for t in (0.0, 1.99, 2.0, 9.0)] == ["neutral", "neutral", "happiness", "happiness"]
    assert [actor.visible(t) for t in (0.99, 1.0, 1.49, 1.5)] == [True, False, False, True]
    frames = [list(Film([actor], even(0.2), size=SIZE, seed=seed)) for seed in (1, 1, 2)]
    assert [frame.number for frame in frames[0]] == list(range(5))
    assert frames[0][3].pixels.shape == (120, 160, 3)
    assert all((a.pixels == b.pixels).all() for a, b in zip(frames[0], frames[1], strict=True))
    assert (frames[0][0].pixels != frames[2][0].pixels).any()
    pauses = np.diff(uneven(20, 15, np.random.default_rng(0)))
    assert len(pauses) == pytest.approx(300, rel=0.1)
    assert pauses.max() > 3 * pauses.min()


def test_the_two_halves_have_nobody_in_common(data: Path) -> None:
    halves = [set(people(data / "lfw_expressions", half)) for half in (0, 1)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(people(data / "lfw_expressions"))


@pytest.mark.parametrize(("label", "score"), [("happiness", 0.95), ("neutral", 0.6)])
def test_nothing_changes_in_a_minute(
    everyone: list[Photo], clf: Classifier, finder: FaceFinder, label: str, score: float
) -> None:
    """Of a face whose frames, each alone, change their label a dozen times and more."""
    moments = uneven(60, 6, np.random.default_rng(3))
    take = take_of(film_of((0.0, nearest(everyone, clf, label, score)), moments=moments), clf, finder)
    assert len(take.times) > 0.8 * len(moments)
    assert changes(take.alone) > 12
    assert set(take.said.tolist()) == {label}


@pytest.mark.parametrize(("fade", "fps"), [(0.0, 25), (0.2, 25), (0.0, 12)])
def test_a_change_is_told_in_time(
    photos: dict[str, Photo], clf: Classifier, finder: FaceFinder, fade: float, fps: int
) -> None:
    shows = [(0.0, photos["neutral"]), (1.5, photos["happiness"]), (3.0, photos["surprise"])]
    moments = even(4.5, fps) if fps == 25 else uneven(4.5, fps, np.random.default_rng(4))
    take = take_of(film_of(*shows, moments=moments, fade=fade), clf, finder)
    assert [take.shown(i) for i in range(3)] == [True] * 3
    assert max(take.delays()) <= 0.7
    assert len(take.delays()) == changes(take.said) == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_two_who_cross_and_one_who_hides_keep_their_numbers(
    photos: dict[str, Photo], clf: Classifier, finder: FaceFinder, seed: int
) -> None:
    film = crossing_film([photos["neutral"], photos["happiness"]], np.random.default_rng(seed))
    assert [len(numbers) for numbers in numbers_of(film, clf, finder)] == [1, 1]


def test_no_face_no_event(videos: Path, clf: Classifier, finder: FaceFinder) -> None:
    (summary,) = fer_edge.watch(videos / "no_face.mp4", clf, finder)
    assert isinstance(summary, Summary)
    assert (summary.frames, summary.tracks) == (95, 0)


@pytest.mark.parametrize("clip", ["again.mkv", "head-pose-face-detection-female.gif", "WolfgangLanger_Pexels.mp4"])
def test_one_person_has_one_number(videos: Path, clf: Classifier, finder: FaceFinder, clip: str) -> None:
    """A shirt with a skull and two hands are faces to the detector, for three frames at most. A woman shows three
    expressions; frames alone, nine."""
    steps = Steps(clf)
    *events, summary = fer_edge.watch(videos / clip, clf, finder, outputs=[steps])
    assert isinstance(summary, Summary)
    assert summary.tracks == 1
    assert [event.event for event in events if isinstance(event, Event) and event.event != "change"] == ["appear", "end"]
    rows = [row[1] for _, row in steps.rows if row]
    said, alone = (np.array([row[i] for row in rows]) for i in (2, 3))
    assert changes(said) == len(events) - 2
    assert changes(said) <= changes(alone) / 5
    assert set(said.tolist()) <= {*LABELS, "disgust", "fear", "contempt"}
