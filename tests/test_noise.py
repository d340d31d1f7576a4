"""A sensor's grain: measured, and taken away for the detector alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cv2")

from fer_edge import FaceFinder
from fer_edge.image import load_picture
from fer_edge.live.noise import SMOOTHED_FROM, grain, smoothed

PORTRAIT = Path(__file__).parents[1] / "examples" / "astronaut.png"


def grained(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def portrait() -> NDArray[np.uint8]:
    return np.asarray(load_picture(PORTRAIT).convert("RGB"))


@pytest.mark.parametrize("sigma", [5, 10, 20, 30])
def test_grain_is_measured(portrait: NDArray[np.uint8], sigma: float) -> None:
    """Clipping at black and white takes some of it."""
    assert grain(portrait) < 3
    assert 0.75 * sigma < grain(grained(portrait, sigma)) < 1.2 * sigma
    assert grain(grained(np.full((240, 320, 3), 128, np.uint8), sigma)) == pytest.approx(sigma, rel=0.1)


def test_edges_are_no_grain() -> None:
    squares = np.kron(np.indices((40, 40)).sum(0) % 2 * 255, np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8)
    assert grain(squares) == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 500, 3), (8, 8, 3), (9, 11, 3), (240, 8, 3)])
def test_small_pictures_are_looked_at_too(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert smoothed(pixels).shape == shape


def test_what_has_no_grain_is_left_alone(portrait: NDArray[np.uint8]) -> None:
    assert smoothed(portrait) is portrait
    assert smoothed(grained(portrait, 10)).std() == grained(portrait, 10).std()
    light, heavy = (smoothed(grained(portrait, sigma)) for sigma in (22, 50))
    assert grain(light) < SMOOTHED_FROM[-1][0] / 2
    assert grain(heavy) < SMOOTHED_FROM[-1][0] / 2


def test_faces_in_grain_are_found(data: Path, yunet: Path) -> None:
    """Photos of scenes, seen by the finder as they are; without smoothing about 48 of 66 faces are left."""
    photos = data / "scenes" / "images"
    if not photos.is_dir():
        pytest.skip("no photos of scenes")
    clean = found = plain = 0
    with FaceFinder(yunet, longest=640) as finder:
        for path in sorted(photos.iterdir()):
            picture = load_picture(path).convert("RGB")
            picture.thumbnail((640, 640))
            pixels = np.asarray(picture)
            noisy = grained(pixels, 25)
            clean += len(finder.find_rgb(pixels))
            found += len(finder.find_rgb(noisy))
            plain += len(finder._open().detect(noisy))
    assert plain < 0.85 * clean
    assert 0.92 * clean <= found <= clean
