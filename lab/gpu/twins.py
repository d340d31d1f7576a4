"""Pictures that show the same photo: cut a little differently, mirrored, in other light, or compressed again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
CHUNK = 2048


@dataclass(frozen=True)
class Twins:
    """``first`` and ``second`` (n,) are rows of the two sets, ``correlation`` (n,) of their pictures in 16 x 16 pixels;
    ``mirrored`` (n,) bool says where the second had to be turned left to right."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    correlation: NDArray[np.float32]
    mirrored: NDArray[np.bool_]


def near_duplicates(first: NDArray[np.uint8], second: NDArray[np.uint8], threshold: float = 0.99) -> Twins:
    """All pairs of gray pictures (N, S, S) and (M, S, S) that correlate by ``threshold`` or more, mirrored or not.
    Pictures of one level everywhere have no twin."""
    a, b = _thumbs(first), _thumbs(second)
    flat_a = _normalised(a)
    sides = (_normalised(b), _normalised(b[:, :, ::-1]))
    rows, columns, values, turned = [], [], [], []
    for start in range(0, len(flat_a), CHUNK):
        products = np.stack([flat_a[start : start + CHUNK] @ side.T for side in sides])
        best = products.max(0)
        i, j = np.nonzero(best >= threshold)
        rows.append(i + start)
        columns.append(j)
        values.append(best[i, j])
        turned.append(products[1, i, j] > products[0, i, j])
    return Twins(*(np.concatenate(part) for part in (rows, columns, values, turned)))


def _thumbs(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means over boxes: (N, 16, 16)."""
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) for image in images]
    )


def _normalised(thumbs: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = thumbs.reshape(len(thumbs), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)
    return unit
