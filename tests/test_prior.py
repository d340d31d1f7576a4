"""Between WAR and UAR: scores are tilted as the formula says, a rule sees only the faces that it may, and a figure is what
it says. Faces and scores are made up, with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fer_edge.accuracy import confusion_matrix, intervals, uar, war
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.converters import student
from fer_edge.errors import UsageError
from lab.held_out import write_held_out
from lab.prior_figures import (
    COST,
    LABELS,
    RULES,
    TILTS,
    Curve,
    answers_right,
    curve_of,
    drawn,
    folds_of,
    held_out_faces,
    log_scores_of,
    prior,
    validated,
    war_uar_of,
    wilson,
)

CHECKPOINT = Path(student.__path__[0]) / "student48.safetensors"


def faces(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log scores by the rule of Bayes, of Gaussian pictures of three classes, truth, and log frequencies."""
    random = np.random.default_rng(seed)
    shares = np.array([0.7, 0.25, 0.05])
    truth = random.choice(3, count, p=shares)
    logits = 1.5 * (random.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[truth]) + np.log(shares)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), truth, np.log(shares)


def test_a_tilt_takes_the_frequency_out_of_the_scores() -> None:
    scores, truth, prior = faces(4000, 0)
    right = answers_right(scores, prior, truth)
    for place, t in enumerate(TILTS):
        said = np.argmax(np.exp(scores) / np.exp(prior) ** t, axis=1)
        assert np.array_equal(right[place], said == truth)
    curve, table = curve_of(right, truth), confusion_matrix(truth, scores.argmax(1), 3)
    assert (curve.war[0], curve.uar[0]) == (pytest.approx(war(table)), pytest.approx(uar(table)))
    assert curve.war.argmax() < 4  # scores with the right frequencies are best for WAR as they are
    assert curve.uar[-1] > curve.uar[0] + 0.05


def test_rules_choose_what_they_say() -> None:
    war_, uar_ = np.full(len(TILTS), 0.5), np.full(len(TILTS), 0.4)
    war_[:6] = 0.9 - np.array([0, -0.001, COST / 2 - 0.001, COST - 0.001, COST, 1.1 * COST])
    uar_[:6] = 0.6, 0.61, 0.63, 0.63, 0.62, 0.9
    chosen = {name: rule(Curve(war_, uar_)) for name, rule in RULES.items()}
    assert chosen == {"t = 0": 0, "best WAR": 1, "best UAR": 5, "guarded": 2}


def test_folds_are_even_and_hold_each_class_evenly() -> None:
    _, truth, _ = faces(503, 1)
    fold = folds_of(truth, 3)
    assert np.ptp(np.bincount(fold)) <= 1
    for k in range(3):
        assert np.ptp(np.bincount(fold[truth == k], minlength=10)) <= 1
    assert np.array_equal(fold, folds_of(truth, 3))
    assert not np.array_equal(fold, folds_of(truth, 4))


def test_a_rule_is_measured_on_faces_that_it_did_not_choose_on() -> None:
    """Answers that are chance: whatever is chosen on some faces is worth nothing on others, though it looked well."""
    random = np.random.default_rng(2)
    truth = np.repeat([0, 1], 60)
    right = random.random((len(TILTS), 120)) < 0.5
    best = validated(right, truth, RULES["best UAR"], 20)
    assert curve_of(right, truth).uar.max() > 0.56
    assert best.hits.mean() < curve_of(right, truth).uar.max() - 0.02
    assert sum(best.chosen.values()) == 200

    rows: list[int] = []

    def spy(curve: Curve) -> int:
        rows.append(round(curve.war[0] * 108))
        return 0

    found = validated(right, truth, spy, 1)
    assert sum(rows) == 9 * right[0].sum()
    assert np.array_equal(found.hits, right[0])


def test_intervals_are_those_of_others() -> None:
    scores, truth, _ = faces(800, 4)
    said = scores.argmax(1)
    spans = drawn((said == truth).astype(float), truth)
    reference = intervals(confusion_matrix(truth, said, 3), ("a", "b", "c"))
    assert spans[0] == pytest.approx(reference.war, abs=0.004)
    assert spans[1] == pytest.approx(reference.uar, abs=0.012)
    assert war_uar_of((said == truth).astype(float), truth)[0] == pytest.approx((said == truth).mean())
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_a_bundle_and_its_checkpoint_say_nearly_the_same(data: Path) -> None:
    with np.load(data / "fer2013" / "public_test.npz") as z:
        images = z["images"][:60]
    ours, deployed = log_scores_of(CHECKPOINT, images), log_scores_of(DEFAULT_BUNDLE, images)
    assert ours.shape == deployed.shape == (60, 8)
    assert np.exp(ours).sum(1) == pytest.approx(1)
    assert (ours.argmax(1) == deployed.argmax(1)).mean() > 0.9
    import fer_edge

    with fer_edge.load(labels="ferplus8") as clf:
        assert [LABELS[i] for i in deployed.argmax(1)] == [p.label for p in clf.predict_batch(list(images))]


def test_one_line_for_all_rules_and_no_face_that_a_training_saw(data: Path, tmp_path: Path) -> None:
    with np.load(data / "fer2013" / "train.npz") as z:
        names = ("ferplus_vote_names", "ferplus_class_names")
        rows = ("images", "ferplus_votes_labelcsv", "ferplus_majority_labelcsv")
        some = {**{name: z[name] for name in names}, **{name: z[name][:1200] for name in rows}}
    train, held = tmp_path / "train.npz", tmp_path / "held-out.npz"
    np.savez(train, **some)
    write_held_out(train, held)
    with np.load(held) as z:
        members = dict(z)
    learned = some["images"][5]  # not held out, as one of the sixteen in 256 is
    first = np.flatnonzero(members["ferplus_majority_labelcsv"] >= 0)[0]
    members["images"][first] = learned[:, ::-1]
    np.savez(held, **members)
    done = CliRunner().invoke(prior, [str(CHECKPOINT), str(held), str(train), "--repeats", "1"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["twins_left_out"] >= 1
    assert found["faces"] + found["twins_left_out"] == int((members["ferplus_majority_labelcsv"] >= 0).sum())
    assert set(found["rules"]) == set(RULES)
    none = found["rules"]["t = 0"]
    assert [none["war"], none["uar"]] == pytest.approx(found["curve"]["0"], abs=1e-4)
    assert none["against_none"]["war"] == 0
    np.savez(held, **{**members, "ferplus_majority_labelcsv": np.full(len(members["images"]), -1)})
    with pytest.raises(UsageError, match="no face"):
        held_out_faces(held)
