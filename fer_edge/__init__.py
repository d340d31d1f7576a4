"""fer-edge: zero-shot facial-expression recognition on edge devices.

import fer_edge
clf = fer_edge.load()
print(clf.predict("face.jpg").label)
"""

from .classifier import Classifier, Prediction, load
from .errors import (
    BundleError,
    ConversionError,
    EngineError,
    FerEdgeError,
    ImageError,
    IntegrityError,
    LabelError,
    MissingExtraError,
    UsageError,
)
from .video import sample_frames

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Classifier",
    "ConversionError",
    "EngineError",
    "FerEdgeError",
    "ImageError",
    "IntegrityError",
    "LabelError",
    "MissingExtraError",
    "Prediction",
    "UsageError",
    "__version__",
    "load",
    "sample_frames",
]
