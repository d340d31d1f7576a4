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

from fer_edge.errors import ConversionError, ImageError
from fer_edge.image import IMAGE_SUFFIXES, load_picture

from ..faces import UNREADABLE
from .cache import CachePlan, LeftOut, Row, Shard, missing_shards, open_cache, read_plan, write_index, write_shard
from .sources import Source

CHUNK = 32
"""Faces between two reports of progress. Fixed: how faces are put together in batches must not depend on the machine."""


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
        self._images = None if source.is_dir() else _npz_images(source)

    def names(self) -> tuple[str, ...]:
        """All of them, in order. Raises ConversionError when there is none."""
        if self._images is not None:
            return tuple(str(i) for i in range(len(self._images)))
        found = (p for p in self.source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        names = tuple(sorted(p.relative_to(self.source).as_posix() for p in found))
        if not names:
            raise ConversionError(f"{self.source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return names

    def read(self, name: str) -> tuple[Image.Image, str]:
        """(the picture, sha256 of its file or pixels). Raises ImageError when it cannot be read or decoded."""
        if self._images is not None:
            pixels = np.ascontiguousarray(self._images[int(name)])
            return load_picture(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()
        path = self.source / name
        picture = load_picture(path)
        try:
            return picture, hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _npz_images(source: Path) -> NDArray[np.uint8]:
    try:
        with np.load(source, allow_pickle=False) as z:
            return np.asarray(z["images"])
    except UNREADABLE as error:
        raise ConversionError(f"{source} is neither a folder of faces nor an npz file with a member images") from error


def plan_cache(faces: Faces, image: tuple[Source, float], llm: Source, shard: int, half: bool) -> CachePlan:
    """What a cache of these faces would hold."""
    source, scale = image
    return CachePlan(faces.names(), source.side, llm.side, shard, half, scale)


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
    for start in range(0, len(names), CHUNK):
        part = names[start : start + CHUNK]
        good: list[tuple[str, Image.Image]] = []
        for name in part:
            try:
                picture, sha = faces.read(name)
            except ImageError as error:
                left_out.append(LeftOut(name, str(error)))
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
    waiting = missing_shards(cache, plan)
    total = len(plan.faces)
    before = done = total - sum(len(plan.names(k)) for k in waiting)
    began = time.monotonic()

    def count(faces_done: int) -> None:
        nonlocal done
        done += faces_done
        pace = (time.monotonic() - began) / max(1, done - before)
        on_progress(Progress(done, total, pace * (total - done) if done > before else None))

    count(0)
    for k in waiting:
        write_shard(cache, plan, k, make_shard(faces, plan.names(k), image, llm, count))
    write_index(cache)
    return plan


def new_faces(faces: Faces, cache: Path) -> int:
    """How many faces have come since the cache was begun: they are not in it."""
    return len(set(faces.names()) - set(read_plan(cache).faces))
