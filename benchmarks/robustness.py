"""Faces as cameras and the world spoil them, to see how a classifier stands that: the ways, their strengths, and what is
counted of each.

A way makes the same of the same pictures each time: nothing is drawn anew. It acts on a picture in the pixels that it has
(grain and JPEG are of the camera's pixels; a large picture loses less by them), gray or RGB."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fer_edge.accuracy import calibration_error, war_uar

Picture: TypeAlias = "NDArray[np.uint8]"
"""(H, W) gray or (H, W, 3) RGB."""
Spoil: TypeAlias = Callable[[Picture], Picture]
Name: TypeAlias = Literal["turn", "dark", "blur", "noise", "small", "jpeg", "mask"]

LARGEST = 224
"""Pixels of the longer side that a picture keeps: what a close face has in a camera's picture, and what encoders look at.
Grain in a photo of 4,000 pixels would be gone before any of them sees it."""
GRAIN_SEED = 7
SHARP_SIDE = 48
"""Blur is told in pixels of a face of this width."""


@dataclass(frozen=True)
class Way:
    """One way of spoiling a face, at one strength. ``standard``: one of the eight that figures are compared by; ``text``
    names it; ``begin`` gives what spoils one picture after the other, from the first one on."""

    name: Name
    strength: float
    unit: str
    standard: bool
    text: str
    begin: Callable[[], Spoil]

    def spoil(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """All pictures, in their order: the grain of a picture hangs on how many came before it."""
        change = self.begin()
        for picture in pictures:
            yield change(picture)


@dataclass(frozen=True)
class SpoiltFigures:
    """What a classifier makes of faces that were spoilt in one way; fractions of 1. ``certain`` is the share of answers that
    count as certain, ``certain_error`` how many of these are wrong (None of none), ``mean_confidence`` the mean probability
    of the answers."""

    way: str
    strength: float
    unit: str
    standard: bool
    text: str
    war: float
    uar: float
    mean_confidence: float
    calibration_error: float
    certain: float
    certain_error: float | None


@dataclass(frozen=True)
class Robustness:
    """``rows`` in the order of :data:`WAYS`; ``pixels`` is the median of the pictures' longer sides."""

    rows: tuple[SpoiltFigures, ...]
    pixels: int

    @property
    def standard(self) -> tuple[SpoiltFigures, ...]:
        """The rows of the eight standard ways."""
        return tuple(row for row in self.rows if row.standard)

    @property
    def war_mean(self) -> float:
        """Mean WAR over the eight."""
        return float(np.mean([row.war for row in self.standard]))

    @property
    def uar_mean(self) -> float:
        """Mean UAR over the eight."""
        return float(np.mean([row.uar for row in self.standard]))

    @property
    def lowest(self) -> SpoiltFigures:
        """The one of the eight with the lowest WAR."""
        return min(self.standard, key=lambda row: row.war)

    def as_json(self) -> dict[str, Any]:
        """``robustness`` and ``robustness_summary`` of ``evaluate --json``."""
        low = self.lowest
        lowest = {"way": low.way, "strength": low.strength, "war": low.war}
        summary = {"ways": len(self.standard), "war_mean": self.war_mean, "uar_mean": self.uar_mean, "lowest": lowest}
        return {"robustness": [asdict(row) for row in self.rows], "robustness_summary": {**summary, "pixels": self.pixels}}


class SpoiltAnswers:
    """Collects a classifier's answers to faces that are spoilt in every way, face by face."""

    def __init__(self, answer: Callable[[Picture], tuple[int, float, bool]]) -> None:
        """``answer`` gives the position of the label, its probability, and whether it is certain."""
        self._answer = answer
        self._spoils = [(way, way.begin()) for way in WAYS]
        self._answers: list[list[tuple[int, float, bool]]] = [[] for _ in WAYS]
        self._sides: list[int] = []

    def add(self, picture: Picture) -> None:
        """Ask about a face in every way."""
        self._sides.append(max(picture.shape[:2]))
        for (_, spoil), answers in zip(self._spoils, self._answers, strict=True):
            answers.append(self._answer(spoil(picture)))

    def figures(self, truth: NDArray[np.int64]) -> Robustness:
        """Of ``truth`` (N,), positions of the right labels of the faces that were added, at least one."""
        rows = []
        for way, answers in zip(WAYS, self._answers, strict=True):
            said, sure, certain = (np.array(column) for column in zip(*answers, strict=True))
            war, uar = war_uar(said, truth)
            right = said == truth
            error = float(1 - right[certain].mean()) if certain.any() else None
            numbers = (war, uar, float(sure.mean()), calibration_error(sure, right), float(certain.mean()))
            named = (way.name, way.strength, way.unit, way.standard, way.text)
            rows.append(SpoiltFigures(*named, *numbers, error))
        return Robustness(tuple(rows), int(np.median(self._sides)))


def pixels_of(picture: Image.Image) -> Picture:
    """A decoded picture as it is spoilt: gray or RGB, its longer side at most LARGEST pixels (Pillow's bilinear filter)."""
    plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    longer = max(plain.size)
    if longer > LARGEST:
        width, height = (max(1, round(side * LARGEST / longer)) for side in plain.size)
        plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(plain, np.uint8)


def turn(degrees: float, picture: Picture) -> Picture:
    """Turned counter-clockwise round its centre (Pillow's bilinear ``rotate``); what comes into view repeats the edge."""
    height, width = picture.shape[:2]
    edge = max(height, width) // 2
    wide = Image.fromarray(np.pad(picture, ((edge, edge), (edge, edge), (0, 0))[: picture.ndim], mode="edge"))
    turned = wide.rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(turned.crop((edge, edge, edge + width, edge + height)), np.uint8)


def dark(factor: float, picture: Picture) -> Picture:
    """Gray levels times ``factor``."""
    level: Picture = np.round(picture * factor).astype(np.uint8)
    return level


def blur(sigma: float, picture: Picture) -> Picture:
    """Out of focus: Pillow's Gaussian (three boxes), ``sigma`` in pixels of a face that is SHARP_SIDE wide."""
    image = Image.fromarray(picture)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma * image.width / SHARP_SIDE)), np.uint8)


def noise(sigma: float) -> Spoil:
    """Gaussian grain on every pixel and channel, ``sigma`` of 255; always the same for the same pictures in one order."""
    generator = np.random.default_rng(GRAIN_SEED)

    def grain(picture: Picture) -> Picture:
        level: Picture = np.clip(np.round(picture + generator.normal(0, sigma, picture.shape)), 0, 255).astype(np.uint8)
        return level

    return grain


def small(pixels: int, picture: Picture) -> Picture:
    """Seen from afar: its longer side has only so many pixels; enlarged again. Both by Pillow's bilinear filter."""
    image = Image.fromarray(picture)
    longer = max(image.size)
    few = [max(1, round(side * min(pixels, longer) / longer)) for side in image.size]
    less = image.resize((few[0], few[1]), Image.Resampling.BILINEAR)
    return np.asarray(less.resize(image.size, Image.Resampling.BILINEAR), np.uint8)


def jpeg(quality: int, picture: Picture) -> Picture:
    """Compressed by Pillow at this quality."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.uint8)


def mask(share: Fraction, picture: Picture) -> Picture:
    """The lowest ``share`` of the rows black: a mask, a scarf, a cup before the mouth."""
    out = picture.copy()
    out[math.floor(len(out) * (1 - share)) :] = 0
    return out


def _steady(change: Callable[..., Picture], strength: object) -> Callable[[], Spoil]:
    """Of a way that spoils each picture whatever came before."""
    return lambda: partial(change, strength)


_SHARES = {Fraction(1, 4): "lower quarter hidden", Fraction(1, 3): "lower third hidden", Fraction(1, 2): "lower half hidden"}


def _ways() -> Iterator[Way]:
    for degrees in (15.0, 30.0, 45.0):
        text = f"turned {degrees:g} degrees"
        yield Way("turn", degrees, "degrees", degrees == 30, text, _steady(turn, degrees))
    for factor in (0.4, 0.2, 0.1):
        yield Way("dark", factor, "factor", factor == 0.2, f"dark, x {factor:g}", _steady(dark, factor))
    for sigma in (1.0, 1.5, 2.5):
        unit = f"pixels of {SHARP_SIDE}"
        yield Way("blur", sigma, unit, sigma == 1.5, f"blur, sigma {sigma:g}", _steady(blur, sigma))
    for sigma in (10.0, 25.0, 40.0):
        yield Way("noise", sigma, "levels of 255", sigma == 25, f"noise, sigma {sigma:g}", partial(noise, sigma))
    for pixels in (32, 24, 16, 12):
        yield Way("small", pixels, "pixels", pixels in (24, 16), f"{pixels} pixels", _steady(small, pixels))
    for quality in (40, 20, 10):
        yield Way("jpeg", quality, "quality", quality == 20, f"JPEG, quality {quality}", _steady(jpeg, quality))
    for share, text in _SHARES.items():
        yield Way("mask", round(float(share), 4), "share of the height", share == Fraction(1, 3), text, _steady(mask, share))


WAYS: Sequence[Way] = tuple(_ways())
"""Every way, from mild to hard. The eight that are ``standard`` stay as they are: figures are compared by them, and no
training of this project uses them."""
