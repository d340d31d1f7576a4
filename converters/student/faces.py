"""Faces to learn from: FER+ npz files with votes, and folders without any label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import read_members
from fer_edge.errors import ConversionError, ImageError
from fer_edge.folders import image_files
from fer_edge.image import IMAGE_SUFFIXES, ImageLike, to_input

MEMBERS = (
    "images",
    "ferplus_votes_labelcsv",
    "ferplus_vote_names",
    "ferplus_majority_labelcsv",
    "ferplus_class_names",
)
"""What is read of an npz file with FER+ votes."""


@dataclass(frozen=True)
class Faces:
    """``pictures`` as they came; ``images`` uint8 (N, S, S), gray, as a student sees them. ``targets`` float32 (N, K) is a
    distribution per face and ``labels`` int (N,) its class, -1 = no majority; both are None for unlabelled faces."""

    pictures: Sequence[ImageLike]
    images: NDArray[np.uint8]
    targets: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None

    def part(self, rows: NDArray[np.int64]) -> Faces:
        """Some of them, by their rows."""
        array = isinstance(self.pictures, np.ndarray)
        pictures = cast("Any", self.pictures)[rows] if array else [self.pictures[i] for i in rows]
        targets = None if self.targets is None else self.targets[rows]
        return Faces(pictures, self.images[rows], targets, None if self.labels is None else self.labels[rows])


def soft_targets(votes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Vote distributions (N, K) after dropping single votes, as the FER+ authors do (Barsoum et al., ICMI 2016,
    ferplus.py)."""
    kept = np.where(votes > 1, votes, 0).astype(np.float32)
    total = kept.sum(1, keepdims=True)
    shares: NDArray[np.float32] = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    return shares


def load_faces(path: Path, names: Sequence[str], size: int = 48) -> Faces:
    """Read an npz file with FER+ votes; targets and labels follow the order of ``names``.

    Left out are faces without one usable vote for one of ``names``, and faces whose first choice is something else. Raises
    ConversionError when a member is missing or the file cannot be read.
    """
    try:
        members = read_members(path, MEMBERS, kind=ConversionError)
        images, votes, vote_names, majority, class_names = (members[name] for name in MEMBERS)
        majority = majority.astype(np.int64)
        order = [vote_names.tolist().index(name) for name in names]
    except (ConversionError, ValueError, TypeError) as error:
        raise ConversionError(f"{path} is not a FER+ npz file ({error}); build one with: fer-edge student data") from error
    kept = np.where(votes > 1, votes, 0)
    usable = (kept[:, order].max(1) > 0) & (kept[:, order].max(1) >= kept.max(1))
    position = np.array([list(names).index(name) if name in names else -1 for name in class_names.tolist()] + [-1])
    pictures = images[usable]
    if not len(pictures):
        raise ConversionError(f"{path} has no face with a usable vote for one of {', '.join(names)}")
    return Faces(
        pictures, crops(pictures, size, "gray")[..., 0], soft_targets(votes[:, order])[usable], position[majority][usable]
    )


def load_pictures(path: Path, size: int = 48) -> Faces:
    """Unlabelled faces: every image in a folder and its sub-folders, or the member ``images`` of an npz file.

    Raises ConversionError when there is none or one cannot be read."""
    pictures: Sequence[ImageLike]
    if path.is_dir():
        pictures = image_files(path).images
    else:
        images = read_members(path, {"images"}, kind=ConversionError)["images"]
        if images.ndim not in (3, 4):
            raise ConversionError(f"{path}: images must be (N, H, W) or (N, H, W, 3); got {images.shape}")
        pictures = cast("Sequence[ImageLike]", images)  # an array of pictures is a sequence of them
    if len(pictures) == 0:
        raise ConversionError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return Faces(pictures, crops(pictures, size, "gray")[..., 0])


def crops(pictures: Sequence[ImageLike], size: int, color: Literal["rgb", "gray"]) -> NDArray[np.uint8]:
    """Pictures as an encoder takes them, through the same code as at run time: uint8 (N, size, size, C). Raises
    ConversionError for a picture that cannot be read."""
    ready = isinstance(pictures, np.ndarray) and pictures.dtype == np.uint8 and pictures.shape[1:] == (size, size)
    if isinstance(pictures, np.ndarray) and ready and color == "gray":
        return pictures[..., None]
    try:
        return np.stack([to_input(picture, (size, size), color) for picture in pictures])
    except ImageError as error:
        raise ConversionError(f"a face cannot be read: {error}") from error
