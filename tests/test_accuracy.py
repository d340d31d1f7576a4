"""The one place that counts right answers: against scikit-learn, against the long way, and what is called different."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from fer_edge import accuracy
from fer_edge.accuracy import calibration_error, differs, intervals, paired_difference, recall_by_label, war_uar

CLASSES = 7
EQUAL = np.full(CLASSES, 1 / CLASSES)
UNEQUAL = np.array([0.3, 0.3, 0.15, 0.1, 0.1, 0.03, 0.02])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_counts_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    """Some classes have no face, some faces have no truth."""
    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    table = accuracy.confusion_matrix(truth, predicted, 5)
    kept = truth >= 0
    if not kept.any():
        assert np.isnan(war_uar(predicted, truth)).all()
        assert table.sum() == 0
        return
    assert table.tolist() == confusion_matrix(truth[kept], predicted[kept], labels=range(5)).tolist()
    war, uar = war_uar(predicted, truth)
    assert war == accuracy.war(table) == pytest.approx(accuracy_score(truth[kept], predicted[kept]))
    present = sorted(set(truth[kept].tolist()))
    recall = recall_score(truth[kept], predicted[kept], labels=present, average=None, zero_division=0.0)
    assert uar == accuracy.uar(table) == pytest.approx(recall.mean())
    by_label = recall_by_label(table, tuple("abcde"))
    assert [v for v in by_label.values() if v is not None] == pytest.approx(recall.tolist())
    assert [i for i, v in enumerate(by_label.values()) if v is not None] == present


def test_war_and_uar() -> None:
    truth, predicted = np.array([0, 0, 0, 2, -1]), np.array([0, 0, 1, 1, 0])
    assert war_uar(predicted, truth) == (0.5, pytest.approx(1 / 3))


def test_intervals_are_what_drawing_faces_again_gives() -> None:
    """Against the bootstrap done the long way, face by face, and against the binomial's standard error."""
    table = np.array([[80, 20, 0], [10, 40, 0], [0, 3, 2]])
    found = intervals(table, ("a", "b", "c"))
    truth = np.repeat(np.repeat(np.arange(3), 3), table.ravel())
    predicted = np.repeat(np.tile(np.arange(3), 3), table.ravel())
    rng, war, uar = np.random.default_rng(5), [], []
    for _ in range(3000):
        rows = rng.integers(0, len(truth), len(truth))
        t, hit = truth[rows], truth[rows] == predicted[rows]
        war.append(hit.mean())
        uar.append(np.mean([hit[t == k].mean() for k in np.unique(t)]))
    assert found.war == pytest.approx(np.percentile(war, (2.5, 97.5)), abs=0.01)
    assert found.uar == pytest.approx(np.percentile(uar, (2.5, 97.5)), abs=0.015)
    low, high = found.per_class_recall["a"] or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.8 * 0.2 / 100), rel=0.1)


def test_a_class_without_a_face_has_no_interval() -> None:
    found = intervals(np.array([[3, 1], [0, 0]]), ("war", "uar"))
    assert found.per_class_recall["uar"] is None
    assert found.per_class_recall["war"] is not None
    assert found.uar == found.per_class_recall["war"]


Answers = NDArray[np.int64]


def answers(truth: Answers, right: float, rng: np.random.Generator) -> Answers:
    hit = rng.random(len(truth)) < right
    wrong: Answers = (truth + rng.integers(1, CLASSES, len(truth))) % CLASSES
    return np.where(hit, truth, wrong)


def classifiers(shares: NDArray[np.float64], shared: float, gain: float, rng: np.random.Generator) -> tuple[Answers, ...]:
    """Truth of 200 faces, and two classifiers' answers: right in 60%, the same one on ``shared`` of the faces."""
    truth = rng.choice(CLASSES, 200, p=shares)
    common, same = answers(truth, 0.6, rng), rng.random(200) < shared
    before, after = (np.where(same, common, answers(truth, right, rng)) for right in (0.6, 0.6 + gain))
    return truth, before, after


@pytest.mark.parametrize(("shares", "shared"), [(EQUAL, 0.0), (EQUAL, 0.8), (UNEQUAL, 0.0), (UNEQUAL, 0.8)])
def test_equal_classifiers_are_called_different_in_few_draws(shares: Any, shared: float) -> None:
    """At most 6% of 400. That the interval of one leaves out the other's figure, as was asked once, is so in 16%."""
    rng = np.random.default_rng(1)
    called = np.zeros(2)
    for _ in range(400):
        found = paired_difference(*classifiers(shares, shared, 0.0, rng), draws=800)
        called += differs(found.uar_interval), differs(found.war_interval)
    assert (called <= 0.06 * 400).all(), called


def test_a_better_classifier_is_called_better() -> None:
    """By 20 points on faces of its own, and by 15 on half of the faces, where the other one answers alike on the rest."""
    rng = np.random.default_rng(2)
    for shared, gain in ((0.0, 0.2), (0.5, 0.25)):
        found = [paired_difference(*classifiers(EQUAL, shared, gain, rng), draws=400) for _ in range(100)]
        assert sum(f.uar_interval[0] > 0 for f in found) >= 75
        assert np.mean([f.uar for f in found]) == pytest.approx(gain * (1 - shared), abs=0.02)
        assert not any(f.uar_interval[1] < 0 for f in found)


def test_a_paired_difference_is_what_drawing_faces_again_gives() -> None:
    rng = np.random.default_rng(4)
    truth, before, after = classifiers(UNEQUAL, 0.5, 0.2, rng)
    truth[::20] = -1
    found = paired_difference(truth, before, after)
    kept = truth >= 0
    t, a, b = truth[kept], before[kept], after[kept]
    assert found.war == pytest.approx((b == t).mean() - (a == t).mean())
    assert found.uar == pytest.approx(balanced_accuracy_score(t, b) - balanced_accuracy_score(t, a))
    drawn = []
    for _ in range(2000):
        rows = rng.integers(0, len(t), len(t))
        drawn.append([w - v for v, w in zip(*(war_uar(side[rows], t[rows]) for side in (a, b)), strict=True)])
    for interval, column in zip((found.war_interval, found.uar_interval), np.array(drawn).T, strict=True):
        assert interval == pytest.approx(np.percentile(column, (1, 99)), abs=0.02)


def test_a_difference_of_none() -> None:
    truth = np.arange(CLASSES)
    found = paired_difference(truth, truth, truth)
    assert (found.war, found.uar, found.war_interval, found.uar_interval) == (0.0, 0.0, (0.0, 0.0), (0.0, 0.0))
    assert not differs(found.uar_interval)
    better = paired_difference(np.repeat(truth, 5), np.repeat((truth + 1) % CLASSES, 5), np.repeat(truth, 5))
    assert (better.uar, better.uar_interval, differs(better.uar_interval)) == (1.0, (1.0, 1.0), True)


def test_calibration_error_against_the_formula() -> None:
    """Sum over the bins of their share times the gap between accuracy and confidence, bin by bin."""
    rng = np.random.default_rng(3)
    confidence = np.append(rng.random(500), (1.0, 1 / 15, 2 / 15))
    right = rng.random(len(confidence)) < confidence**2
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(total)
    assert calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0.0)
    assert calibration_error(np.ones(10), np.zeros(10, bool)) == 1.0
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_intervals_of_many_labels_take_no_more_memory_than_their_faces() -> None:
    """A confusion of 400 labels has 160,000 cells, and all but some hundreds of them are empty."""
    labels = [str(i) for i in range(400)]
    tracemalloc.start()
    try:
        found = intervals(np.eye(400, dtype=np.int64) * 2, labels, draws=1000)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert found.war == found.uar == (1.0, 1.0)
