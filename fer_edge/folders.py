"""Folders of images as people have them, with other programs' files among the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .image import IMAGE_SUFFIXES

HIDDEN = "hidden, its name begins with a dot"
OTHER = "no image by its ending"
DEEPER = "in a folder within a folder"
LINKED = "a link to a folder, which is not followed"
EMPTY = "a folder without an image"


@dataclass(frozen=True)
class IgnoredFile:
    """A file, or a folder (its name ends with a slash), that is not taken, relative to the folder that was asked for."""

    file: str
    why: str


@dataclass(frozen=True)
class ImageFiles:
    """Images in the order of their names, and everything else that was met."""

    images: tuple[Path, ...]
    ignored: tuple[IgnoredFile, ...]


def image_files(folder: Path, recursive: bool = True, root: Path | None = None) -> ImageFiles:
    """The images of a folder and, with ``recursive``, of the folders in it. What is hidden (as macOS' ``._x.jpg`` and
    Jupyter's ``.ipynb_checkpoints`` are) is none. ``root``: what names are relative to. Raises OSError."""
    images: list[Path] = []
    ignored: list[IgnoredFile] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for path in here.iterdir():
            why = _why_ignored(path, here == folder or recursive)
            if why is None and path.is_dir():
                waiting.append(path)
            elif why is None:
                images.append(path)
            else:
                slash = "/" if path.is_dir() else ""
                ignored.append(IgnoredFile(path.relative_to(root or folder).as_posix() + slash, why))
    return ImageFiles(tuple(sorted(images)), tuple(sorted(ignored, key=lambda entry: entry.file)))


def _why_ignored(path: Path, taken: bool) -> str | None:
    """None for an image that is taken and for a folder to look into."""
    if path.name.startswith("."):
        return HIDDEN
    if path.is_dir():
        return LINKED if path.is_symlink() else None
    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
        return OTHER
    return None if taken else DEEPER


def ignored_lines(ignored: Collection[IgnoredFile], examples: int = 3) -> list[str]:
    """A line for each reason: how many, and the first names."""
    by_reason = Counter(entry.why for entry in ignored)
    lines = []
    for why, count in by_reason.items():
        names = [entry.file for entry in ignored if entry.why == why]
        more = f" and {count - examples} more" if count > examples else ""
        lines.append(f"{count} left out, {why}: {', '.join(names[:examples])}{more}")
    return lines
