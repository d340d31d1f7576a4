"""Face crops of the converter's own: the golden set, and calibration when no folder of faces is given.

Both are augmentations of one picture, the face of scikit-image's public-domain astronaut portrait (NASA, Eileen
Collins)."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from fer_edge.arrays import read_members
from fer_edge.errors import ConversionError, ImageError
from fer_edge.folders import image_files
from fer_edge.image import to_input


def shipped_face() -> Image.Image:
    """The shipped face with some surroundings, 224 x 224 RGB; the face itself is the middle half."""
    with as_file(files("fer_edge") / "astronaut_face.png") as path, Image.open(path) as picture:
        return picture.convert("RGB")


def augmented(count: int, size: int, color: Literal["rgb", "gray"], seed: int) -> NDArray[np.uint8]:
    """``count`` different crops (count, size, size, C) of the shipped face: moved, turned, mirrored, relit, tinted,
    blurred, partly covered."""
    face, rng = shipped_face(), np.random.default_rng(seed)
    return np.stack([to_input(_augment(face, rng), (size, size), color) for _ in range(count)])


def _augment(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = face.width * rng.uniform(0.42, 0.8)
    x, y = (face.width - side) / 2 + rng.uniform(-0.1, 0.1, 2) * face.width
    picture = face.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BICUBIC)
    picture = picture.crop((round(x), round(y), round(x + side * rng.uniform(0.8, 1.2)), round(y + side)))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.5, 1.6)))
    picture = ImageEnhance.Contrast(picture).enhance(float(rng.uniform(0.5, 1.6)))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3))))
    pixels = np.asarray(picture).astype(np.float32) * rng.uniform(0.6, 1.4, 3)
    if rng.random() < 0.5:
        h, w = (int(v) for v in np.array(pixels.shape[:2]) * rng.uniform(0.2, 0.45, 2))
        top, left = int(rng.integers(0, pixels.shape[0] - h)), int(rng.integers(0, pixels.shape[1] - w))
        pixels[top : top + h, left : left + w] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def from_folder(source: Path, count: int, size: int, color: Literal["rgb", "gray"]) -> NDArray[np.uint8]:
    """Up to ``count`` faces, spread evenly over a folder (with its sub-folders) or over the member ``images`` of an npz
    file.

    They go through the same :func:`fer_edge.image.to_input` as at run time. Raises ConversionError when there is none.
    """
    if source.is_file():
        pool = list(read_members(source, {"images"}, kind=ConversionError)["images"])
    else:
        if not source.exists():
            raise ConversionError(f"{source} does not exist; name a folder of faces to calibrate with")
        pool = list(image_files(source).images) if source.is_dir() else []
    if not pool:
        raise ConversionError(f"{source} has no images to calibrate with")
    step = max(1.0, len(pool) / count)
    crops = []
    for i in range(min(count, len(pool))):
        try:
            crops.append(to_input(pool[int(i * step)], (size, size), color))
        except ImageError as error:
            raise ConversionError(f"calibration: {error}") from error
    return np.stack(crops)
