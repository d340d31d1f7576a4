"""What the tests of learning share: small shapes, quick recipes, formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fer_edge
from fer_edge.converters.student.augment import Strength
from fer_edge.converters.student.language import TextRecipe
from fer_edge.converters.student.network import StudentConfig
from fer_edge.converters.student.recipe import Recipe
from fer_edge.labels import LABEL_SETS
from lab.random_clip import write_clip, write_head

LABELS = LABEL_SETS["ferplus8"]
LEARN = Path(fer_edge.__file__).parent.parent / "converters" / "student"
STUDENT = LEARN / "student48.safetensors"
SMALL = {"dim": 32, "width": 48, "layers": 2, "heads": 4, "patch": 8, "image": 32}
TINY = StudentConfig(size=48, widths=(8, 16, 16), depths=(1, 2, 1), feature_dim=32)
QUICK = Recipe(
    epochs=1,
    batch=16,
    lr=0.02,
    warmup_epochs=0.5,
    average=0.8,
    bf16=False,
    text=TextRecipe(steps=20, batch=64, drawn=(1, 4)),
)
FP32_OPENVINO: dict[str, Any] = {"runtimes": ("openvino",), "precisions": ("fp32",)}
STILL = Strength(rotation=0, scale=0, aspect=0, shift=0, shear=0, light=0, erase=0)
SHAPE: dict[str, Any] = {"widths": (8, 16, 16), "depths": (1, 2, 1)}

Double = NDArray[np.float64]


def small_clip(folder: Path, rows: int) -> Path:
    """A tiny random CLIP in a folder, with head.pth of so many rows beside it."""
    write_clip(folder / "clip", **SMALL)
    write_head(folder / "head.pth", SMALL["dim"], rows)
    return folder / "clip"


def unit(rows: NDArray[Any]) -> Double:
    """Rows of length 1, in float64."""
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.sqrt((wide * wide).sum(-1, keepdims=True))


def softmax(logits: Double) -> Double:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
