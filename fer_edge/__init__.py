"""fer-edge: zero-shot facial-expression recognition on edge devices.

import fer_edge
clf = fer_edge.load()
print(clf.predict("face.jpg").label)
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

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
    SourceError,
    UsageError,
)

if TYPE_CHECKING:
    from .classifier import Classifier, Prediction, load
    from .live.faces import Face, FaceFinder
    from .live.predictions import FacePrediction
    from .live.watch import watch
    from .video import sample_frames

# In a wheel the rooms lie inside this folder, in a checkout beside it: a checkout uses its own, whatever is installed.
if (_root := Path(__file__).resolve().parent.parent).joinpath("runtimes", "run_null.py").is_file():
    __path__.append(str(_root))

silence()

_LATER = {
    "Classifier": "classifier",
    "Face": "live.faces",
    "FaceFinder": "live.faces",
    "FacePrediction": "live.predictions",
    "Prediction": "classifier",
    "load": "classifier",
    "sample_frames": "video",
    "watch": "live.watch",
}
"""Public name -> its module, imported with numpy and Pillow when the name is first used: until then a command has its
signals in hand, and ``--help`` is quick."""


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_LATER[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__version__ = "0.2.0"

__all__ = [
    "BundleError",
    "Classifier",
    "ConversionError",
    "EngineError",
    "Face",
    "FaceFinder",
    "FacePrediction",
    "FerEdgeError",
    "ImageError",
    "IntegrityError",
    "LabelError",
    "MissingExtraError",
    "Prediction",
    "SourceError",
    "UsageError",
    "__version__",
    "load",
    "sample_frames",
    "watch",
]
