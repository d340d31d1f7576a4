"""What a track's faces say together: the mean of their features over a window of time, and a label that does not flicker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fer_edge.classifier import Classifier, Prediction

WINDOW = 0.4
"""Seconds of the medium. This and the next two: the fewest false changes of those that tell 95% of the true ones within
0.7 s, on one half of the people of lfw_expressions (docs/decisions.md)."""
LEAD = 0.3
"""Of probability."""
HOLD = 0.2
"""Seconds of the medium."""
SLOTS = 20
"""Parts of a window whose faces are kept as one sum: memory does not grow with the rate of a camera."""


@dataclass
class _Slot:
    since: float
    total: NDArray[np.float64]
    faces: int = 1


class Judgement:
    """Of one track: ``prediction``, None until the first ``add``.

    ``window`` in seconds of the medium: the mean of the unnormalised features of the faces in it is classified (Exp-CLIP
    ``models/Exp_CLIP.py``, Dynamic_FER). Each face weighs the same. Another label is taken once it has led the label of
    the prediction by ``lead`` of probability for ``hold`` seconds; until then the label stays, with the scores of now."""

    def __init__(self, clf: Classifier, window: float = WINDOW, lead: float = LEAD, hold: float = HOLD) -> None:
        self.window, self.lead, self.hold = window, lead, hold
        self.prediction: Prediction | None = None
        self._clf = clf
        self._slots: deque[_Slot] = deque()
        self._rival: tuple[str, float] | None = None

    def add(self, feature: NDArray[np.float32], time: float) -> bool:
        """Take the feature (D,) of a face seen at ``time``; whether the label has changed."""
        before, best = self.prediction, self._clf.predict_features(self._mean(feature, time)[None])[0]
        if before is None or before.label == best.label or self._wins(best, before.label, time):
            self.prediction, self._rival = best, None
            return before is None or before.label != best.label
        certain = best.certain and best.scores[before.label] >= self._clf.threshold
        self.prediction = replace(best, label=before.label, certain=certain)
        return False

    def _mean(self, feature: NDArray[np.float32], time: float) -> NDArray[np.float32]:
        last = self._slots[-1] if self._slots else None
        if last is not None and time - last.since < self.window / SLOTS:
            last.total += feature
            last.faces += 1
        else:
            self._slots.append(_Slot(time, feature.astype(np.float64)))
        while time - self._slots[0].since > self.window:
            self._slots.popleft()
        total = np.sum([slot.total for slot in self._slots], 0)
        mean: NDArray[np.float32] = (total / sum(slot.faces for slot in self._slots)).astype(np.float32)
        return mean

    def _wins(self, best: Prediction, label: str, time: float) -> bool:
        """Whether the best label has led the other for long enough."""
        if best.score - best.scores[label] < self.lead:
            self._rival = None
            return False
        if self._rival is None or self._rival[0] != best.label:
            self._rival = best.label, time
        return time - self._rival[1] >= self.hold
