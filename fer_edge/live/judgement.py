"""What a track's faces say together: the mean of their features over a window of time, and a label that does not flicker."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fer_edge.classifier import Classifier, Prediction

WINDOW = 0.3
"""Seconds of the medium. This and the next two were chosen on one half of the people of lfw_expressions: a plateau of no
false change, the fewest changes, and true ones told soonest (docs/decisions.md)."""
ODDS = 1.0
"""Logarithm of the odds against the label below which another one gains nothing."""
EVIDENCE = 0.06
"""Logarithms of odds above ODDS, times seconds, that another label needs."""
_MOST, _LONGEST = 2.0, 0.3
"""What one face can say at most (a logarithm of odds), and for how long (seconds): no frame decides alone."""
_LEAST = 1e-6
"""Probability that counts as none."""
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
    ``models/Exp_CLIP.py``, Dynamic_FER). Each face weighs the same. Another label is taken once the evidence for it, against
    the label of the prediction, reaches ``evidence``: the sum over time of the logarithm of its odds less ``odds``, never
    below 0 (CUSUM: Page, Biometrika 41, 1954; its odds between two faces are the smaller ones of both). So a sure change is
    told soon and a doubtful one late or never; until then the label stays, with the scores of now."""

    def __init__(self, clf: Classifier, window: float = WINDOW, odds: float = ODDS, evidence: float = EVIDENCE) -> None:
        self.window, self.odds, self.evidence = window, odds, evidence
        self.prediction: Prediction | None = None
        self._clf = clf
        self._slots: deque[_Slot] = deque()
        self._time = 0.0
        self._odds: dict[str, float] = {}
        self._sums: dict[str, float] = {}

    def add(self, feature: NDArray[np.float32], time: float) -> bool:
        """Take the feature (D,) of a face seen at ``time``; whether the label has changed."""
        before, best = self.prediction, self._clf.predict_features(self._mean(feature, time)[None])[0]
        changed = before is None or (self._gather(best, before.label, time) >= self.evidence and best.label != before.label)
        if changed:
            self._odds, self._sums = _odds(best, best.label), dict.fromkeys(best.scores, 0.0)
        self._time = time
        if before is None or changed or before.label == best.label:
            self.prediction = best
            return changed
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

    def _gather(self, best: Prediction, label: str, time: float) -> float:
        """Add what the time since the last face says; the evidence for the best label."""
        pause, odds = min(time - self._time, _LONGEST), _odds(best, label)
        for name, now in odds.items():
            self._sums[name] = max(0.0, self._sums[name] + pause * (min(now, self._odds[name]) - self.odds))
        self._odds = odds
        return self._sums[best.label]


def _odds(prediction: Prediction, label: str) -> dict[str, float]:
    """Of each label against one of them, logarithms."""
    base = math.log(max(prediction.scores[label], _LEAST))
    return {name: min(max(math.log(max(score, _LEAST)) - base, -_MOST), _MOST) for name, score in prediction.scores.items()}
