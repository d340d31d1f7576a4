"""What a track's faces say together: the mean of their features over a window of time, and a label that does not flicker."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from fer_edge.classifier import Classifier, Prediction


class Judgement:
    """Of one track. ``window`` in seconds of the medium: the mean of the unnormalised features of the faces in it is
    classified (Exp-CLIP ``models/Exp_CLIP.py``, Dynamic_FER)."""

    def __init__(self, clf: Classifier, window: float = 1.0) -> None:
        self.window = window
        self._clf = clf
        self._features: deque[tuple[float, NDArray[np.float32]]] = deque()
        self.prediction: Prediction | None = None

    def add(self, feature: NDArray[np.float32], time: float) -> bool:
        """Take the feature (D,) of a face seen at ``time``; whether the label has changed."""
        self._features.append((time, feature))
        while time - self._features[0][0] > self.window:
            self._features.popleft()
        mean = np.stack([row for _, row in self._features]).mean(0, dtype=np.float64, keepdims=True)
        before, self.prediction = self.prediction, self._clf.predict_features(mean.astype(np.float32))[0]
        return before is None or before.label != self.prediction.label
