"""fer_edge.h from Python by ctypes, as any language would bind it: no package of fer-edge, no engine's package.

python examples/cpp/ctypes_example.py build/libfer_edge.so fer_edge/default face.ppm --box 168,56,112,112
"""

from __future__ import annotations

import argparse
import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass

ABI = 1
"""FER_EDGE_ABI of the header that this was written after."""

Box = tuple[float, float, float, float]


class Options(ctypes.Structure):
    """fer_edge_options."""

    _fields_ = (
        ("precision", c_char_p),
        ("labels", c_char_p),
        ("device", c_char_p),
        ("digest", c_char_p),
        ("threads", c_int32),
    )


class Picture(ctypes.Structure):
    """fer_edge_picture."""

    _fields_ = (
        ("pixels", c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("channels", c_int32),
        ("row_bytes", c_int64),
    )


class BoxStruct(ctypes.Structure):
    """fer_edge_box."""

    _fields_ = (("x", c_double), ("y", c_double), ("width", c_double), ("height", c_double))


class PredictionStruct(ctypes.Structure):
    """fer_edge_prediction."""

    _fields_ = (("label", c_int32), ("certain", c_int32), ("score", c_double))


class Parity(ctypes.Structure):
    """fer_edge_parity."""

    _fields_ = (
        ("centred_cosine", c_double),
        ("self_retrieval", c_double),
        ("top1_agreement", c_double),
        ("score_difference", c_double),
        ("finite", c_int32),
        ("repeatable", c_int32),
    )


@dataclass(frozen=True)
class Prediction:
    """An answer: the label, whether it counts as certain, and the probability of each label."""

    label: str
    certain: bool
    scores: dict[str, float]


class FerEdgeError(Exception):
    """What the library says of a call that failed."""


def load_library(path: str | os.PathLike[str]) -> ctypes.CDLL:
    """The library, its functions with their types. Raises FerEdgeError for one of another ABI."""
    library = ctypes.CDLL(os.fspath(path))
    library.fer_edge_abi.restype = c_int32
    library.fer_edge_error.restype = c_char_p
    library.fer_edge_open.restype = c_void_p
    library.fer_edge_open.argtypes = [c_char_p, POINTER(Options)]
    library.fer_edge_close.restype = None
    library.fer_edge_close.argtypes = [c_void_p]
    library.fer_edge_label_count.restype = c_int32
    library.fer_edge_label_count.argtypes = [c_void_p]
    library.fer_edge_label.restype = c_char_p
    library.fer_edge_label.argtypes = [c_void_p, c_int32]
    library.fer_edge_predict.restype = c_int32
    library.fer_edge_predict.argtypes = [
        c_void_p,
        POINTER(Picture),
        POINTER(BoxStruct),
        POINTER(PredictionStruct),
        POINTER(c_double),
    ]
    library.fer_edge_verify.restype = c_int32
    library.fer_edge_verify.argtypes = [c_void_p, POINTER(Parity)]
    library.fer_edge_read_picture.restype = POINTER(Picture)
    library.fer_edge_read_picture.argtypes = [c_char_p]
    library.fer_edge_free_picture.restype = None
    library.fer_edge_free_picture.argtypes = [POINTER(Picture)]
    if library.fer_edge_abi() != ABI:
        raise FerEdgeError(f"{path} has the ABI {library.fer_edge_abi()}, and this binding is for {ABI}")
    return library


class Classifier:
    """A bundle, open until ``close`` or the end of a ``with`` block."""

    def __init__(
        self,
        library: ctypes.CDLL,
        bundle: str | os.PathLike[str],
        *,
        precision: str | None = None,
        labels: str | None = None,
        device: str | None = None,
        digest: str | None = None,
        threads: int = 0,
    ) -> None:
        self._library = library
        texts = [None if text is None else text.encode() for text in (precision, labels, device, digest)]
        self._handle = library.fer_edge_open(os.fsencode(bundle), byref(Options(*texts, threads)))
        if not self._handle:
            raise self._error()
        count = library.fer_edge_label_count(self._handle)
        self.labels = tuple(library.fer_edge_label(self._handle, k).decode() for k in range(count))

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine back; once more is fine."""
        handle, self._handle = self._handle, None
        self._library.fer_edge_close(handle)

    def predict(self, pixels: bytes, width: int, height: int, channels: int, box: Box | None = None) -> Prediction:
        """Classify one face of a picture of bare bytes: gray (1 channel) or RGB (3), without gaps between its rows."""
        if len(pixels) != width * height * channels:
            raise FerEdgeError(f"{len(pixels)} bytes are no picture of {width} x {height} x {channels}")
        picture = Picture(ctypes.cast(c_char_p(pixels), c_void_p), width, height, channels, 0)
        return self._predict(picture, box)

    def predict_file(self, path: str | os.PathLike[str], box: Box | None = None) -> Prediction:
        """Classify one face of a PGM or PPM file."""
        picture = self._library.fer_edge_read_picture(os.fsencode(path))
        if not picture:
            raise self._error()
        try:
            return self._predict(picture.contents, box)
        finally:
            self._library.fer_edge_free_picture(picture)

    def verify(self) -> tuple[str, Parity]:
        """What falls short of the golden set's bars ("" when nothing does), and what was measured."""
        parity = Parity()
        status = self._library.fer_edge_verify(self._handle, byref(parity))
        if status < 0:
            raise self._error()
        return str(self._error()) if status else "", parity

    def _predict(self, picture: Picture, box: Box | None) -> Prediction:
        best, scores = PredictionStruct(), (c_double * len(self.labels))()
        place = None if box is None else byref(BoxStruct(*box))
        if self._library.fer_edge_predict(self._handle, byref(picture), place, byref(best), scores) != 0:
            raise self._error()
        return Prediction(self.labels[best.label], bool(best.certain), dict(zip(self.labels, scores, strict=True)))

    def _error(self) -> FerEdgeError:
        return FerEdgeError(self._library.fer_edge_error().decode(errors="replace"))


def main() -> None:
    """Print the label and the scores of a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("library", "bundle", "picture"):
        parser.add_argument(name)
    parser.add_argument("--box", type=lambda text: tuple(map(float, text.split(","))), metavar="X,Y,W,H")
    asked = parser.parse_args()
    with Classifier(load_library(asked.library), asked.bundle) as classifier:
        answer = classifier.predict_file(asked.picture, asked.box)
    print(answer.label)
    for label, score in answer.scores.items():
        print(f"  {label:16} {score:.6f}")


if __name__ == "__main__":
    main()
