"""How steady ``watch`` is, on clips with known truth: false changes, the delay of a true one, numbers that are kept.

``python -m lab.figures steadiness FACES --detector YUNET.onnx``. Constants of ``fer_edge/live`` were chosen on one half of
the people (``--half 0``); the figures are those of the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

import fer_edge
from fer_edge.classifier import Classifier
from fer_edge.console import emit, fraction
from fer_edge.errors import UsageError
from fer_edge.live.faces import FaceFinder
from fer_edge.live.pipeline import Step

from .scenes import Actor, Film, Photo, Pose, even, people, uneven, wander

Names = NDArray[np.str_]
T = TypeVar("T")
LABELS = ("neutral", "happiness", "surprise", "anger", "sadness")
"""Classes with photos enough."""
SIZE = (320, 240)
IN_TIME = 0.7
"""Seconds of the medium in which a change is to be told."""
SHOWN = 0.75
"""A photo shows its label where at least this share of its frames, each judged alone, has it."""


@dataclass(frozen=True)
class Take:
    """One actor of a clip, frame by frame, where a track had the face: ``said`` by ``watch`` and ``alone`` by the frame
    alone, against ``truth``; ``photo``: which of the photos, ``since``: seconds that it has been shown."""

    times: NDArray[np.float64]
    said: Names
    alone: Names
    truth: Names
    photo: NDArray[np.intp]
    since: NDArray[np.float64]

    def shown(self, photo: int) -> bool:
        """Whether the frames of a photo show its label."""
        here = self.photo == photo
        return bool(here.any()) and float((self.alone == self.truth)[here].mean()) >= SHOWN

    def delays(self) -> list[float]:
        """Of every change between two photos that show their labels: seconds until ``watch`` said so; inf: never."""
        found = []
        for photo in range(1, int(self.photo.max()) + 1):
            if self.shown(photo) and self.shown(photo - 1):
                right = self.since[(self.photo == photo) & (self.said == self.truth)]
                found.append(float(right[0]) if len(right) else float("inf"))
        return found


class Steps:
    """An output that keeps every step, without its pixels."""

    name = "steps"

    def __init__(self, clf: Classifier) -> None:
        self.clf = clf
        self.rows: list[tuple[float, dict[int, tuple[float, float, str, str]]]] = []

    def step(self, step: Step) -> None:
        """Middle, label, and label of this face alone, by track."""
        row = {}
        for state in step.tracks:
            x, y, wide, high = state.face.box
            alone = self.clf.predict_features(self.clf.box_features(step.frame.pixels, [state.face.box]))[0].label
            row[state.track] = (x + wide / 2, y + high / 2, state.prediction.label if state.prediction else "", alone)
        self.rows.append((step.frame.time, row))

    def event(self, event: object) -> None:
        """Not needed."""

    def lost(self, gap: object) -> None:
        """No film is."""

    def close(self) -> None:
        """Nothing is held."""


def watched(film: Film, clf: Classifier, finder: FaceFinder) -> list[tuple[float, dict[int, tuple[float, float, str, str]]]]:
    """(time, track -> (x, y, said, alone)) of every frame of a film."""
    steps = Steps(clf)
    for _ in fer_edge.watch(film, clf, finder, outputs=[steps]):
        pass
    return steps.rows


def take_of(film: Film, clf: Classifier, finder: FaceFinder) -> Take:
    """A film of one actor."""
    (actor,) = film.actors
    starts = np.array([since for since, _ in actor.shows])
    rows = [(time, *next(iter(row.values()))[2:]) for time, row in watched(film, clf, finder) if row]
    times = np.array([row[0] for row in rows])
    photo = np.searchsorted(starts, times, "right") - 1
    truth = np.array([shown.label for _, shown in actor.shows])[photo]
    said, alone = (np.array([row[i] for row in rows]) for i in (1, 2))
    # A change by fading is there when the half of it is.
    return Take(times, said, alone, truth, photo, times - starts[photo] - np.where(photo > 0, film.fade / 2, 0))


def changes(labels: Names) -> int:
    """How often a label follows another one."""
    return int((labels[1:] != labels[:-1]).sum())


def still_film(photo: Photo, seconds: float, rng: np.random.Generator) -> Film:
    """One photo before a camera, even or uneven in time."""
    return Film(
        [Actor(((0.0, photo),), wander(rng, SIZE, rng.uniform(90, 130)))], _moments(seconds, rng), size=SIZE, **_sensor(rng)
    )


def changing_film(
    photos: dict[str, list[Photo]], same: Sequence[list[Photo]], seconds: float, rng: np.random.Generator
) -> Film:
    """Another label every 3 to 5 seconds, by a cut or a short fade: half of the films of one person, half of many."""
    one = _one_of(same, rng) if rng.random() < 0.5 else None
    shows: list[tuple[float, Photo]] = []
    since = 0.0
    while since < seconds:
        before = shows[-1][1].label if shows else None
        if one is None:
            choice = photos[str(rng.choice([label for label in LABELS if label != before]))]
        else:
            choice = [photo for photo in one if photo.label != before]
        shows.append((since, _one_of(choice, rng)))
        since = round(since + rng.uniform(3, 5), 3)
    fade = float(rng.choice([0.0, 0.2]))
    actor = Actor(tuple(shows), wander(rng, SIZE, rng.uniform(90, 130)))
    return Film([actor], _moments(seconds, rng), size=SIZE, fade=fade, **_sensor(rng))


def crossing_film(pair: Sequence[Photo], rng: np.random.Generator) -> Film:
    """Two walk past each other within 2 to 5 seconds, the second before the first, who is then behind a board for a
    second."""
    wide, high = 640, 240
    seconds = rng.uniform(2, 5)
    side = rng.uniform(80, 110, 2)
    level = rng.uniform(-15, 15, 2)

    def walk(i: int) -> Any:
        begin, end = (80, wide - 80) if i else (wide - 80, 80)

        def pose(moment: float) -> Pose:
            share = min(moment / seconds, 1.0) if moment < seconds else 1.0
            sway = 12 * np.sin(2 * moment) if moment < seconds else 12 * np.sin(2 * seconds)
            return Pose(begin + (end - begin) * share, high / 2 + level[i] + 6 * np.sin(3 * moment), side[i], float(sway))

        return pose

    actors = [
        Actor(((0.0, pair[0]),), walk(0), ((seconds + 1, seconds + 2),)),
        Actor(((0.0, pair[1]),), walk(1)),
    ]
    return Film(actors, _moments(seconds + 3, rng), size=(wide, high), **_sensor(rng))


def numbers_of(film: Film, clf: Classifier, finder: FaceFinder) -> list[list[int]]:
    """The tracks that each of two actors had, one after the other: one where the number was kept. While one face lies before
    the other, nobody can say whose it is."""
    found: list[list[int]] = [[] for _ in film.actors]
    for time, row in watched(film, clf, finder):
        one, other = poses = [actor.pose(time) for actor in film.actors]
        if np.hypot(one.x - other.x, one.y - other.y) < max(one.side, other.side):
            continue
        for track, (x, y, _, _) in row.items():
            near = int(np.argmin([np.hypot(x - pose.x, y - pose.y) / pose.side for pose in poses]))
            if np.hypot(x - poses[near].x, y - poses[near].y) < 0.3 * poses[near].side and track not in found[near][-1:]:
                found[near].append(track)
    return found


def _one_of(choice: Sequence[T], rng: np.random.Generator) -> T:
    return choice[int(rng.integers(len(choice)))]


def _moments(seconds: float, rng: np.random.Generator) -> list[float]:
    return even(seconds) if rng.random() < 0.5 else uneven(seconds, 15.0, rng)


def _sensor(rng: np.random.Generator) -> dict[str, Any]:
    return {"noise": rng.uniform(3, 10), "seed": int(rng.integers(2**31))}


@click.command()
@click.argument("faces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--detector", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YuNet's file.")
@click.option("--half", type=click.IntRange(0, 1), default=1, show_default=True, help="Which half of the people.")
@click.option(
    "--still", type=click.IntRange(1), default=20, show_default=True, help="Clips of 60 s in which nothing changes."
)
@click.option(
    "--changing",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Clips of 24 s with another label every 3 to 5 s.",
)
@click.option(
    "--crossing",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Clips in which two cross, and one is hidden for a second.",
)
def steadiness(faces: Path, detector: Path | None, half: int, still: int, changing: int, crossing: int) -> None:
    """What ``watch`` says of clips made from FACES (a folder for each class, files called Name_0001.jpg), against the truth
    and against each frame judged alone."""
    everyone = people(faces, half)
    photos = {label: [p for own in everyone.values() for p in own if p.label == label] for label in LABELS}
    judged = [[photo for photo in own if photo.label in LABELS] for own in everyone.values()]
    same = [own for own in judged if len({photo.label for photo in own}) > 1]
    if not all(photos.values()) or not same:
        raise UsageError(f"{faces} has not each of {', '.join(LABELS)}, and people with several of them")
    rng = np.random.default_rng(half)
    with fer_edge.load(threads=1) as clf, FaceFinder(detector) as finder, fraction(sys.stderr, "clips") as done:
        total, made = still + changing + crossing, 0

        def made_one() -> None:
            nonlocal made
            made += 1
            done(made / total)

        quiet: list[Take] = []
        lively: list[Take] = []
        kept: list[bool] = []
        for i in range(still):
            choice = photos[LABELS[i % len(LABELS)]]
            quiet.append(take_of(still_film(_one_of(choice, rng), 60, rng), clf, finder))
            made_one()
        for _ in range(changing):
            lively.append(take_of(changing_film(photos, same, 24, rng), clf, finder))
            made_one()
        for _ in range(crossing):
            names = rng.choice(list(everyone), 2, replace=False)
            pair = [everyone[str(name)][0] for name in names]
            kept += [len(numbers) == 1 for numbers in numbers_of(crossing_film(pair, rng), clf, finder)]
            made_one()
    both = quiet + lively
    emit(
        {
            "figure": "steadiness",
            "people": len(everyone),
            "still": summary_of_still(quiet),
            "changing": summary_of_changing(lively),
            "changes": {"said": sum(changes(t.said) for t in both), "alone": sum(changes(t.alone) for t in both)},
            "crossing": {"people": len(kept), "kept_their_number": float(np.mean(kept))},
        }
    )


def summary_of_still(takes: Sequence[Take]) -> dict[str, Any]:
    """False changes in a minute, of all clips and of those whose frames show the label; how often the label is right."""
    shown = [take for take in takes if take.shown(0)]
    return {
        "minutes": sum(float(take.times[-1] - take.times[0]) for take in takes) / 60,
        "changes": sum(changes(take.said) for take in takes),
        "changes_alone": sum(changes(take.alone) for take in takes),
        "shown_minutes": sum(float(take.times[-1] - take.times[0]) for take in shown) / 60,
        "shown_changes": sum(changes(take.said) for take in shown),
        "shown_changes_alone": sum(changes(take.alone) for take in shown),
        **_right(takes),
    }


def summary_of_changing(takes: Sequence[Take]) -> dict[str, Any]:
    """Delays of true changes; how often the label is right when there was time for it."""
    delays = np.array([delay for take in takes for delay in take.delays()])
    return {
        "true_changes": len(delays),
        "in_time": float((delays <= IN_TIME).mean()),
        "delay_s": {f"p{share}": float(np.quantile(delays, share / 100, method="lower")) for share in (50, 90, 95)},
        **_right(takes),
    }


def _right(takes: Sequence[Take]) -> dict[str, float]:
    """Share of frames with the true label, IN_TIME after the photo's beginning, in the mean of clips."""
    rows = [[(names == take.truth)[take.since >= IN_TIME].mean() for names in (take.said, take.alone)] for take in takes]
    said, alone = np.mean(rows, 0).tolist()
    return {"right": said, "right_alone": alone}
