"""Accuracy on labelled faces: WAR (accuracy), UAR (mean recall of the classes present), confusion, per-class recall, each
with the interval that the number of faces allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.accuracy import (
    Intervals,
    ReliabilityBin,
    calibration_error,
    confusion_matrix,
    error_at_coverage,
    intervals,
    recall_by_label,
    reliability,
    uar,
    war,
)
from fer_edge.classifier import Classifier, Prediction
from fer_edge.errors import ImageError, LabelError, UsageError
from fer_edge.folders import IgnoredFile
from fer_edge.image import ImageLike, load_picture
from fer_edge.labelled import LabelledFaces, label_of

from .robustness import Robustness, SpoiltAnswers, pixels_of

if TYPE_CHECKING:
    from fer_edge import FaceFinder

COVERAGES = tuple(k / 10 for k in range(1, 11))


@dataclass(frozen=True)
class MissedPhoto:
    """A photo without a face that could be judged."""

    image: str
    label: str
    why: str


@dataclass(frozen=True)
class Evaluation:
    """``war`` and ``uar`` are fractions of 1; ``confusion`` (K, K) has the truth in rows, in the order of ``labels``; a
    class without a face has recall None and does not count in ``uar``; ``unreadable`` lists the images that could not
    be read, which count nowhere else. ``intervals`` are 95% bootstrap intervals; ``calibration_error`` is how far the
    probability of the answers and the share of right ones lie apart, in the mean over the bins of ``reliability``.
    ``certain`` is the share of answers that reach the label set's threshold, ``certain_error`` the share of these that
    is wrong (None of none), and ``error_at_coverage`` that of the surest answers, by their share ("0.8"). ``left_out``
    counts what has no usable label, the files in ``ignored`` among it, which are no faces, and ``named_out`` what a list
    named. ``robustness``: the same of spoilt faces, where that was asked for.

    Of photos, in which a finder looks for the face first, there are ``detector``, ``not_found`` (label -> photos without a
    face that could be judged) and ``missed``, which names these. They count as wrong in ``war``, ``uar``, recall and the
    intervals, and in ``n``; ``confusion`` and what is said of probabilities are of the others."""

    n: int
    war: float
    uar: float
    intervals: Intervals
    labels: tuple[str, ...]
    confusion: list[list[int]]
    per_class_recall: dict[str, float | None]
    per_class_count: dict[str, int]
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    certain: float
    certain_error: float | None
    error_at_coverage: dict[str, float]
    left_out: int
    named_out: int
    ignored: tuple[IgnoredFile, ...]
    skipped_classes: dict[str, int]
    unreadable: list[dict[str, str]]
    runtime: str
    device: str
    precision: str
    execution_precision: str
    label_set: str
    robustness: Robustness | None = None
    detector: str | None = None
    not_found: dict[str, int] | None = None
    missed: tuple[MissedPhoto, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        found = asdict(replace(self, robustness=None))
        for name in ("robustness", *(() if self.detector else ("detector", "not_found", "missed"))):
            del found[name]
        return found | (self.robustness.as_json() if self.robustness else {})


def evaluate(
    clf: Classifier,
    faces: LabelledFaces,
    skip_unknown: bool = False,
    on_face: Callable[[float], None] = lambda done: None,
    robustness: bool = False,
    finder: FaceFinder | None = None,
) -> Evaluation:
    """Classify every face and count. ``on_face`` gets the fraction done; ``robustness``: each face in every way of
    :mod:`.robustness` as well, which takes more than twenty times as long. ``finder``: the images are photos, and the
    largest face of each is judged.

    Raises LabelError for a class that is no label of the set (unless ``skip_unknown``), UsageError when nothing is left
    to count, and for ``robustness`` of photos."""
    if robustness and finder is not None:
        raise UsageError("robustness spoils face crops, and not the photos that a finder looks at; ask for one of them")
    meaning = {name: label_of(name, clf.labels) for name in dict.fromkeys(faces.classes)}
    unknown = [name for name, label in meaning.items() if label is None]
    if unknown and not skip_unknown:
        raise LabelError(
            f"the class {unknown[0]!r} is no label of {clf.label_set} ({', '.join(clf.labels)}); "
            "choose --labels, or pass --skip-unknown"
        )
    position = {label: i for i, label in enumerate(clf.labels)}

    def answered(image: ImageLike) -> tuple[int, float, bool]:
        answer = clf.predict(image) if finder is None else _largest(clf, image, finder)
        return position[answer.label], answer.score, answer.certain

    spoilt = SpoiltAnswers(answered) if robustness else None
    truth, predicted, confidence, certain, unreadable = [], [], [], [], []
    missed: list[MissedPhoto] = []
    for i, (image, label) in enumerate(_known(faces, meaning)):
        try:
            pixels = None if spoilt is None else pixels_of(load_picture(image))
            place, sure, reached = answered(image)
        except _NoFaceError as error:
            missed.append(MissedPhoto(_name(image, i), label, str(error)))
        except ImageError as error:
            unreadable.append({"image": _name(image, i), "error": str(error)})
        else:
            predicted.append(place)
            confidence.append(sure)
            certain.append(reached)
            truth.append(position[label])
            if spoilt is not None and pixels is not None:
                spoilt.add(pixels)
        on_face((i + 1) / len(faces.images))
    if not truth:
        why = f"; the first reason: {unreadable[0]['error']}" if unreadable else ": none has a label of this set"
        why = f"; the first reason: {missed[0].image} has {missed[0].why}" if missed else why
        raise UsageError(f"no face could be evaluated{why}")
    skipped = {name: sum(c == name for c in faces.classes) for name in unknown}
    right = np.array(truth)
    answers = _Answers(np.array(predicted), np.array(confidence), np.array(certain))
    found = _counted(clf, right, answers, faces, skipped, unreadable, missed)
    if finder is not None:
        counts = {label: sum(photo.label == label for photo in missed) for label in clf.labels}
        return replace(found, detector=finder.name, not_found=counts, missed=tuple(missed))
    return found if spoilt is None else replace(found, robustness=spoilt.figures(right))


class _NoFaceError(Exception):
    """A photo has no face that could be judged; the message is what it has."""


def _largest(clf: Classifier, photo: ImageLike, finder: FaceFinder) -> Prediction:
    faces = clf.predict_faces(photo, finder)
    if not faces:
        raise _NoFaceError("no face")
    if faces[0].prediction is None:
        raise _NoFaceError(f"a face that is too small to be judged ({faces[0].eye_distance:.0f} pixels between the eyes)")
    return faces[0].prediction


def _name(image: ImageLike, number: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image {number}"


@dataclass(frozen=True)
class _Answers:
    """Positions of labels, their probabilities, and whether these reach the threshold; (N,) each."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    certain: NDArray[np.bool_]


def _known(faces: LabelledFaces, meaning: dict[str, str | None]) -> Iterator[tuple[ImageLike, str]]:
    for image, name in zip(faces.images, faces.classes, strict=True):
        label = meaning[name]
        if label is not None:
            yield image, label


def _counted(
    clf: Classifier,
    truth: NDArray[np.int64],
    answers: _Answers,
    faces: LabelledFaces,
    skipped: dict[str, int],
    unreadable: list[dict[str, str]],
    missed: list[MissedPhoto],
) -> Evaluation:
    confidence, certain, right = answers.confidence, answers.certain, answers.predicted == truth
    table = confusion_matrix(truth, answers.predicted, len(clf.labels))
    lost = np.array([[sum(photo.label == label for photo in missed)] for label in clf.labels])
    every = np.hstack([table, lost])
    return Evaluation(
        n=int(every.sum()),
        war=war(every),
        uar=uar(every),
        intervals=intervals(every, clf.labels),
        labels=clf.labels,
        confusion=table.tolist(),
        per_class_recall=recall_by_label(every, clf.labels),
        per_class_count={label: int(every[i].sum()) for i, label in enumerate(clf.labels)},
        calibration_error=calibration_error(confidence, right),
        reliability=reliability(confidence, right),
        certain=float(certain.mean()),
        certain_error=float(1 - right[certain].mean()) if certain.any() else None,
        error_at_coverage={f"{share:g}": error_at_coverage(confidence, right, share) for share in COVERAGES},
        left_out=faces.left_out + len(faces.ignored),
        named_out=faces.named_out,
        ignored=faces.ignored,
        skipped_classes=skipped,
        unreadable=unreadable,
        runtime=clf.runtime,
        device=clf.device,
        precision=clf.precision,
        execution_precision=clf.execution_precision,
        label_set=clf.label_set,
    )
