"""No engine at all: echoes the golden set's recorded answers after a set amount of work. For tests and for measuring
the harness itself.

Devices: "echo" answers at once, "spin:MS" first keeps the processor busy for MS milliseconds. A crop of the golden set
gets its own recorded feature; any other crop gets the first one. There are no recorded logits, so these are empty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import read_npz
from fer_edge.errors import EngineError
from fer_edge.runtime import File, Options, Signature, loaded, signature


def engine() -> str:
    """What is printed where an engine's name and version would be."""
    return _Session.engine


def devices() -> tuple[str, ...]:
    """The default, and the pattern of the other."""
    return ("echo", "spin:MS")


def try_device(device: str) -> None:
    """Nothing can fail to start."""


class _Session:
    engine = "null: recorded answers, no model ran"
    execution_precision = "none"

    def __init__(self, answers: dict[bytes, NDArray[np.float32]], signature: Signature, device: str, seconds: float) -> None:
        self.device = device
        self.signature = signature
        self._answers = answers
        self._first = next(iter(answers.values()))
        self._seconds = seconds

    def run(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        end = time.perf_counter() + self._seconds
        feature = self._answers.get(crop.tobytes(), self._first).copy()
        while time.perf_counter() < end:
            pass
        return feature, np.empty(0, np.float32)

    def close(self) -> None:
        """Nothing to give back."""


def open(files: Sequence[File | Path], options: Options) -> _Session:
    """Read the golden set. Raises EngineError for a device that is neither "echo" nor "spin:MS"."""
    kind, _, amount = options.device.partition(":")
    try:
        milliseconds = float(amount) if kind == "spin" else 0.0
    except ValueError:
        milliseconds = -1.0
    if (kind, amount) != ("echo", "") and not (kind == "spin" and 0 < milliseconds < 60_000):
        raise EngineError(f"null has no device {options.device!r}; there are echo and spin:MS, as spin:1.5")
    (file,) = loaded(files)
    golden = read_npz(file.path, {"crops", "features"}, data=file.content)
    answers = {crop.tobytes(): feature for crop, feature in zip(golden["crops"], golden["features"], strict=True)}
    (_, height, side, channels), (_, width) = golden["crops"].shape, golden["features"].shape
    return _Session(answers, signature(height, side, channels, width, labels=0), options.device, milliseconds / 1000)
