"""How much a detector's box costs: labelled face crops, padded to photos, found again by YuNet, cut by ``predict_boxes``.

``python -m lab.box_figures FOLDER --detector FILE``; without ``--detector``, the one that ``fer-edge faces fetch`` has put
into the cache. One line of JSON: WAR and UAR of the crops as they were given, and of the same faces through each kind of
box, with what each gains on the plain square."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge import Face, FaceFinder
from fer_edge.accuracy import confusion_matrix, paired_difference, uar, war
from fer_edge.classifier import Classifier
from fer_edge.console import emit, say
from fer_edge.errors import UsageError
from fer_edge.image import Box, to_inputs
from fer_edge.labelled import label_of, read_faces

Pixels = NDArray[np.uint8]
SQUARE = "square 1"
WAYS: dict[str, dict[str, Any]] = {
    "box stretched": {"shape": "box"},
    "box stretched, margin 0.1": {"shape": "box", "margin": 0.1},
    **{f"square {scale:g}": {"scale": scale} for scale in (0.8, 0.9, 1.0, 1.1, 1.2)},
    **{f"square {scale:g}, eyes level": {"scale": scale, "angles": "eyes"} for scale in (0.9, 1.0, 1.1)},
}


def photo_of(crop: Pixels, border: float) -> Pixels:
    """A face crop (H, W, 3) in the middle of a photo: ``border`` of its side on every side, its edge repeated."""
    high, wide = (round(side * border) for side in crop.shape[:2])
    return np.pad(crop, ((high, high), (wide, wide), (0, 0)), mode="edge")


def labelled_crops(folder: Path, labels: tuple[str, ...], most: int, least: int) -> Iterator[tuple[int, Pixels]]:
    """(position of the label, crop) of a folder's faces: of classes with ``least`` faces, the first ``most``."""
    everyone = read_faces(folder)
    counts, taken = Counter(everyone.classes), Counter[str]()
    for image, name in zip(everyone.images, everyone.classes, strict=True):
        label = label_of(name, labels)
        if label is None or counts[name] < least or taken[name] >= most:
            continue
        taken[name] += 1
        with Image.open(str(image)) as opened:
            yield labels.index(label), np.asarray(opened.convert("RGB"))


def best_face(finder: FaceFinder, photo: Pixels) -> Face | None:
    """The face that the detector is surest of."""
    return max(finder.find_rgb(photo), key=lambda face: face.score, default=None)


def clipped(box: Box, photo: Pixels) -> Box:
    """A box as far as it lies in the photo."""
    x, y, w, h = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(photo.shape[1]), x + w), min(float(photo.shape[0]), y + h)
    return left, top, right - left, bottom - top


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--detector", help="YuNet's file. Default: the one in the cache.")
@click.option("--most", default=600, show_default=True, help="Faces of a class.")
@click.option("--least", default=50, show_default=True, help="Leave out classes of fewer faces.")
@click.option("--border", default=0.5, show_default=True, help="Border round each crop, as a share of its side.")
def box(folder: Path, detector: str | None, most: int, least: int, border: float) -> None:
    """WAR and UAR of FOLDER (a folder for each class) as given, and through a detector's boxes."""
    from fer_edge.live.predictions import eye_angle

    with fer_edge.load(threads=1) as clf, FaceFinder(detector, least_score=0.5) as finder:
        truth: list[int] = []
        answers: dict[str, list[int]] = {"given crop": [], **{way: [] for way in WAYS}}
        missed, ratios, angles = 0, [], []
        for label, crop in labelled_crops(folder, clf.labels, most, least):
            photo = photo_of(crop, border)
            face = best_face(finder, photo)
            if face is None:
                missed += 1
                continue
            where = clipped(face.box, photo)
            ratios.append(max(where[2:]) / max(crop.shape[:2]))
            angles.append(abs(eye_angle(face)))
            truth.append(label)
            answers["given crop"].append(_label(clf, crop))
            for way, options in WAYS.items():
                turn = {"angles": [eye_angle(face)]} if "angles" in options else {}
                answers[way].append(_label_of_box(clf, photo, where, {**options, **turn}))
    if not truth:
        raise UsageError(f"no face of {folder} was found by {finder.name}")
    say(f"{len(truth)} faces, {missed} not found; the longer side of a box is {np.median(ratios):.2f} of the crop's")
    positions, square = np.array(truth), np.array(answers[SQUARE])
    rows: dict[str, dict[str, Any]] = {}
    for way, predicted in answers.items():
        table = confusion_matrix(positions, np.array(predicted), len(clf.labels))
        rows[way] = {"war": war(table), "uar": uar(table)}
        if way != SQUARE:
            gain = paired_difference(positions, square, np.array(predicted))
            rows[way] |= {"war_gain": gain.war, "war_interval": gain.war_interval}
            rows[way] |= {"uar_gain": gain.uar, "uar_interval": gain.uar_interval}
    found = {"faces": len(truth), "not_found": missed, "box_to_crop": float(np.median(ratios))}
    leaning = {"median_angle": float(np.median(angles)), "over_10_degrees": float(np.mean(np.array(angles) > 10))}
    emit({**found, **leaning, "bundle": clf.bundle.manifest.name, "version": clf.bundle.manifest.version, "ways": rows})


def _label(clf: Classifier, crop: Pixels) -> int:
    return clf.labels.index(clf.predict(crop).label)


def _label_of_box(clf: Classifier, photo: Pixels, where: Box, options: dict[str, Any]) -> int:
    """``predict_boxes`` takes its scale from the bundle; here each is tried."""
    spec = clf.bundle.manifest.input
    return _label(clf, to_inputs(photo, spec.size, spec.color, [where], **options)[0])


if __name__ == "__main__":
    box()
