"""``python -m lab.held_out TRAIN.npz OUTPUT.npz``: the training faces that the trainings of ``lab.gpu`` never see, with
their labels, for ``fer-edge calibrate``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .gpu.pack import held_out

LABELS = ("ferplus_majority_labelcsv", "ferplus_class_names")


def write_held_out(train: Path, output: Path) -> None:
    """Write the faces and their majority labels (-1: none)."""
    with np.load(train, allow_pickle=False) as z:
        truth, names = LABELS
        kept = held_out(z["images"])
        np.savez_compressed(output, images=z["images"][kept], **{truth: z[truth][kept], names: z[names]})
    print(f"{output}: {int(kept.sum())} faces")


if __name__ == "__main__":
    write_held_out(Path(sys.argv[1]), Path(sys.argv[2]))
