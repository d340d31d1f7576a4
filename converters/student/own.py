"""Faces that somebody labelled, a folder for each expression, as the npz files that a training reads: three parts that share
no photo."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import write_npz
from fer_edge.errors import LabelError, UsageError
from fer_edge.image import to_input
from fer_edge.labelled import label_of, picture_names, read_faces
from fer_edge.labels import LABEL_SETS
from fer_edge.twins import SIDE, near_duplicates, squares

from .fer2013 import VOTE_NAMES

VOTES = 10
"""Of a face, all for its class: as many annotators as FER+ had."""
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """``counts``: part -> label -> faces; ``left_out``: names of files of classes that are no expression of the training;
    ``together`` counts the faces that have to stay with another one."""

    counts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    together: int


def split(
    folder: Path,
    output: Path,
    validation: float = 0.1,
    test: float = 0.1,
    size: int = SIDE,
    person: str | None = None,
    skip_unknown: bool = False,
    on_picture: Callable[[float], None] = lambda done: None,
) -> Split:
    """Write train.npz, validation.npz and test.npz of a folder with a folder of images per class into ``output``.

    Photos that are twins stay in one part, and so do those whose file names agree in the first group of ``person``, a
    regular expression. Which part that is, the hash of the first of them decides: more faces change nothing for those that
    were there, unless they join two groups. ``size``: pixels of a side. Raises UsageError, LabelError for a class that is no
    expression (unless ``skip_unknown``), ImageError for a picture that cannot be read."""
    if validation + test >= 1:
        raise UsageError(f"{validation:g} and {test:g} of the faces leave none to learn from")
    faces = read_faces(folder)
    labels = LABEL_SETS["ferplus8"]
    meaning = {name: label_of(name, labels) for name in dict.fromkeys(faces.classes)}
    left_out = {name: faces.classes.count(name) for name, label in meaning.items() if label is None}
    if left_out and not skip_unknown:
        raise LabelError(
            f"the class {next(iter(left_out))!r} is none that a student learns ({', '.join(labels)}); "
            "leave it out with --skip-unknown, or name it by one of these"
        )
    known = [i for i, name in enumerate(faces.classes) if meaning[name] is not None]
    if not known:
        raise UsageError(f"no face of {folder} has a class that a student learns ({', '.join(labels)})")
    images = [faces.images[i] for i in known]
    truth = np.array([VOTE_NAMES.index(str(meaning[faces.classes[i]])) for i in known])
    pixels = squares(images, on_picture)
    groups = _groups(pixels, _people(picture_names(folder, images), person))
    parts = _parts(pixels, groups, validation, test)
    empty = [name for number, name in enumerate(PARTS) if not (parts == number).any()]
    if empty:
        raise UsageError(f"{len(known)} faces are too few: none fell to {empty[0]}; name more faces, or larger shares")
    output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for number, name in enumerate(PARTS):
        rows = np.flatnonzero(parts == number)
        crops = np.stack([to_input(images[i], (size, size), "gray")[..., 0] for i in rows])
        _write(output / f"{name}.npz", crops, truth[rows])
        counts[name] = {label: int((truth[rows] == VOTE_NAMES.index(label)).sum()) for label in labels}
    return Split(counts, left_out, len(known) - len(set(groups.tolist())))


def _people(names: list[str], person: str | None) -> list[str | None]:
    """Whose photo each one is, where the pattern says so."""
    if person is None:
        return [None] * len(names)
    try:
        pattern = re.compile(person)
    except re.error as error:
        raise UsageError(f"{person!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise UsageError(f"{person!r} needs one group in brackets, which says whose photo a file is")
    matches = [pattern.search(name.rpartition("/")[2]) for name in names]
    return [match[1] if match else None for match in matches]


def _groups(pixels: NDArray[np.uint8], people: list[str | None]) -> NDArray[np.int64]:
    """(N,): the smallest row that each one has to stay with."""
    first = list(range(len(pixels)))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = row = first[first[row]]
        return row

    found = near_duplicates(pixels)
    seen: dict[str, int] = {}
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    for row, name in enumerate(people):
        if name is not None:
            pairs.append((seen.setdefault(name, row), row))
    for a, b in pairs:
        one, other = sorted((root(a), root(b)))
        first[other] = one
    return np.array([root(row) for row in range(len(pixels))], np.int64)


def _parts(pixels: NDArray[np.uint8], groups: NDArray[np.int64], validation: float, test: float) -> NDArray[np.int64]:
    """(N,): 0 to learn from, 1 for validation, 2 for test; by a number from 0 to 1 that each group has by its pixels."""
    chances = np.array([int.from_bytes(hashlib.sha256(pixels[row].tobytes()).digest()[:8], "big") / 2**64 for row in groups])
    return np.where(chances < test, 2, np.where(chances < test + validation, 1, 0))


def _write(path: Path, crops: NDArray[np.uint8], truth: NDArray[np.int64]) -> None:
    votes = np.zeros((len(crops), len(VOTE_NAMES)), np.int8)
    votes[np.arange(len(crops)), truth] = VOTES
    write_npz(
        path,
        images=crops,
        ferplus_votes_labelcsv=votes,
        ferplus_vote_names=np.array(VOTE_NAMES),
        ferplus_majority_labelcsv=truth.astype(np.int8),
        ferplus_class_names=np.array(VOTE_NAMES[:8]),
    )
