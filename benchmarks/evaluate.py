"""Accuracy on labelled faces: WAR (accuracy), UAR (mean recall of the classes present), confusion, per-class recall, each
with the interval that the number of faces allows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from fer_edge.classifier import Classifier
from fer_edge.errors import ImageError, LabelError, UsageError
from fer_edge.image import IMAGE_SUFFIXES, ImageLike
from fer_edge.labels import SYNONYMS


@dataclass(frozen=True)
class LabelledFaces:
    """``images`` with the name of each one's class; ``left_out`` counts those without a usable label."""

    images: Sequence[ImageLike]
    classes: Sequence[str]
    left_out: int = 0


@dataclass(frozen=True)
class Intervals:
    """95% intervals (low, high) in fractions of 1; a class without a face has None."""

    war: tuple[float, float]
    uar: tuple[float, float]
    per_class_recall: dict[str, tuple[float, float] | None]


@dataclass(frozen=True)
class Evaluation:
    """``war`` and ``uar`` are fractions of 1; ``confusion`` (K, K) has the truth in rows, in the order of ``labels``; a
    class without a face has recall None and does not count in ``uar``; ``unreadable`` lists the images that could not
    be read, which count nowhere else. ``intervals`` are 95% bootstrap intervals."""

    n: int
    war: float
    uar: float
    intervals: Intervals
    labels: tuple[str, ...]
    confusion: list[list[int]]
    per_class_recall: dict[str, float | None]
    per_class_count: dict[str, int]
    left_out: int
    skipped_classes: dict[str, int]
    unreadable: list[dict[str, str]]
    runtime: str
    device: str
    precision: str
    execution_precision: str
    label_set: str

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def read_faces(data: Path, truth: str | None = None, classes: str | None = None) -> LabelledFaces:
    """A folder with a folder per class, or an npz with ``images``, an integer member ``truth`` (-1: left out) and a
    name list ``classes``.

    Raises UsageError when ``data`` is neither, or the members do not fit."""
    if data.is_dir():
        files = [
            (p, folder.name)
            for folder in sorted(data.iterdir())
            if folder.is_dir()
            for p in sorted(folder.iterdir())
            if p.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise UsageError(f"{data} has no images in class folders; expected {data}/<class>/<image>")
        return LabelledFaces([p for p, _ in files], [c for _, c in files])
    if not data.is_file():
        raise UsageError(f"{data} does not exist")
    if data.suffix.lower() != ".npz" and (truth is None or classes is None):
        raise UsageError(f"{data} is neither a folder with a folder per class nor an npz file")
    if truth is None or classes is None:
        raise UsageError(f"{data} is an npz file: name its members with --truth MEMBER and --classes MEMBER")
    images, labels, names = _members(data, "images", truth, classes)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UsageError(
            f"{data}: images must be uint8 (N, H, W) gray or (N, H, W, 3) RGB; got {images.dtype} {images.shape}"
        )
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UsageError(f"{data}: {classes} must be a list of class names; got {names.dtype} {names.shape}")
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 1
        or len(labels) != len(images)
        or labels.max(initial=-1) >= len(names)
        or labels.min(initial=0) < -1
    ):
        raise UsageError(
            f"{data}: {truth} must hold one integer per image, -1 or a position in {classes} ({len(names)} names)"
        )
    kept = np.flatnonzero(labels >= 0)
    return LabelledFaces([images[i] for i in kept], [str(names[labels[i]]) for i in kept], len(labels) - len(kept))


def _members(data: Path, *names: str) -> list[NDArray[Any]]:
    """Members of an npz, without pickle. Raises UsageError."""
    try:
        with zipfile.ZipFile(data) as archive:
            held = [entry.removesuffix(".npy") for entry in archive.namelist()]
        missing = [name for name in names if name not in held]
        if missing:
            raise UsageError(f"{data} has no member {missing[0]!r}; it has {', '.join(held)}")
        with np.load(data, allow_pickle=False) as z:
            return [z[name] for name in names]
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{data} is not a readable npz file: {reason}") from error


def label_of(name: str, labels: Sequence[str]) -> str | None:
    """The label that a class name means: itself, or by the table of synonyms ("happy" = happiness); None when the set
    has none."""
    plain = name.strip().lower()
    return next((label for label in (name, plain, SYNONYMS.get(plain)) if label in labels), None)


def evaluate(
    clf: Classifier,
    faces: LabelledFaces,
    skip_unknown: bool = False,
    on_face: Callable[[float], None] = lambda done: None,
) -> Evaluation:
    """Classify every face and count. ``on_face`` gets the fraction done.

    Raises LabelError for a class that is no label of the set (unless ``skip_unknown``), UsageError when nothing is left
    to count."""
    meaning = {name: label_of(name, clf.labels) for name in dict.fromkeys(faces.classes)}
    unknown = [name for name, label in meaning.items() if label is None]
    if unknown and not skip_unknown:
        raise LabelError(
            f"the class {unknown[0]!r} is no label of {clf.label_set} ({', '.join(clf.labels)}); "
            "choose --labels, or pass --skip-unknown"
        )
    position = {label: i for i, label in enumerate(clf.labels)}
    truth, predicted, unreadable = [], [], []
    for i, (image, label) in enumerate(_known(faces, meaning)):
        try:
            predicted.append(position[clf.predict(image).label])
            truth.append(position[label])
        except ImageError as error:
            unreadable.append({"image": str(image) if isinstance(image, (str, Path)) else f"image {i}", "error": str(error)})
        on_face((i + 1) / len(faces.images))
    if not truth:
        why = f"; the first reason: {unreadable[0]['error']}" if unreadable else ": none has a label of this set"
        raise UsageError(f"no face could be evaluated{why}")
    skipped = {name: sum(c == name for c in faces.classes) for name in unknown}
    return _counted(clf, np.array(truth), np.array(predicted), faces.left_out, skipped, unreadable)


def _known(faces: LabelledFaces, meaning: dict[str, str | None]) -> Iterator[tuple[ImageLike, str]]:
    for image, name in zip(faces.images, faces.classes, strict=True):
        label = meaning[name]
        if label is not None:
            yield image, label


def _counted(
    clf: Classifier,
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    left_out: int,
    skipped: dict[str, int],
    unreadable: list[dict[str, str]],
) -> Evaluation:
    order = list(range(len(clf.labels)))
    present = sorted(set(truth.tolist()))
    recalls = recall_score(truth, predicted, labels=present, average=None, zero_division=0.0)
    by_class = dict(zip(present, recalls.tolist(), strict=True))
    table = confusion_matrix(truth, predicted, labels=order)
    return Evaluation(
        n=len(truth),
        war=float(accuracy_score(truth, predicted)),
        uar=float(np.mean(recalls)),
        intervals=intervals(table, clf.labels),
        labels=clf.labels,
        confusion=table.tolist(),
        per_class_recall={label: by_class.get(i) for i, label in enumerate(clf.labels)},
        per_class_count={label: int((truth == i).sum()) for i, label in enumerate(clf.labels)},
        left_out=left_out,
        skipped_classes=skipped,
        unreadable=unreadable,
        runtime=clf.runtime,
        device=clf.device,
        precision=clf.precision,
        execution_precision=clf.execution_precision,
        label_set=clf.label_set,
    )


def intervals(confusion: NDArray[np.int64], labels: Sequence[str], draws: int = 4000) -> Intervals:
    """95% percentile bootstrap intervals. ``confusion`` (K, K) has the truth in rows.

    Drawing n faces with replacement is drawing its cells from the multinomial distribution of their shares (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). A class that a draw misses is left out of that
    draw's UAR. The draws have a fixed seed."""
    n, k = int(confusion.sum()), len(labels)
    drawn = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, draws).reshape(draws, k, k)
    right, faces = drawn.diagonal(axis1=1, axis2=2).astype(np.float64), drawn.sum(2)
    recalls = np.divide(right, faces, out=np.full((draws, k), np.nan), where=faces > 0)
    there = confusion.sum(1) > 0

    def middle(values: NDArray[np.float64]) -> tuple[float, float]:
        low, high = np.nanpercentile(values, (2.5, 97.5))
        return float(low), float(high)

    by_class = {label: middle(recalls[:, i]) if there[i] else None for i, label in enumerate(labels)}
    return Intervals(middle(right.sum(1) / n), middle(np.nanmean(recalls[:, there], axis=1)), by_class)
