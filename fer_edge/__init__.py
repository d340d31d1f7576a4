"""fer-edge: zero-shot facial-expression recognition on edge devices.

import fer_edge
clf = fer_edge.load()
print(clf.predict("face.jpg").label)
"""

from pathlib import Path

from .classifier import Classifier, Prediction, load
from .engines import silence
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

# In a wheel the rooms lie inside this folder, in a checkout beside it: a checkout uses its own, whatever is installed.
if (_root := Path(__file__).resolve().parent.parent).joinpath("runtimes", "run_null.py").is_file():
    __path__.append(str(_root))

silence()

__version__ = "0.2.0"

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
