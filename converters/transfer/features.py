"""``fer-edge transfer features``: both sides of every face, shard by shard."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_edge.arrays import read_members
from fer_edge.errors import ConversionError, ImageError
from fer_edge.folders import IgnoredFile, ImageFiles, image_files
from fer_edge.image import IMAGE_SUFFIXES, load_picture

from .cache import (
    CachePlan,
    LeftOut,
    Row,
    Shard,
    Source,
    common_names,
    missing_shards,
    open_cache,
    read_plan,
    shard_file,
    shard_header,
    shard_rows,
    write_index,
    write_shard,
)


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` faces, those of earlier runs included; ``seconds_left``: by the pace of this run, None at its
    start."""

    done: int
    total: int
    seconds_left: float | None


class Faces:
    """The faces of a folder (names are paths relative to it), or of an npz file's ``images`` (names are row numbers)."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._images = None if source.is_dir() else read_members(source, {"images"}, kind=ConversionError)["images"]

    def names(self) -> tuple[str, ...]:
        """All of them, in order. Raises ConversionError when there is none."""
        if self._images is not None:
            return tuple(str(i) for i in range(len(self._images)))
        names = tuple(sorted(path.relative_to(self.source).as_posix() for path in self._files().images))
        if not names:
            raise ConversionError(f"{self.source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return names

    def ignored(self) -> tuple[IgnoredFile, ...]:
        """Files of the folder that are no faces."""
        return () if self._images is not None else self._files().ignored

    def _files(self) -> ImageFiles:
        try:
            return image_files(self.source)
        except OSError as error:
            raise ConversionError(f"{error.filename} cannot be read: {error.strerror}") from error

    def read(self, name: str) -> tuple[Image.Image, str]:
        """(the picture, sha256 of its file or pixels). Raises ImageError when it cannot be decoded, ConversionError when it
        is gone: a disk that is away must not look like a folder of bad images."""
        if self._images is not None:
            if not name.isdigit() or int(name) >= len(self._images):
                raise ConversionError(f"{self.source} has no row {name!r}; it has {len(self._images)}")
            pixels = np.ascontiguousarray(self._images[int(name)])
            return load_picture(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()
        path = self.source / name
        if not path.exists():
            raise ConversionError(f"{path} is gone; is its disk still there?")
        picture = load_picture(path)
        try:
            return picture, hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def plan_cache(faces: Faces, image: tuple[Source, float], llm: Source, shard: int, half: bool) -> CachePlan:
    """What a cache of these faces would hold. Raises ConversionError for faces that a file of LLM features lacks."""
    source, scale = image
    names = faces.names()
    if llm.names is not None:
        common_names(names, llm.names)  # now, and not when half of the shards are made
    return CachePlan(names, source.side, llm.side, shard, half, scale)


def make_shard(
    faces: Faces,
    names: Sequence[str],
    image: Source,
    llm: Source,
    on_chunk: Callable[[int], None] = lambda faces: None,
) -> Shard:
    """Both sides of some faces; those that cannot be read are left out and named. ``on_chunk`` is told how many are done."""
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    together = max(image.batch, llm.batch)
    for start in range(0, len(names), together):
        part = names[start : start + together]
        good: list[tuple[str, Image.Image]] = []
        for name in part:
            try:
                picture, sha = faces.read(name)
            except ImageError as error:
                left_out.append(LeftOut(name, str(error).replace(f"{faces.source}/", "")))
                continue
            good.append((name, picture))
            rows.append(Row(name, sha))
        if good:
            kept, pictures = zip(*good, strict=True)
            for found, source in zip(sides, (image, llm), strict=True):
                found.append(source.features(pictures, kept))
        on_chunk(len(part))
    ours, theirs = (
        np.concatenate(found) if found else np.empty((0, source.side.dim), np.float32)
        for found, source in zip(sides, (image, llm), strict=True)
    )
    return Shard(tuple(rows), tuple(left_out), ours, theirs)


def compute(
    faces: Faces, cache: Path, plan: CachePlan, image: Source, llm: Source, on_progress: Callable[[Progress], None]
) -> CachePlan:
    """Make the shards that are missing, one after the other, then the index; returns the cache's plan.

    Raises ConversionError when the cache is of other models, or a side gives NaN or Inf."""
    plan = open_cache(cache, plan)
    forget_mended(faces, cache, plan)
    waiting = missing_shards(cache, plan)
    check_faces(faces, cache, plan, waiting)
    count = counter(plan, waiting, on_progress)
    for k in waiting:
        write_shard(cache, plan, k, make_shard(faces, plan.names(k), image, llm, count))
    write_index(cache)
    return plan


def forget_mended(faces: Faces, cache: Path, plan: CachePlan) -> None:
    """Remove shards that left a face out which can be read now: it was half copied, say, or its disk failed for a while."""
    waiting = set(missing_shards(cache, plan))
    for k in (k for k in range(plan.shards) if k not in waiting):
        if any(_readable(faces, entry["path"]) for entry in shard_header(cache, k)["left_out"]):
            shard_file(cache, k).unlink()


def _readable(faces: Faces, name: str) -> bool:
    try:
        faces.read(name)
    except (ImageError, ConversionError):
        return False
    return True


def counter(plan: CachePlan, waiting: Sequence[int], on_progress: Callable[[Progress], None]) -> Callable[[int], None]:
    """Reports how far the work is, now and whenever it is told that so many more faces are done."""
    total = len(plan.faces)
    before = done = total - sum(len(plan.names(k)) for k in waiting)
    began = time.monotonic()

    def count(faces_done: int) -> None:
        nonlocal done
        done += faces_done
        pace = (time.monotonic() - began) / max(1, done - before)
        on_progress(Progress(done, total, pace * (total - done) if done > before else None))

    count(0)
    return count


def check_faces(faces: Faces, cache: Path, plan: CachePlan, waiting: Sequence[int]) -> None:
    """Going on with other faces would spoil a cache for good. Raises ConversionError."""
    there = set(faces.names())
    gone = [name for k in waiting for name in plan.names(k) if name not in there]
    if gone:
        raise ConversionError(
            f"{faces.source} lacks {len(gone)} faces that {cache} still needs, the first is {gone[0]}; is it the folder "
            "that the cache was begun with?"
        )
    made = next((k for k in range(plan.shards) if k not in set(waiting)), None)
    for row in [] if made is None else shard_rows(cache, made)[:1]:
        if row.path not in there or faces.read(row.path)[1] != row.sha256:
            raise ConversionError(f"{row.path} of {faces.source} is not the face that {cache} was begun with")


def new_faces(faces: Faces, cache: Path) -> int:
    """How many faces have come since the cache was begun: they are not in it."""
    return len(set(faces.names()) - set(read_plan(cache).faces))
