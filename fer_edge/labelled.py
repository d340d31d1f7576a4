"""Labelled faces: a folder per class, or an npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import read_members
from .errors import UsageError
from .folders import DEEPER, EMPTY, HIDDEN, IgnoredFile, image_files
from .image import ImageLike
from .labels import SYNONYMS

BESIDE = "not in a class folder"


@dataclass(frozen=True)
class LabelledFaces:
    """``images`` with the name of each one's class; ``left_out`` counts those without a usable label; ``ignored`` names the
    files of a folder that are no faces."""

    images: Sequence[ImageLike]
    classes: Sequence[str]
    left_out: int = 0
    ignored: tuple[IgnoredFile, ...] = ()


def read_faces(data: Path, truth: str | None = None, classes: str | None = None, recursive: bool = False) -> LabelledFaces:
    """A folder with a folder per class (``recursive``: with the folders in those, whose names mean nothing), or an npz with
    ``images``, an integer member ``truth`` (-1: left out) and a name list ``classes``.

    Raises UsageError when ``data`` is neither, or the members do not fit."""
    if data.is_dir():
        if truth is not None or classes is not None:
            raise UsageError(
                f"{data} is a folder: its folders are the classes, and --truth and --classes are for an npz file"
            )
        return _read_folders(data, recursive)
    if not data.is_file():
        raise UsageError(f"{data} does not exist")
    if data.suffix.lower() != ".npz" and (truth is None or classes is None):
        raise UsageError(f"{data} is neither a folder with a folder per class nor an npz file")
    if truth is None or classes is None:
        raise UsageError(f"{data} is an npz file: name its members with --truth MEMBER and --classes MEMBER")
    members = read_members(data, {"images", truth, classes})
    images, labels, names = (members[name] for name in ("images", truth, classes))
    _checked_images(data, images)
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


def read_pictures(data: Path) -> LabelledFaces:
    """Pictures of no class (""): all images of a folder and the folders in it, or ``images`` of an npz.

    Raises UsageError when ``data`` is neither, or holds none."""
    if data.is_dir():
        try:
            found = image_files(data)
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not found.images:
            raise UsageError(f"{data} has no images in it")
        return LabelledFaces(found.images, [""] * len(found.images), 0, found.ignored)
    if data.suffix.lower() != ".npz":
        raise UsageError(
            f"{data} is neither a folder of images nor an npz file" if data.exists() else f"{data} does not exist"
        )
    images = _checked_images(data, read_members(data, {"images"})["images"])
    if not len(images):
        raise UsageError(f"{data} has no images in it")
    return LabelledFaces(list(images), [""] * len(images))


def _checked_images(data: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UsageError(
            f"{data}: images must be uint8 (N, H, W) gray or (N, H, W, 3) RGB; got {images.dtype} {images.shape}"
        )
    return images


def _read_folders(data: Path, recursive: bool) -> LabelledFaces:
    faces: list[tuple[Path, str]] = []
    ignored: list[IgnoredFile] = []
    try:
        for folder in sorted(data.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                why = HIDDEN if folder.name.startswith(".") else BESIDE
                ignored.append(IgnoredFile(folder.name + ("/" if folder.is_dir() else ""), why))
                continue
            found = image_files(folder, recursive, data)
            faces += [(path, folder.name) for path in found.images]
            ignored += found.ignored
            if not found.images and not any(entry.why == DEEPER for entry in found.ignored):
                ignored.append(IgnoredFile(f"{folder.name}/", EMPTY))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not faces:
        deeper = sum(entry.why == DEEPER for entry in ignored)
        hint = f"; {deeper} lie deeper: --recursive takes them, or name the folder that holds the classes" if deeper else ""
        raise UsageError(f"{data} has no images in class folders; expected {data}/<class>/<image>{hint}")
    return LabelledFaces([path for path, _ in faces], [name for _, name in faces], 0, tuple(ignored))


def label_of(name: str, labels: Sequence[str]) -> str | None:
    """The label that a class name means: itself, or by the table of synonyms ("happy" = happiness); None when the set
    has none."""
    plain = name.strip().lower()
    return next((label for label in (name, plain, SYNONYMS.get(plain)) if label in labels), None)
