"""The eight standard ways of the product's robustness report, on stacks of faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fer_edge.benchmarks.robustness import WAYS as EVERY
from fer_edge.benchmarks.robustness import Way

Pictures = NDArray[np.uint8]
"""Gray faces (N, S, S)."""


def _of_stacks(way: Way) -> Callable[[Pictures], Pictures]:
    return lambda faces: np.stack(list(way.spoil(faces)))


WAYS: Mapping[str, Callable[[Pictures], Pictures]] = {way.text: _of_stacks(way) for way in EVERY if way.standard}
"""Name -> what it makes of gray faces (N, S, S), S at least 16."""
