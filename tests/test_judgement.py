"""A track's label: the mean over a window of time, and a label that does not flicker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

import fer_edge
from fer_edge import Classifier
from fer_edge.bundle import golden_set, label_set
from fer_edge.live.judgement import SLOTS, Judgement

Features = NDArray[np.float32]


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def features(clf: Classifier) -> Features:
    return clf.features(list(golden_set(clf.bundle).crops))


@pytest.fixture(scope="module")
def two(clf: Classifier) -> tuple[Features, Features]:
    """The vectors of the two labels between which the third one says least."""
    constants = label_set(clf.bundle, clf.label_set).constants
    pairs = [(one, other) for one, other in combinations(constants, 2)]
    middles = clf.predict_features(np.stack([one + other for one, other in pairs]))
    return pairs[max(range(len(pairs)), key=lambda i: sum(score for _, score in middles[i].top(2)))]


def mix(clf: Classifier, two: tuple[Features, Features], odds: float) -> Features:
    """Between two features, where the second one's label has these odds against the first one's, as a logarithm."""
    labels = [clf.predict_features(row[None])[0].label for row in two]
    shares = np.linspace(0, 1, 2001, dtype=np.float32)[:, None]
    rows = (1 - shares) * two[0] + shares * two[1]
    found = [np.log(said.scores[labels[1]] / said.scores[labels[0]]) for said in clf.predict_features(rows)]
    near = int(np.abs(np.array(found) - odds).argmin())
    assert abs(found[near] - odds) < 0.02
    row: Features = rows[near]
    return row


def test_the_scores_are_those_of_the_paper(clf: Classifier, features: Features) -> None:
    """The mean of the unnormalised features of the faces within the window, each counted once, however uneven in time."""
    judgement, rng, time = Judgement(clf, window=1.0), np.random.default_rng(0), 0.0
    seen: list[tuple[float, Features]] = []
    for feature in features[rng.integers(len(features), size=60)]:
        time += rng.uniform(0.05, 0.3)  # no two within one slot
        judgement.add(feature, time)
        seen.append((time, feature))
        rows = np.stack([row for moment, row in seen if time - moment <= 1.0])
        expected = clf.predict_features(rows.mean(0, dtype=np.float64)[None].astype(np.float32))[0]
        assert judgement.prediction is not None
        assert judgement.prediction.scores == pytest.approx(expected.scores, abs=1e-6)


def test_nothing_was_seen(clf: Classifier) -> None:
    assert Judgement(clf).prediction is None


def test_the_first_face_gives_the_first_label(clf: Classifier, features: Features) -> None:
    judgement = Judgement(clf)
    assert judgement.add(features[0], 3.0)
    assert judgement.prediction == clf.predict_features(features[:1])[0]


@pytest.mark.parametrize(("odds", "takes"), [(0.4, False), (0.7, True)])
def test_a_rival_must_have_the_odds(clf: Classifier, two: tuple[Features, Features], odds: float, takes: bool) -> None:
    judgement = Judgement(clf, window=0.0, odds=0.5)
    judgement.add(two[0], 0.0)
    close = mix(clf, two, odds)
    assert any(judgement.add(close, 1 + n / 25) for n in range(50)) == takes


@pytest.mark.parametrize(("odds", "frames"), [(0.7, 14), (0.9, 7), (1.5, 3)])
def test_the_surer_a_rival_the_sooner_it_is_told(
    clf: Classifier, two: tuple[Features, Features], odds: float, frames: int
) -> None:
    """At 50 frames a second, above odds of 0.5: 0.05 is reached after 0.05 / (odds - 0.5) seconds, the first frame being
    their beginning."""
    judgement = Judgement(clf, window=0.0, odds=0.5, evidence=0.05)
    judgement.add(two[0], 0.0)
    close = mix(clf, two, odds)
    changes = [judgement.add(close, 1 + n / 50) for n in range(40)]
    assert changes.index(True) in (frames - 1, frames)
    assert sum(changes) == 1


def test_no_face_decides_alone(clf: Classifier, two: tuple[Features, Features]) -> None:
    """However sure it is, and however long nobody was seen before and after it."""
    for pause in (0.02, 0.3, 10.0):
        judgement = Judgement(clf, window=0.0)
        judgement.add(two[0], 0.0)
        rows = [two[1] if n % 2 else two[0] for n in range(60)]
        assert not any(judgement.add(row, (n + 1) * pause) for n, row in enumerate(rows))


def test_evidence_adds_up_over_a_break(clf: Classifier, two: tuple[Features, Features]) -> None:
    """A frame that says otherwise takes away what it says, and not everything: two thirds of the frames are enough."""
    judgement = Judgement(clf, window=0.0, odds=0.5, evidence=0.05)
    judgement.add(two[0], 0.0)
    pair = mix(clf, two, 1.0), mix(clf, two, 0.3)
    changes = [judgement.add(pair[n % 6 == 5], 1 + n / 50) for n in range(60)]
    assert 6 < changes.index(True) < 30
    assert sum(changes) == 1


def test_the_label_that_stays_has_the_scores_of_now(clf: Classifier, two: tuple[Features, Features]) -> None:
    judgement = Judgement(clf, window=0.0, evidence=10.0)
    judgement.add(two[0], 0.0)
    first = judgement.prediction
    judgement.add(two[1], 0.1)
    now = clf.predict_features(two[1][None])[0]
    assert judgement.prediction is not None
    assert first is not None
    assert (judgement.prediction.label, judgement.prediction.scores) == (first.label, now.scores)


def test_evidence_is_never_owed(clf: Classifier, two: tuple[Features, Features]) -> None:
    """A minute of one label does not make another one later."""
    delays = []
    for frames in (2, 3000):
        judgement = Judgement(clf, window=0.0)
        for n in range(frames):
            judgement.add(two[0], n / 50)
        delays.append([judgement.add(two[1], (frames + n) / 50) for n in range(100)].index(True))
    assert delays[0] == delays[1] < 50


@pytest.mark.parametrize(
    ("threshold", "length", "certain"), [(0.0, 0.0, True), (0.3, 0.0, True), (0.5, 0.0, False), (0.3, 1e9, False)]
)
def test_certain_is_said_of_the_label_that_stays(
    clf: Classifier,
    two: tuple[Features, Features],
    threshold: float,
    length: float,
    certain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its own probability, 0.4 or so here, and by the length of the mean."""
    monkeypatch.setattr(clf, "_set", replace(clf._set, threshold=threshold, least_length=length))
    judgement = Judgement(clf, window=0.0)
    judgement.add(two[0], 0.0)
    judgement.add(mix(clf, two, 0.1), 0.1)
    said = judgement.prediction
    assert said is not None
    assert 0.3 < said.score < 0.5 < 2 * max(said.scores.values())
    assert said.certain is certain


def test_a_pause_longer_than_the_window_forgets(clf: Classifier, two: tuple[Features, Features]) -> None:
    judgement = Judgement(clf, window=1.0, evidence=0.0)
    for n in range(10):
        judgement.add(two[0], n / 10)
    assert judgement.add(two[1], 5.0)
    assert judgement.prediction == clf.predict_features(two[1][None])[0]


def test_memory_does_not_grow_with_the_rate(clf: Classifier, features: Features) -> None:
    """And the mean is that of the window but for a slot."""
    judgement, fps = Judgement(clf, window=1.0), 2000
    rows = features[np.random.default_rng(1).integers(len(features), size=2 * fps)]
    for n, row in enumerate(rows):
        judgement.add(row, n / fps)
        assert len(judgement._slots) <= SLOTS + 1
    faces = sum(slot.faces for slot in judgement._slots)
    assert fps * (1 - 1 / SLOTS) - 1 <= faces <= fps + 1
    assert judgement.prediction is not None
    expected = clf.predict_features(rows[-faces:].mean(0, dtype=np.float64)[None].astype(np.float32))[0]
    assert judgement.prediction.scores == pytest.approx(expected.scores, abs=1e-6)


def test_an_hour_leaves_nothing_behind(clf: Classifier, features: Features) -> None:
    """No sum runs on: what was large once is gone."""
    judgement = Judgement(clf, window=0.5)
    for n in range(200):
        judgement.add(features[n % len(features)] * np.float32(1e6), n / 25)
    for n in range(30):
        judgement.add(features[0], 3600 + n / 25)
    assert judgement.prediction is not None
    assert judgement.prediction.scores == pytest.approx(clf.predict_features(features[:1])[0].scores, abs=1e-6)
