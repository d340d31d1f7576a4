"""What a face may be like to be found and judged. ``python -m lab.face_figures eyes|longest|noise|turned ...``; each prints
one line of JSON."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import fer_edge
from fer_edge import Face, FaceFinder
from fer_edge.accuracy import confusion_matrix, uar, war
from fer_edge.console import emit, say
from fer_edge.errors import UsageError
from fer_edge.image import Box, load_picture
from fer_edge.live.detectors import Detector, open_detector
from fer_edge.live.faces import faces_of

from .box_figures import Pixels, best_face, labelled_crops, photo_of
from .commands import Figures

DISTANCES = (40, 32, 24, 20, 16, 14, 12, 10, 8, 7, 6, 5, 4)
LONGEST = (160, 240, 320, 480, 640, 960, 1280, 1600)
GRAINS = (0, 5, 10, 15, 25, 40, 60)
GAUSSIANS = (0, 3, 5, 7, 9)
ROOM = 100_000
"""A side that no picture here has."""

detector_option = click.option("--detector", help="YuNet's file. Default: the one in the cache.")


@click.group(cls=Figures)
def figures() -> None:
    """Faces found and judged, by size, by turn, and by what the detector looks at."""


@figures.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@detector_option
@click.option("--most", default=200, show_default=True, help="Faces of a class.")
@click.option("--least", default=50, show_default=True, help="Leave out classes of fewer faces.")
def eyes(folder: Path, detector: str | None, most: int, least: int) -> None:
    """WAR and UAR of FOLDER's faces (a folder for each class), each in a photo that is shrunk until so many pixels lie
    between the eyes. The boxes are those of the large photos, shrunk with them: the same faces are judged at every size.
    "found": the share that the detector finds in the small photo; faces in scenes, on their shoulders, are found smaller."""
    with fer_edge.load(threads=1) as clf, FaceFinder(detector, longest=ROOM) as finder:
        truth: list[int] = []
        answers: dict[int, list[tuple[int, float, bool, bool]]] = {distance: [] for distance in DISTANCES}
        for label, crop in labelled_crops(folder, clf.labels, most, least):
            photo = photo_of(crop, 0.5)
            face = best_face(finder, photo)
            if face is None or face.eye_distance < max(DISTANCES):
                continue
            truth.append(label)
            for distance in DISTANCES:
                share = distance / face.eye_distance
                small = _shrunk(photo, share)
                x, y, w, h = (value * share for value in face.box)
                said = clf.predict(small, box=(x, y, w, h))
                seen = best_face(finder, small) is not None
                answers[distance].append((clf.labels.index(said.label), said.score, said.certain, seen))
    if not truth:
        raise UsageError(f"{folder} has no face of {max(DISTANCES)} pixels between the eyes")
    rows, right = {}, np.array(truth)
    for distance, row in answers.items():
        place, sure, certain, there = (np.array(column) for column in zip(*row, strict=True))
        table = confusion_matrix(right, place, len(clf.labels))
        wrong = float((place != right)[certain].mean()) if certain.any() else None
        rows[str(distance)] = {
            "war": war(table),
            "uar": uar(table),
            "mean_score": float(sure.mean()),
            "certain": float(certain.mean()),
            "certain_error": wrong,
            "found": float(there.mean()),
        }
    emit({"faces": len(truth), **_bundle(clf), "pixels_between_the_eyes": rows})


@figures.command()
@click.argument("scenes", type=click.Path(exists=True, file_okay=False, path_type=Path))
@detector_option
@click.option("--runs", default=30, show_default=True, help="Of each size, in turns.")
def longest(scenes: Path, detector: str | None, runs: int) -> None:
    """What looking at smaller photos loses: faces of SCENES (images/, SOURCES.csv with a column yunet_faces), found at full
    size and at each longer side, and milliseconds for a frame of 4:3, one thread."""
    from fer_edge.live.faces import use_threads

    with (scenes / "SOURCES.csv").open(newline="") as file:
        counts = {row["file"]: int(row["yunet_faces"]) for row in csv.DictReader(file)}
    photos = {name: np.asarray(load_picture(scenes / "images" / name).convert("RGB")) for name in counts}
    use_threads(1)
    with FaceFinder(detector, longest=ROOM) as full:
        expected = {name: full.find_rgb(photo) for name, photo in photos.items()}
    say(f"{sum(counts.values())} faces by the table, {sum(map(len, expected.values()))} found at full size")
    finders = {side: FaceFinder(detector, longest=side) for side in LONGEST}
    times: dict[int, list[float]] = {side: [] for side in LONGEST}
    frame = np.asarray(Image.fromarray(next(iter(photos.values()))).resize((1600, 1200)))
    for _ in range(runs):
        for side, finder in finders.items():
            begin = time.perf_counter()
            finder.find_rgb(frame)
            times[side].append((time.perf_counter() - begin) * 1e3)
    rows = {}
    for side, finder in finders.items():
        pairs = [
            (f, _match(f, here))
            for name, photo in photos.items()
            for here in [finder.find_rgb(photo)]
            for f in expected[name]
        ]
        judged = [found for face, found in pairs if face.eye_distance >= 12]
        rows[str(side)] = {
            "found": sum(found for _, found in pairs),
            "found_of_12_pixels": sum(judged),
            "ms": float(np.median(times[side])),
            "ms_min": min(times[side]),
        }
        finder.close()
    total = {"faces": sum(map(len, expected.values())), "photos": len(photos), "by_table": sum(counts.values())}
    emit({**total, "of_12_pixels": len(judged), "longest": rows})


@figures.command()
@click.argument("scenes", type=click.Path(exists=True, file_okay=False, path_type=Path))
@detector_option
def noise(scenes: Path, detector: str | None) -> None:
    """What a sensor's grain hides from the detector: of the faces found in the photos of SCENES/images at 640 pixels, how
    many are found again in grain of so many gray levels, as it is and smoothed by Gaussians of several sides, how many
    more are found that were none, and what the finder does. "grain": least, median and most of what is measured."""
    import cv2

    from fer_edge.live.noise import grain

    photos = [np.asarray(load_picture(path).convert("RGB")) for path in sorted((scenes / "images").iterdir())]
    photos = [_shrunk(photo, min(1.0, 640 / max(photo.shape))) for photo in photos]
    rng = np.random.default_rng(0)
    rows = {}
    plain = open_detector(detector, 0.6)
    with FaceFinder(plain, longest=ROOM) as finder:  # which closes it
        expected = [finder.find_rgb(photo) for photo in photos]
        for sigma in GRAINS:
            seen = [np.clip(photo + rng.normal(0, sigma, photo.shape), 0, 255).astype(np.uint8) for photo in photos]
            ways: dict[str, list[list[Face]]] = {"finder": [finder.find_rgb(photo) for photo in seen]}
            for side in GAUSSIANS:
                smooth = [cv2.GaussianBlur(photo, (side, side), 0) if side else photo for photo in seen]
                ways[f"side {side}"] = [_plain_faces(plain, photo) for photo in smooth]
            measured = [grain(photo) for photo in seen]
            rows[str(sigma)] = {
                "grain": [round(float(v), 1) for v in (min(measured), np.median(measured), max(measured))],
                **{
                    way: {
                        "found": sum(_match(f, here) for was, here in zip(expected, found, strict=True) for f in was),
                        "more": sum(not _match(f, was) for was, here in zip(expected, found, strict=True) for f in here),
                    }
                    for way, found in ways.items()
                },
            }
    emit({"faces": sum(map(len, expected)), "photos": len(photos), "noise": rows})


@figures.command()
@click.argument("photo", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@detector_option
def turned(photo: Path, detector: str | None) -> None:
    """How far the detector's eyes follow a head that leans: PHOTO, of one face, turned about the face's centre and seen at
    several sizes."""
    picture = load_picture(photo).convert("RGB")
    from fer_edge.live.predictions import eye_angle

    rows: dict[str, dict[str, float | None]] = {}
    with FaceFinder(detector, longest=ROOM) as finder:
        (face,) = finder.find_rgb(np.asarray(picture))
        x, y, w, h = face.box
        for times in (0.5, 1.0, 2.0):
            seen = picture.resize((round(picture.width * times), round(picture.height * times)))
            centre = ((x + w / 2) * times, (y + h / 2) * times)
            row: dict[str, float | None] = {}
            for angle in (-40, -30, -20, -10, 0, 10, 20, 30, 40):
                leaning = seen.rotate(-angle, Image.Resampling.BICUBIC, center=centre)
                here = best_face(finder, np.asarray(leaning))
                row[str(angle)] = None if here is None else round(eye_angle(here), 1)
            rows[f"{w * times:.0f} pixels wide"] = row
    emit(rows)


def _plain_faces(detector: Detector, photo: Pixels) -> list[Face]:
    size = photo.shape[1], photo.shape[0]
    return faces_of(np.asarray(detector.detect(photo), np.float64), size, size)


def _shrunk(photo: Pixels, share: float) -> Pixels:
    size = (max(1, round(photo.shape[1] * share)), max(1, round(photo.shape[0] * share)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))


def _match(face: Face, others: list[Face]) -> bool:
    return any(_union_share(face.box, other.box) > 0.4 for other in others)


def _union_share(one: Box, other: Box) -> float:
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(0.0, wide) * max(0.0, high)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def _bundle(clf: Any) -> dict[str, str]:
    return {"bundle": clf.bundle.manifest.name, "version": clf.bundle.manifest.version}


if __name__ == "__main__":
    figures()
