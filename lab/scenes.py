"""Clips with known truth, made in memory: photos of faces that move, turn, are dimmed, hidden, cross each other, and become
another face at known times. Frames as a source gives them; no codec."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_edge.live.frames import Frame

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """A crop of a face, by file; ``label``: the folder that it lies in."""

    path: Path
    person: str
    label: str


@dataclass(frozen=True)
class Pose:
    """Where a photo's middle is in the frame, and its side, in pixels; ``turn`` in degrees; ``squeeze``: width by height;
    ``light``: what its values are multiplied by."""

    x: float
    y: float
    side: float
    turn: float = 0.0
    squeeze: float = 1.0
    light: float = 1.0


@dataclass(frozen=True)
class Actor:
    """``shows``: (since when, photo) in order of time, the first at 0; ``hidden``: (from, until), behind a board."""

    shows: tuple[tuple[float, Photo], ...]
    pose: Callable[[float], Pose]
    hidden: tuple[tuple[float, float], ...] = ()

    def photo(self, moment: float) -> Photo:
        """What is shown at ``moment``."""
        return next(photo for since, photo in reversed(self.shows) if since <= moment)

    def visible(self, moment: float) -> bool:
        """Whether no board is before the face."""
        return not any(since <= moment < until for since, until in self.hidden)


class Film:
    """A source (:class:`fer_edge.live.sources.Source`): ``actors`` from back to front, at ``moments`` in seconds, in
    pictures of ``size`` (width, height). One photo fades into the next over ``fade`` seconds; ``noise``: standard deviation
    of what a sensor adds, of 255."""

    name = "film"
    live = False
    dropped = 0

    def __init__(
        self,
        actors: Sequence[Actor],
        moments: Sequence[float],
        *,
        size: tuple[int, int] = (320, 240),
        fade: float = 0.0,
        noise: float = 6.0,
        seed: int = 0,
    ) -> None:
        self.actors, self.moments, self.size, self.fade = actors, moments, size, fade
        self.seconds: float | None = moments[-1]
        self._rng = np.random.default_rng(seed)
        self._wall = _wall(size, self._rng)
        # Drawn once and cut at random places: fresh noise for every frame takes longer than all else.
        self._noise = self._rng.normal(0, noise, 3 * size[0] * size[1] + 100_000).astype(np.float32)
        self._photos: dict[Path, NDArray[np.float32]] = {}

    def __iter__(self) -> Iterator[Frame]:
        for number, moment in enumerate(self.moments):
            yield Frame(number, moment, self.picture(moment), time.monotonic())

    def close(self) -> None:
        """Nothing is held."""

    def picture(self, moment: float) -> Pixels:
        """uint8 (H, W, 3), RGB."""
        scene = self._wall.copy()
        for actor in self.actors:
            pose = actor.pose(moment)
            self._lay(scene, self._shown(actor, moment) * pose.light, pose)
            if not actor.visible(moment):
                board = np.full((4, 4, 4), (90.0, 110.0, 100.0, 255.0), np.float32)
                self._lay(scene, board, Pose(pose.x, pose.y, 1.2 * pose.side))
        start = int(self._rng.integers(100_000))
        noisy = scene + self._noise[start : start + scene.size].reshape(scene.shape)
        return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)

    def _shown(self, actor: Actor, moment: float) -> NDArray[np.float32]:
        """Colour and, times its share, opacity (S, S, 4)."""
        now = self._load(actor.photo(moment))
        since = max(since for since, _ in actor.shows if since <= moment)
        if since == 0 or moment - since >= self.fade:
            return now
        share = (moment - since) / self.fade
        return share * now + (1 - share) * self._load(actor.photo(since - 1e-9))

    def _load(self, photo: Photo) -> NDArray[np.float32]:
        if photo.path not in self._photos:
            with Image.open(photo.path) as opened:
                pixels = np.asarray(opened.convert("RGB"), np.float32)
            high, wide = pixels.shape[:2]
            down, across = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
            round_ = (np.abs(down) ** 4 + np.abs(across) ** 4) ** 0.25
            opacity = np.clip((1 - round_) / 0.15, 0, 1)[..., None]
            self._photos[photo.path] = np.concatenate([pixels * opacity, 255 * opacity], 2).astype(np.float32)
        return self._photos[photo.path]

    def _lay(self, scene: NDArray[np.float32], layer: NDArray[np.float32], pose: Pose) -> None:
        """A layer over the scene, in place; its colours are multiplied by its opacity already."""
        import cv2

        high, wide = layer.shape[:2]
        angle = math.radians(pose.turn)
        across, down = pose.side * pose.squeeze / wide, pose.side / high
        matrix = np.array(
            [[math.cos(angle) * across, -math.sin(angle) * down], [math.sin(angle) * across, math.cos(angle) * down]]
        )
        shift = np.array([pose.x, pose.y]) - matrix @ np.array([wide / 2, high / 2])
        drawn = cv2.warpAffine(layer, np.column_stack([matrix, shift]), self.size, flags=cv2.INTER_LINEAR)
        scene *= 1 - drawn[..., 3:] / 255
        scene += drawn[..., :3]


def _wall(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """A wall with soft spots (H, W, 3)."""
    import cv2

    spots = rng.uniform(100, 150, (6, 8, 3)).astype(np.float32)
    wall: NDArray[np.float32] = cv2.resize(spots, size, interpolation=cv2.INTER_CUBIC)
    return wall


def wander(rng: np.random.Generator, size: tuple[int, int], side: float, strength: float = 1.0) -> Callable[[float], Pose]:
    """Somebody before a camera of ``size``: moves, comes nearer, turns by up to 12 degrees and to the side, and the light
    goes down to a half; slowly, each at its own pace. ``strength`` scales all of it."""
    pace = rng.uniform(0.08, 0.35, 6)
    phase = rng.uniform(0, 2 * math.pi, 6)

    def pose(moment: float) -> Pose:
        waves = np.sin(2 * math.pi * pace * moment + phase) * strength
        return Pose(
            size[0] / 2 + waves[0] * (size[0] / 2 - 0.75 * side),
            size[1] / 2 + waves[1] * (size[1] / 2 - 0.65 * side),
            side * (1 + 0.15 * waves[2]),
            12 * waves[3],
            0.9 + 0.1 * waves[4],
            0.75 + 0.25 * waves[5],
        )

    return pose


def even(seconds: float, fps: float = 25.0) -> list[float]:
    """Moments of frames."""
    return (np.arange(round(seconds * fps)) / fps).tolist()


def uneven(seconds: float, fps: float, rng: np.random.Generator) -> list[float]:
    """Moments of frames whose pauses are 0.4 to 1.8 times their mean, as of a phone in changing light."""
    pauses = rng.uniform(0.4, 1.8, 2 * round(seconds * fps)) / (1.1 * fps)
    moments = np.concatenate([[0.0], pauses.cumsum()])
    return np.round(moments[moments < seconds], 6).tolist()


def people(folder: Path, part: int | None = None) -> dict[str, list[Photo]]:
    """Photos of each person of a folder per class whose files are called Name_0001.jpg, by name. ``part`` 0 or 1: one half
    of the people, by a checksum of the name."""
    everyone: dict[str, list[Photo]] = defaultdict(list)
    for path in sorted(folder.glob("*/*.jpg")):
        person = re.sub(r"_\d+$", "", path.stem)
        if part is None or zlib.crc32(person.encode()) % 2 == part:
            everyone[person].append(Photo(path, person, path.parent.name))
    return dict(sorted(everyone.items()))
