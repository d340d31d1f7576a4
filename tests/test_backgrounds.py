"""Squares that no face touches, and noise."""

from __future__ import annotations

import numpy as np

from lab.backgrounds import GRAINS, SHARES, corners, noise


def test_corners_lie_in_the_photo_and_touch_no_face() -> None:
    free = list(corners((300, 240), []))
    assert len(free) == 4 * len(SHARES)
    assert {place[2] - place[0] for place in free} == {40, 60, 80}
    assert all(0 <= a < c <= 300 and 0 <= b < d <= 240 and c - a == d - b for a, b, c, d in free)
    some = list(corners((300, 240), [(50.0, 50.0, 100.0, 100.0), (250.0, 200.0, 20.0, 20.0)]))
    assert set(some) < set(free)
    assert (0, 0, 40, 40) in some
    assert (0, 0, 60, 60) not in some
    assert (260, 200, 300, 240) not in some
    assert (220, 0, 300, 80) in some


def test_noise_is_of_every_grain_and_the_same_again() -> None:
    pictures = [np.asarray(picture).astype(float) for picture in noise(2 * len(GRAINS))]
    again = [np.asarray(picture) for picture in noise(2 * len(GRAINS))]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
    rough = [np.abs(np.diff(p)).mean() for p in pictures[: len(GRAINS)]]
    assert rough == sorted(rough, reverse=True)
    assert all((p.min(), p.max()) == (0, 255) for p in pictures)
