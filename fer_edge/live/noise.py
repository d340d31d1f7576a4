"""A sensor's grain: how much of it a picture has, and a picture smooth enough for a detector that never learned from any.

Only the detector looks at what is smoothed. Faces are cropped from the picture as it came."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMOOTHED_FROM = ((30.0, 7), (16.0, 5))
"""Standard deviation of the grain, in gray levels, from which on a picture is smoothed, and pixels of the Gaussian's
side (``python -m lab.face_figures noise SCENES``). Photos without grain have at most 3 of it. With less grain than 16,
smoothing costs faces of a few pixels more than it finds."""
_LAPLACIANS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_LEAST = 8
_MANY = 10_000
"""Pixels of the middle from which a sixteenth of them is enough: within 3% of the grain, and a third of the time."""


def grain(pixels: NDArray[np.uint8]) -> float:
    """Standard deviation of the noise of a picture, uint8 (H, W, 3), in gray levels, from the middle quarter of its green.

    Immerkaer, "Fast Noise Variance Estimation" (Computer Vision and Image Understanding 64, 1996): the difference of two
    Laplacians sees no edge that is straight, and 6 times the noise; here by the median, which does not see the others."""
    import cv2

    high, wide = pixels.shape[:2]
    if min(high, wide) < _LEAST:
        return 0.0
    middle = np.ascontiguousarray(pixels[high // 4 : high - high // 4, wide // 4 : wide - wide // 4, 1])
    step = 2 if middle.size < _MANY else 4
    response = np.abs(cv2.filter2D(middle, cv2.CV_16S, _LAPLACIANS)[1:-1:step, 1:-1:step]).ravel()
    half = response.size // 2
    return float(np.partition(response, half)[half]) / (6 * 0.6745) if response.size else 0.0


def smoothed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture itself, or a smoother one where its grain asks for it."""
    import cv2

    noise = grain(pixels)
    for least, side in SMOOTHED_FROM:
        if noise >= least:
            smooth: NDArray[np.uint8] = cv2.GaussianBlur(pixels, (side, side), 0)
            return smooth
    return pixels
