"""Pictures without a face, for ``fer-edge calibrate --background``: squares from the corners of photos that no face found by
a detector touches, and noise of several grains.

``python -m lab.backgrounds PHOTOS OUTPUT --detector face_detection_yunet_2023mar.onnx``"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter

from fer_edge.console import say
from fer_edge.folders import image_files
from fer_edge.image import Box, load_picture
from fer_edge.live.faces import FaceFinder

SHARES = (1 / 6, 1 / 4, 1 / 3)
"""Sides of the squares, of the shorter side of a photo."""
LEAST_SCORE = 0.3
"""Of the detector: what may be a face is none of a background."""
GRAINS = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Blur of the noise, in pixels of 64."""


def corners(size: tuple[int, int], faces: Sequence[Box]) -> Iterator[tuple[int, int, int, int]]:
    """Squares (left, top, right, bottom) in the corners of a photo (width, height) that no box (x, y, width, height)
    touches."""
    wide, high = size
    for share in SHARES:
        side = round(share * min(size))
        for left in (0, wide - side):
            for top in (0, high - side):
                touched = any(x < left + side and x + w > left and y < top + side and y + h > top for x, y, w, h in faces)
                if not touched:
                    yield left, top, left + side, top + side


def noise(count: int) -> Iterator[Image.Image]:
    """Gray noise of 64 x 64 pixels, of every grain in turn, from black to white."""
    generator = np.random.default_rng(0)
    for i in range(count):
        rough = Image.fromarray(generator.integers(0, 256, (64, 64), dtype=np.uint8))
        smooth = np.asarray(rough.filter(ImageFilter.GaussianBlur(GRAINS[i % len(GRAINS)])), np.float64)
        yield Image.fromarray(np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8))


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--detector", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--noise", "noisy", default=100, show_default=True, help="Pictures of noise.")
def backgrounds(photos: Path, output: Path, detector: Path, noisy: int) -> None:
    """Write OUTPUT/corners and OUTPUT/noise."""
    for name in ("corners", "noise"):
        (output / name).mkdir(parents=True)
    finder, count = FaceFinder(detector, least_score=LEAST_SCORE, longest=1280), 0
    for path in image_files(photos).images:
        photo = load_picture(path)
        for place in corners(photo.size, [face.box for face in finder.find(photo)]):
            photo.crop(place).save(output / "corners" / f"{count:04}.png")
            count += 1
    for i, picture in enumerate(noise(noisy)):
        picture.save(output / "noise" / f"{i:04}.png")
    say(f"{count} corners and {noisy} pictures of noise: {output}")


if __name__ == "__main__":
    backgrounds()
