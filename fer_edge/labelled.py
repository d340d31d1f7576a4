"""Labelled faces: a folder per class, or an npz."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import read_members
from .console import printable
from .errors import UsageError
from .files import read_file
from .folders import DEEPER, EMPTY, HIDDEN, IgnoredFile, image_files
from .image import ImageLike
from .labels import SYNONYMS

BESIDE = "not in a class folder"
MAX_LIST = 1 << 28
"""Bytes of a list of pictures."""


@dataclass(frozen=True)
class LabelledFaces:
    """``images`` with the name of each one's class; ``left_out`` counts those without a usable label, ``named_out`` those
    that a list named; ``ignored`` names the files of a folder that are no faces."""

    images: Sequence[ImageLike]
    classes: Sequence[str]
    left_out: int = 0
    named_out: int = 0
    ignored: tuple[IgnoredFile, ...] = ()


def read_faces(
    data: Path,
    truth: str | None = None,
    classes: str | None = None,
    recursive: bool = False,
    leave_out: Path | None = None,
) -> LabelledFaces:
    """A folder with a folder per class (``recursive``: with the folders in those, whose names mean nothing), or an npz with
    ``images``, an integer member ``truth`` (-1: left out) and a name list ``classes``. ``leave_out``: a file with a line for
    each picture that shall not be taken, as ``fer-edge twins -o`` writes it (see :func:`picture_names`).

    Raises UsageError when ``data`` is neither, the members do not fit, or a picture of ``leave_out`` is not there."""
    names = set() if leave_out is None else _read_names(leave_out)
    if data.is_dir():
        if truth is not None or classes is not None:
            raise UsageError(
                f"{data} is a folder: its folders are the classes, and --truth and --classes are for an npz file"
            )
        return _read_folders(data, recursive, names)
    if not data.is_file():
        raise UsageError(f"{data} does not exist")
    if data.suffix.lower() != ".npz" and (truth is None or classes is None):
        raise UsageError(f"{data} is neither a folder with a folder per class nor an npz file")
    if truth is None or classes is None:
        raise UsageError(f"{data} is an npz file: name its members with --truth MEMBER and --classes MEMBER")
    members = read_members(data, {"images", truth, classes})
    images, labels, titles = (members[name] for name in ("images", truth, classes))
    _checked_images(data, images)
    if titles.dtype.kind != "U" or titles.ndim != 1:
        raise UsageError(f"{data}: {classes} must be a list of class names; got {titles.dtype} {titles.shape}")
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 1
        or len(labels) != len(images)
        or int(labels.max(initial=0)) >= len(titles)
        or int(labels.min(initial=0)) < -1
    ):
        raise UsageError(
            f"{data}: {truth} must hold one integer per image, -1 or a position in {classes} ({len(titles)} names)"
        )
    strange = names - set(map(str, range(len(images))))
    if strange:
        raise UsageError(f"{data} has {len(images)} pictures and no row {min(strange)!r}, which {leave_out} names")
    named = np.isin(np.arange(len(images)), [int(name) for name in names])
    kept = np.flatnonzero((labels >= 0) & ~named)
    faces = [images[i] for i in kept], [str(titles[labels[i]]) for i in kept]
    return LabelledFaces(*faces, len(labels) - len(kept) - int(named.sum()), int(named.sum()))


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
        return LabelledFaces(found.images, [""] * len(found.images), ignored=found.ignored)
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


def picture_names(data: Path, images: Sequence[ImageLike]) -> list[str]:
    """What lists call pictures of ``data``: the path of a file within its folder, the row of an npz's."""
    return [printable(i.relative_to(data).as_posix()) if isinstance(i, Path) else str(n) for n, i in enumerate(images)]


def _read_names(file: Path) -> set[str]:
    try:
        return set(filter(None, read_file(file, MAX_LIST).decode().splitlines()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error


def _read_folders(data: Path, recursive: bool, names: Collection[str]) -> LabelledFaces:
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
    listed = picture_names(data, [path for path, _ in faces])
    strange = set(names) - set(listed)
    if strange:
        raise UsageError(f"{data} has no picture {min(strange)!r} in its class folders, which the list names")
    kept = [face for face, name in zip(faces, listed, strict=True) if name not in names]
    images, classes = [path for path, _ in kept], [name for _, name in kept]
    return LabelledFaces(images, classes, 0, len(faces) - len(kept), tuple(ignored))


def label_of(name: str, labels: Sequence[str]) -> str | None:
    """The label that a class name means: itself, or by the table of synonyms ("happy" = happiness); None when the set
    has none."""
    plain = name.strip().lower()
    return next((label for label in (name, plain, SYNONYMS.get(plain)) if label in labels), None)
