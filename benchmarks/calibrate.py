"""A bundle's temperature and threshold from labelled faces that no training saw: fitted, checked on others, written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.accuracy import Interval, calibration_error, error_at_coverage
from fer_edge.calibration import (
    fit_temperature,
    length_at_loss,
    likelihood_loss,
    threshold_at_coverage,
    threshold_at_error,
)
from fer_edge.classifier import Classifier
from fer_edge.errors import LabelError, UsageError
from fer_edge.image import to_input
from fer_edge.labelled import LabelledFaces, label_of
from fer_edge.labels import LabelSet

LEAST_FACES = 50
FOLDS = 5
COVERAGE = 0.8
"""At which an error is told whatever was asked for."""


@dataclass(frozen=True)
class Bars:
    """What decides of a score, and of whether it is certain: as in a label set."""

    temperature: float
    threshold: float
    least_length: float


@dataclass(frozen=True)
class Rule:
    """How a threshold is found: at most this ``error`` among the certain answers, or at least this ``coverage`` of all
    answers certain, or the ``threshold`` itself; at most one of them, and 0, none, without any. ``temperature``: not fitted,
    but this one. ``face_loss``: the share of the faces that may be lost to a least length of the feature; None: there is
    none."""

    error: float | None = None
    coverage: float | None = None
    threshold: float | None = None
    temperature: float | None = None
    face_loss: float | None = None

    def fit(self, faces: Known) -> tuple[Bars, Interval | None]:
        """What follows from some faces, and the temperature's interval where that was fitted. Raises UsageError."""
        if self.temperature is None:
            found = fit_temperature(faces.logits, faces.truth)
            temperature, interval = found.value, found.interval
        else:
            temperature, interval = self.temperature, None
        length = 0.0 if self.face_loss is None else length_at_loss(faces.lengths, self.face_loss)
        seen = faces.lengths >= length
        confidence, right = faces.answers(temperature)
        threshold = self.threshold or 0.0
        if self.error is not None:
            threshold = threshold_at_error(confidence[seen], right[seen], self.error)
        elif self.coverage is not None:
            if seen.mean() < self.coverage:
                raise UsageError(
                    f"a face loss of {self.face_loss:.1%} leaves {seen.mean():.1%} of the faces to be certain of, and a "
                    f"coverage of {self.coverage:.1%} is asked for"
                )
            threshold = threshold_at_coverage(np.where(seen, confidence, 0), self.coverage)
        return Bars(temperature, threshold, length), interval


@dataclass(frozen=True)
class Known:
    """Faces with a label of the set: ``logits`` (N, K) at temperature 1, ``truth`` (N,) positions, ``lengths`` (N,) of the
    features."""

    logits: NDArray[np.float32]
    truth: NDArray[np.int64]
    lengths: NDArray[np.float64]

    def part(self, rows: NDArray[np.bool_]) -> Known:
        """Some of them."""
        return Known(self.logits[rows], self.truth[rows], self.lengths[rows])

    def answers(self, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The probability (N,) of each answer, and whether it is right."""
        scaled = self.logits.astype(np.float64) / temperature
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        confidence: NDArray[np.float64] = 1 / powers.sum(1)
        return confidence, self.logits.argmax(1) == self.truth


@dataclass(frozen=True)
class Figures:
    """Of one set of faces under one temperature and threshold; fractions of 1. ``certain`` is the share of answers that
    reach the threshold, ``certain_error`` how many of these are wrong (None of none), ``error_at_80`` the same of the
    surest 80%, ``loss`` the mean negative log-likelihood of the truth."""

    n: int
    error: float
    calibration_error: float
    loss: float
    error_at_80: float
    certain: float
    certain_error: float | None


@dataclass(frozen=True)
class SetCalibration:
    """What was found for one label set. ``cross_validated``: each fifth of the faces under what the other four give, None
    where the rule cannot be met with so few. ``evaluation_before`` and ``evaluation_after`` are of the faces that nothing
    was fitted to, ``background_uncertain`` is the share of pictures without a face that get no certain answer; None where
    none were given."""

    label_set: str
    temperature: float
    temperature_interval: Interval | None
    threshold: float
    least_length: float
    temperature_before: float
    threshold_before: float
    least_length_before: float
    before: Figures
    after: Figures
    cross_validated: Figures | None
    skipped_classes: dict[str, int]
    evaluation_before: Figures | None = None
    evaluation_after: Figures | None = None
    background_uncertain: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What an encoder made of pictures: ``features`` (N, D), the names of their ``classes`` ("" without), and the hash of
    what the encoder was given of each."""

    features: NDArray[np.float32]
    classes: tuple[str, ...]
    hashes: tuple[str, ...]


def look(clf: Classifier, faces: LabelledFaces, on_face: Callable[[float], None] = lambda done: None) -> Seen:
    """Run the encoder over pictures, each taken whole. ``on_face`` gets the fraction done. Raises ImageError for one that
    cannot be read: what is fitted must not hang on which files are broken."""
    spec = clf.bundle.manifest.input
    rows, hashes = [], []
    for i, image in enumerate(faces.images):
        crop = to_input(image, spec.size, spec.color)
        rows.append(clf.features([crop])[0])
        hashes.append(hashlib.sha256(crop.tobytes()).hexdigest())
        on_face((i + 1) / len(faces.images))
    features = np.stack(rows) if rows else np.empty((0, clf.bundle.manifest.feature_dim), np.float32)
    return Seen(features, tuple(faces.classes), tuple(hashes))


def check_apart(seen: Seen, other: Seen, names: tuple[str, str]) -> None:
    """Raise UsageError when a picture is in both: figures of faces that something was fitted to say nothing."""
    both = set(seen.hashes) & set(other.hashes)
    if both:
        raise UsageError(
            f"{len(both)} pictures of {names[1]} are in {names[0]} too: what is fitted to a face says nothing about it; "
            "leave them out of one"
        )


def calibrate(
    labels: LabelSet,
    faces: Seen,
    rule: Rule,
    skip_unknown: bool = False,
    evaluation: Seen | None = None,
    background: Seen | None = None,
) -> SetCalibration:
    """Fit one label set. Raises LabelError for a class that is no label of the set (unless ``skip_unknown``), UsageError
    where the faces are too few or nothing fits, and for a set whose threshold or least length would be lost."""
    before = Bars(labels.temperature, labels.threshold, labels.least_length)
    _check_kept(labels, rule)
    known, skipped = _known(labels, faces, skip_unknown)
    if len(known.truth) < LEAST_FACES:
        raise UsageError(
            f"{len(known.truth)} labelled faces of {labels.name} are too few to fit anything to; take {LEAST_FACES}"
        )
    after, interval = rule.fit(known)
    found = SetCalibration(
        labels.name,
        after.temperature,
        interval,
        after.threshold,
        after.least_length,
        before.temperature,
        before.threshold,
        before.least_length,
        figures(known, before),
        figures(known, after),
        _cross_validated(known, rule),
        skipped,
    )
    if evaluation is not None:
        known, _ = _known(labels, evaluation, skip_unknown)
        found = replace(found, evaluation_before=figures(known, before), evaluation_after=figures(known, after))
    if background is not None:
        fitted = with_calibration(labels, found)
        scores = fitted.scores(background.features).max(1)
        certain = (scores >= after.threshold) & (_lengths(background.features) >= after.least_length)
        found = replace(found, background_uncertain=float(1 - certain.mean()))
    return found


def _check_kept(labels: LabelSet, rule: Rule) -> None:
    if labels.threshold and rule.error is rule.coverage is rule.threshold is None:
        raise UsageError(
            f"{labels.name} has the threshold {labels.threshold:.3g}, which is of its temperature {labels.temperature:.3g}: "
            "say --error, --coverage or --threshold for the new one, or --threshold 0 for none"
        )
    if labels.least_length and rule.face_loss is None:
        raise UsageError(
            f"{labels.name} has the least length {labels.least_length:.3g}: say --face-loss for the new one, "
            "or --face-loss 0 for none"
        )


def with_calibration(labels: LabelSet, found: SetCalibration) -> LabelSet:
    """The label set as it is to be written."""
    bars = {name: getattr(found, name) for name in ("temperature", "threshold", "least_length")}
    return replace(labels, **bars)


def figures(faces: Known, bars: Bars) -> Figures:
    """Of faces under a temperature and what makes an answer certain."""
    confidence, right = faces.answers(bars.temperature)
    certain = (confidence >= bars.threshold) & (faces.lengths >= bars.least_length)
    return _figures(confidence, right, certain, likelihood_loss(faces.logits, faces.truth, bars.temperature))


def _figures(confidence: NDArray[np.float64], right: NDArray[np.bool_], certain: NDArray[np.bool_], loss: float) -> Figures:
    return Figures(
        len(right),
        float(1 - right.mean()),
        calibration_error(confidence, right),
        loss,
        error_at_coverage(confidence, right, COVERAGE),
        float(certain.mean()),
        float(1 - right[certain].mean()) if certain.any() else None,
    )


def _cross_validated(faces: Known, rule: Rule) -> Figures | None:
    count = len(faces.truth)
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    confidence, right, certain = np.empty(count), np.empty(count, bool), np.empty(count, bool)
    loss = 0.0
    for k in range(FOLDS):
        rest, part = faces.part(fold != k), faces.part(fold == k)
        try:
            bars, _ = rule.fit(rest)
        except UsageError:
            return None
        confidence[fold == k], right[fold == k] = sure, _ = part.answers(bars.temperature)
        certain[fold == k] = (sure >= bars.threshold) & (part.lengths >= bars.least_length)
        loss += likelihood_loss(part.logits, part.truth, bars.temperature) * len(part.truth)
    return _figures(confidence, right, certain, loss / count)


def _known(labels: LabelSet, faces: Seen, skip_unknown: bool) -> tuple[Known, dict[str, int]]:
    """The faces that have a label of the set, and how many have none, by class."""
    meaning: Mapping[str, str | None] = {name: label_of(name, labels.labels) for name in dict.fromkeys(faces.classes)}
    skipped = {name: faces.classes.count(name) for name, label in meaning.items() if label is None}
    if skipped and not skip_unknown:
        raise LabelError(
            f"the class {next(iter(skipped))!r} is no label of {labels.name} ({', '.join(labels.labels)}); "
            "choose --labels, or pass --skip-unknown"
        )
    kept = [i for i, name in enumerate(faces.classes) if name not in skipped]
    if not kept:
        raise UsageError(f"none of the faces has a label of {labels.name}")
    truth = np.array([labels.labels.index(str(meaning[faces.classes[i]])) for i in kept], np.int64)
    features = faces.features[kept]
    return Known(labels.logits(features), truth, _lengths(features)), skipped


def _lengths(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    lengths: NDArray[np.float64] = np.sqrt((wide * wide).sum(1))
    return lengths
