"""A photo in, its faces and their expressions out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from fer_edge.arguments import checked
from fer_edge.classifier import Classifier, Prediction
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import UsageError
from fer_edge.image import ImageLike, rgb_array

from .faces import LEAST_EYES, Face, FaceFinder

Align = Literal["none", "eyes"]


@dataclass(frozen=True)
class FacePrediction(Face):
    """A face of a photo with its ``prediction``; None where it is too small to be judged: then ``label`` is None, ``scores``
    is empty and ``certain`` is False."""

    prediction: Prediction | None

    @property
    def label(self) -> str | None:
        """The most probable label."""
        return self.prediction.label if self.prediction else None

    @property
    def scores(self) -> dict[str, float]:
        """Label -> probability."""
        return dict(self.prediction.scores) if self.prediction else {}

    @property
    def certain(self) -> bool:
        """As of a Prediction."""
        return self.prediction is not None and self.prediction.certain

    def to_dict(self) -> dict[str, Any]:
        """{"box", "score" (the detector's), "landmarks", "label", "scores", "certain"}, ready for JSON."""
        return {**super().to_dict(), "label": self.label, "scores": self.scores, "certain": self.certain}


@checked("photo")
def predict_faces(
    clf: Classifier,
    photo: ImageLike,
    finder: FaceFinder,
    *,
    align: Align = "none",
    least_eyes: float = LEAST_EYES,
    max_pixels: int = MAX_PIXELS,
) -> list[FacePrediction]:
    """See :meth:`fer_edge.Classifier.predict_faces`."""
    if not least_eyes >= 0:
        raise UsageError(f"least_eyes must be at least 0 pixels; got {least_eyes}")
    pixels, shrunk = rgb_array(photo, max_pixels)
    faces = finder.find_rgb(pixels)
    large = [face for face in faces if face.eye_distance >= least_eyes]
    angles = [eye_angle(face) for face in large] if align == "eyes" else None
    features = clf.box_features(pixels, [face.box for face in large], angles=angles)
    answers = dict(zip(map(id, large), clf.predict_features(features), strict=True))
    result = []
    for face in faces:
        whole = face.times(shrunk)
        result.append(FacePrediction(whole.box, whole.score, whole.landmarks, answers.get(id(face))))
    return result


def eye_angle(face: Face) -> float:
    """Degrees by which a face leans, clockwise as seen: of the line from its right eye to its left one."""
    (x1, y1), (x2, y2) = face.landmarks[:2]
    return math.degrees(math.atan2(y2 - y1, x2 - x1))
