"""The npz files of FER2013 with FER+ votes, from the two public tables (Kaggle's fer2013.csv, Microsoft's
fer2013new.csv)."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import write_npz
from fer_edge.errors import ConversionError

FER2013_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
VOTE_NAMES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
SPLITS = {"Training": "train", "PublicTest": "public_test", "PrivateTest": "private_test"}


def majority(votes: NDArray[np.integer]) -> NDArray[np.int8]:
    """FER+'s majority label (ferplus.py of the FER+ authors): single votes dropped, then more than half of the rest,
    else -1.

    ``votes`` (N, 10) in the order of VOTE_NAMES; unknown and NF give -1 too."""
    kept = np.where(votes > 1, votes, 0)
    best = kept.argmax(1)
    sure = (kept.max(1) > 0.5 * kept.sum(1)) & (best < 8)
    return np.where(sure, best, -1).astype(np.int8)


def build(fer2013: Path, ferplus: Path, output: Path) -> dict[str, int]:
    """Write train.npz, public_test.npz and private_test.npz; split -> faces.

    A training face that also stands in a test split, or a second time in training, is left out. Raises ConversionError
    for tables of another shape."""
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    try:
        rows = _joined(fer2013, ferplus)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8, or one table is longer
        raise ConversionError(f"{fer2013} and {ferplus} are not the published tables ({error})") from error
    held_out = {pixels.tobytes() for split in ("PublicTest", "PrivateTest") for _, _, pixels, _ in rows[split]}
    output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, name in SPLITS.items():
        seen: set[bytes] = set(held_out) if split == "Training" else set()
        kept = [row for row in rows[split] if split != "Training" or not _repeated(row[2], seen)]
        counts[name] = len(kept)
        _write(output / f"{name}.npz", kept)
    return counts


def _joined(fer2013: Path, ferplus: Path) -> dict[str, list[tuple[int, int, NDArray[np.uint8], list[int]]]]:
    """Split -> (row, emotion, pixels, votes) of both tables."""
    rows: dict[str, list[tuple[int, int, NDArray[np.uint8], list[int]]]] = {split: [] for split in SPLITS}
    for number, (face, votes) in enumerate(zip(_rows(fer2013), _rows(ferplus), strict=True)):
        try:
            pixels = np.array(face["pixels"].split(), dtype=np.uint8).reshape(48, 48)
            rows[face["Usage"]].append((number, int(face["emotion"]), pixels, [int(votes[name]) for name in VOTE_NAMES]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:  # a line that was cut has None in it
            raise ConversionError(f"row {number + 2} of {fer2013} or {ferplus} is not as published ({error})") from error
        if votes.get("Usage") != face["Usage"]:
            raise ConversionError(f"row {number + 2}: {fer2013} and {ferplus} are not the same pictures in the same order")
    return rows


def _repeated(pixels: NDArray[np.uint8], seen: set[bytes]) -> bool:
    key = pixels.tobytes()
    known = key in seen
    seen.add(key)
    return known


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _write(path: Path, rows: list[tuple[int, int, NDArray[np.uint8], list[int]]]) -> None:
    votes = np.array([row[3] for row in rows], dtype=np.int8).reshape(-1, len(VOTE_NAMES))
    write_npz(
        path,
        images=np.stack([row[2] for row in rows]) if rows else np.empty((0, 48, 48), np.uint8),
        labels=np.array([row[1] for row in rows], dtype=np.int8),
        class_names=np.array(FER2013_CLASSES),
        ferplus_votes_labelcsv=votes,
        ferplus_vote_names=np.array(VOTE_NAMES),
        ferplus_majority_labelcsv=majority(votes),
        ferplus_class_names=np.array(VOTE_NAMES[:8]),
        fer2013_row=np.array([row[0] for row in rows], dtype=np.int32),
    )
