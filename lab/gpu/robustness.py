"""Eight ways in which a camera's face differs from a good photo, to measure how a bundle stands them. Each is the same
for the same pictures: nothing is drawn anew. No training uses these very ways (see lab/gpu/spoil.py, which
has others in other strengths)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pictures = NDArray[np.uint8]
"""Gray faces (N, S, S)."""


def _each(change: Callable[[Image.Image], Image.Image], faces: Pictures) -> Pictures:
    return np.stack([np.asarray(change(Image.fromarray(face)), np.uint8) for face in faces])


def _turned(degrees: float, image: Image.Image) -> Image.Image:
    """Turned round its centre; what comes into view repeats the edge."""
    side = image.width
    wide = Image.fromarray(np.pad(np.asarray(image), side // 2, mode="edge"))
    turned = wide.rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))


def _dark(factor: float, image: Image.Image) -> Image.Image:
    return Image.fromarray(np.round(np.asarray(image) * factor).astype(np.uint8))


def _blurred(sigma: float, image: Image.Image) -> Image.Image:
    """Three boxes, as Pillow draws a Gaussian; ``sigma`` in pixels of a picture of 48."""
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / 48))


def _seen_at(pixels: int, image: Image.Image) -> Image.Image:
    """A face of so few pixels, enlarged."""
    small = image.resize((pixels, pixels), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def _compressed(quality: int, image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _noisy(sigma: float, faces: Pictures) -> Pictures:
    """Gaussian noise on every pixel, always the same; ``sigma`` of 255."""
    grain = np.random.default_rng(7).normal(0, sigma, faces.shape)
    return np.clip(np.round(faces + grain), 0, 255).astype(np.uint8)


def _lower_third_hidden(level: int, faces: Pictures) -> Pictures:
    out = faces.copy()
    out[:, faces.shape[1] * 2 // 3 :] = level
    return out


WAYS: Mapping[str, Callable[[Pictures], Pictures]] = {
    "turned 30 degrees": partial(_each, partial(_turned, 30.0)),
    "dark, x 0.2": partial(_each, partial(_dark, 0.2)),
    "blur, sigma 1.5": partial(_each, partial(_blurred, 1.5)),
    "noise, sigma 25": partial(_noisy, 25.0),
    "24 pixels": partial(_each, partial(_seen_at, 24)),
    "16 pixels": partial(_each, partial(_seen_at, 16)),
    "JPEG, quality 20": partial(_each, partial(_compressed, 20)),
    "lower third hidden": partial(_lower_third_hidden, 0),
}
"""Name -> what it makes of gray faces (N, S, S), S at least 16."""
