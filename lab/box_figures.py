"""How much a detector's box costs: labelled face crops, padded to photos, found again by YuNet, cut by ``predict_boxes``.

``python -m lab.box_figures FOLDER --detector face_detection_yunet_2023mar.onnx``: OpenCV's model zoo has the file, and the
extra ``dev`` has OpenCV. One line of JSON: WAR and UAR of the crops as they were given, and of the same faces through each
kind of box."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge.accuracy import confusion_matrix, paired_difference, uar, war
from fer_edge.classifier import Classifier
from fer_edge.console import emit, say
from fer_edge.errors import UsageError
from fer_edge.image import Box, to_inputs
from fer_edge.labelled import label_of, read_faces

Pixels = NDArray[np.uint8]
WAYS: dict[str, dict[str, Any]] = {
    "box stretched": {"shape": "box"},
    "box stretched, margin 0.1": {"shape": "box", "margin": 0.1},
    **{f"square {scale:g}": {"scale": scale} for scale in (0.8, 0.9, 1.0, 1.1, 1.2)},
}


def photo_of(crop: Pixels, border: float) -> Pixels:
    """A face crop (H, W, 3) in the middle of a photo: ``border`` of its side on every side, its edge repeated."""
    high, wide = (round(side * border) for side in crop.shape[:2])
    return np.pad(crop, ((high, high), (wide, wide), (0, 0)), mode="edge")


def found_box(detector: Any, photo: Pixels) -> Box | None:
    """The detector's best box, as far as it lies in the photo; None when there is none."""
    detector.setInputSize((photo.shape[1], photo.shape[0]))
    _, faces = detector.detect(np.ascontiguousarray(photo[:, :, ::-1]))
    if faces is None:
        return None
    x, y, w, h = (float(v) for v in max(faces, key=lambda face: float(face[-1]))[:4])
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(photo.shape[1]), x + w), min(float(photo.shape[0]), y + h)
    return left, top, right - left, bottom - top


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--detector", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YuNet's file."
)
@click.option("--most", default=600, show_default=True, help="Faces of a class.")
@click.option("--least", default=50, show_default=True, help="Leave out classes of fewer faces.")
@click.option("--border", default=0.5, show_default=True, help="Border round each crop, as a share of its side.")
def box(folder: Path, detector: Path, most: int, least: int, border: float) -> None:
    """WAR and UAR of FOLDER (a folder for each class) as given, and through a detector's boxes."""
    import cv2

    cv2.setNumThreads(1)
    yunet = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), score_threshold=0.5)
    everyone = read_faces(folder)
    counts, taken = Counter(everyone.classes), Counter[str]()
    with fer_edge.load(threads=1) as clf:
        truth: list[int] = []
        answers: dict[str, list[int]] = {"given crop": [], **{way: [] for way in WAYS}}
        missed, ratios = 0, []
        for image, name in zip(everyone.images, everyone.classes, strict=True):
            label = label_of(name, clf.labels)
            if label is None or counts[name] < least or taken[name] >= most:
                continue
            taken[name] += 1
            with Image.open(str(image)) as opened:
                crop = np.asarray(opened.convert("RGB"))
            photo = photo_of(crop, border)
            where = found_box(yunet, photo)
            if where is None:
                missed += 1
                continue
            ratios.append(max(where[2:]) / max(crop.shape[:2]))
            truth.append(clf.labels.index(label))
            answers["given crop"].append(_label(clf, crop))
            for way, options in WAYS.items():
                answers[way].append(_label_of_box(clf, photo, where, options))
    if not truth:
        raise UsageError(f"no face of {folder} was found by {detector.name}")
    say(f"{len(truth)} faces, {missed} not found; the longer side of a box is {np.median(ratios):.2f} of the crop's")
    given, positions = np.array(answers["given crop"]), np.array(truth)
    rows = {}
    for way, predicted in answers.items():
        table = confusion_matrix(positions, np.array(predicted), len(clf.labels))
        change = paired_difference(positions, given, np.array(predicted))
        rows[way] = {"war": war(table), "uar": uar(table), "war_change": change.war, "uar_change": change.uar}
    emit({"faces": len(truth), "not_found": missed, "box_to_crop": float(np.median(ratios)), "ways": rows})


def _label(clf: Classifier, crop: Pixels) -> int:
    return clf.labels.index(clf.predict(crop).label)


def _label_of_box(clf: Classifier, photo: Pixels, where: Box, options: dict[str, Any]) -> int:
    """``predict_boxes`` takes its scale from the bundle; here each is tried."""
    spec = clf.bundle.manifest.input
    return _label(clf, to_inputs(photo, spec.size, spec.color, [where], **options)[0])


if __name__ == "__main__":
    box()
