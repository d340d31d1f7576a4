"""FER2013 with FER+ votes: reading the npz files and building them from the public CSV files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import ConversionError


@dataclass(frozen=True)
class Faces:
    """``images`` uint8 (N, 48, 48); ``targets`` float32 (N, K), a distribution per face; ``labels`` int (N,), -1 = no
    majority."""

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    labels: NDArray[np.int64]


def soft_targets(votes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Vote distributions (N, K) after dropping single votes, as the FER+ authors do (Barsoum et al., ICMI 2016,
    ferplus.py)."""
    kept = np.where(votes > 1, votes, 0).astype(np.float32)
    total = kept.sum(1, keepdims=True)
    shares: NDArray[np.float32] = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    return shares


def load_faces(path: Path, names: tuple[str, ...]) -> Faces:
    """Read an npz file; targets and labels follow the order of ``names``. Faces without one usable vote are left out.

    Raises ConversionError when a member is missing or the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as z:
            votes, vote_names = z["ferplus_votes_labelcsv"], list(map(str, z["ferplus_vote_names"]))
            majority, class_names = (
                z["ferplus_majority_labelcsv"].astype(np.int64),
                list(map(str, z["ferplus_class_names"])),
            )
            images = z["images"]
    except (OSError, KeyError, ValueError) as error:
        raise ConversionError(f"{path} is not a FER+ npz file ({error}); build one with: fer-edge student data") from error
    order = [vote_names.index(name) for name in names]
    kept = np.where(votes > 1, votes, 0)
    usable = (kept[:, order].max(1) > 0) & (kept[:, order].max(1) >= kept.max(1))
    position = np.array([names.index(name) for name in class_names] + [-1])
    return Faces(images[usable], soft_targets(votes[:, order])[usable], position[majority][usable])
