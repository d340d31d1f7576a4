"""Labelled faces: a folder per class, or an npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .image import IMAGE_SUFFIXES, ImageLike
from .labels import SYNONYMS


@dataclass(frozen=True)
class LabelledFaces:
    """``images`` with the name of each one's class; ``left_out`` counts those without a usable label."""

    images: Sequence[ImageLike]
    classes: Sequence[str]
    left_out: int = 0


def read_faces(data: Path, truth: str | None = None, classes: str | None = None) -> LabelledFaces:
    """A folder with a folder per class, or an npz with ``images``, an integer member ``truth`` (-1: left out) and a
    name list ``classes``.

    Raises UsageError when ``data`` is neither, or the members do not fit."""
    if data.is_dir():
        try:
            files = [
                (p, folder.name)
                for folder in sorted(data.iterdir())
                if folder.is_dir()
                for p in sorted(folder.iterdir())
                if p.suffix.lower() in IMAGE_SUFFIXES
            ]
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not files:
            raise UsageError(f"{data} has no images in class folders; expected {data}/<class>/<image>")
        return LabelledFaces([p for p, _ in files], [c for _, c in files])
    if not data.is_file():
        raise UsageError(f"{data} does not exist")
    if data.suffix.lower() != ".npz" and (truth is None or classes is None):
        raise UsageError(f"{data} is neither a folder with a folder per class nor an npz file")
    if truth is None or classes is None:
        raise UsageError(f"{data} is an npz file: name its members with --truth MEMBER and --classes MEMBER")
    images, labels, names = _members(data, "images", truth, classes)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UsageError(
            f"{data}: images must be uint8 (N, H, W) gray or (N, H, W, 3) RGB; got {images.dtype} {images.shape}"
        )
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UsageError(f"{data}: {classes} must be a list of class names; got {names.dtype} {names.shape}")
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 1
        or len(labels) != len(images)
        or int(labels.max(initial=0)) >= len(names)
        or int(labels.min(initial=0)) < -1
    ):
        raise UsageError(
            f"{data}: {truth} must hold one integer per image, -1 or a position in {classes} ({len(names)} names)"
        )
    kept = np.flatnonzero(labels >= 0)
    return LabelledFaces([images[i] for i in kept], [str(names[labels[i]]) for i in kept], len(labels) - len(kept))


def _members(data: Path, *names: str) -> list[NDArray[Any]]:
    """Members of an npz, without pickle. Raises UsageError."""
    try:
        with zipfile.ZipFile(data) as archive:
            held = [entry.removesuffix(".npy") for entry in archive.namelist()]
        missing = [name for name in names if name not in held]
        if missing:
            raise UsageError(f"{data} has no member {missing[0]!r}; it has {', '.join(held)}")
        with np.load(data, allow_pickle=False) as z:
            return [z[name] for name in names]
    except UsageError:
        raise
    except Exception as error:  # numpy's header parser lets TokenError, IndexError and more through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{data} is not a readable npz file: {reason}") from error


def label_of(name: str, labels: Sequence[str]) -> str | None:
    """The label that a class name means: itself, or by the table of synonyms ("happy" = happiness); None when the set
    has none."""
    plain = name.strip().lower()
    return next((label for label in (name, plain, SYNONYMS.get(plain)) if label in labels), None)
