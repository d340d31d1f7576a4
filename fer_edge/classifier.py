"""The classifier: one bundle, one artefact, one engine, one label set."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import runtime as rt
from .arguments import checked
from .bundle import Bundle, artefact_contents, check_label_sets, checked_bytes, golden_set, label_set, read_settled
from .cache import LARGE, Store
from .decode import MAX_PIXELS
from .engines import PRECISIONS, RUNTIMES, installed, installed_engine, preferred_order
from .errors import BundleError, EngineError, ImageError, MissingExtraError, UsageError
from .image import Box, ImageLike, Shape, several, to_input, to_inputs
from .labels import LabelSet
from .manifest import FOR_COMPILERS, Artefact, digest_of

if TYPE_CHECKING:
    from .live.faces import FaceFinder
    from .live.predictions import FacePrediction

DEFAULT_BUNDLE = Path(__file__).parent / "default"


@dataclass(frozen=True)
class Prediction:
    """``label``: the most probable one; ``scores``: label -> probability, in the label set's order, summing to 1;
    ``certain``: whether the label's probability reaches the label set's threshold, and the feature is that of a face
    (always, where the label set has no bars for them: see ``fer-edge calibrate``)."""

    label: str
    scores: dict[str, float]
    certain: bool = True

    def __hash__(self) -> int:
        return hash((self.label, tuple(self.scores.items()), self.certain))

    @property
    def score(self) -> float:
        """The label's probability."""
        return self.scores[self.label]

    @checked()
    def top(self, n: int = 3) -> list[tuple[str, float]]:
        """The ``n`` most probable labels with their probabilities, the most probable first; all, if there are fewer."""
        if n < 1:
            raise UsageError(f"n must be at least 1; got {n}")
        return sorted(self.scores.items(), key=lambda item: -item[1])[:n]

    def to_dict(self) -> dict[str, Any]:
        """{"label", "score", "scores", "certain"}, ready for JSON."""
        return {"label": self.label, "score": self.score, "scores": dict(self.scores), "certain": self.certain}


class Classifier:
    """Faces in, expressions out. Made by ``load``; may be shared between threads; closed by ``close`` or ``with``.

    ``runtime``, ``device``, ``precision`` (of the artefact), ``execution_precision`` (what the engine computes in),
    ``threads`` and ``engine`` say what runs, ``cache`` whether it came "from the cache" ("": none was used). Every
    method raises UsageError after ``close`` and in a forked child."""

    def __init__(
        self, bundle: Bundle, runtime: str, precision: str, threads: int, session: rt.Session, labels: LabelSet
    ) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.precision = precision
        self.threads = threads
        self.device = session.device
        self.execution_precision = session.execution_precision
        self.engine = session.engine
        self.cache = session.cache
        self._set = labels
        self._session: rt.Session | None = session
        self._finder: FaceFinder | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the scores."""
        return self._set.labels

    @property
    def label_set(self) -> str:
        """Name of the label set in use."""
        return self._set.name

    @property
    def threshold(self) -> float:
        """The probability from which a label can be certain; 0: the label set has no such bar."""
        return self._set.threshold

    @checked("image")
    def predict(
        self,
        image: ImageLike,
        box: Box | None = None,
        margin: float = 0.0,
        *,
        shape: Shape = "square",
        max_pixels: int = MAX_PIXELS,
    ) -> Prediction:
        """Classify one face.

        ``image``: a path, the bytes of an image file, a file open for reading, a PIL image, or a uint8 array (H, W, 3) RGB,
        (H, W, 4) RGBA or (H, W) gray. **OpenCV's frames are BGR**: pass ``cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)``; with
        red and blue exchanged the answer is wrong and nothing can tell. Transparent pixels are laid on white.

        The whole picture is taken to be one face; it cannot be told from a landscape, so crop first or give ``box`` = (x,
        y, width, height) in pixels, as a detector gives it. What is cut is a square round its centre, its side the longer
        side of the box times the bundle's ``crop.scale``; it may leave the picture, whose edge pixels are then repeated.
        ``margin`` widens the box on every side first (a fraction of its size). ``shape="box"`` cuts the box as it is and
        stretches it; it must lie inside the picture. ``max_pixels``: larger pictures are decoded smaller (JPEG, JPEG 2000)
        or refused; 9 bytes of memory each.

        Raises ImageError; UsageError for a margin or shape without a box; EngineError when the engine answers with NaN."""
        if box is not None:
            return self._predictions(image, [box], margin, shape, max_pixels)[0]
        return self._prediction(self._feature(image, margin, shape, max_pixels))

    @checked("image")
    def predict_boxes(
        self,
        image: ImageLike,
        boxes: Iterable[Box],
        margin: float = 0.0,
        *,
        shape: Shape = "square",
        max_pixels: int = MAX_PIXELS,
    ) -> list[Prediction]:
        """Classify several faces of one photo: the same answers as :meth:`predict` with each ``box``, but the photo is
        decoded once. No boxes give no answers. An ImageError names the box that does not fit, as ``boxes[3]``."""
        return self._predictions(image, list(boxes), margin, shape, max_pixels)

    def predict_faces(
        self,
        photo: ImageLike,
        finder: FaceFinder | None = None,
        *,
        align: Literal["none", "eyes"] = "none",
        least_eyes: float | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> list[FacePrediction]:
        """Find the faces of a photo and classify each: the answers of :meth:`predict_boxes` with the finder's boxes, the
        largest face first. Extra ``live``.

        ``photo``: as in :meth:`predict`. ``finder``: None: a ``fer_edge.FaceFinder()``, made once for this classifier.
        ``align="eyes"`` turns each square about its centre until the eyes are level. ``least_eyes``: pixels between the eyes
        of a face (of the photo, as it was decoded) below which it is found and not judged; None: the limit that was
        measured (docs/devices.md).

        Raises ImageError; UsageError where no detector is installed; MissingExtraError; EngineError."""
        self._alive()
        found = import_module("fer_edge.live.predictions")
        options = {} if least_eyes is None else {"least_eyes": least_eyes}
        chosen = self._own_finder() if finder is None else finder
        answers: list[FacePrediction] = found.predict_faces(
            self, photo, chosen, align=align, max_pixels=max_pixels, **options
        )
        return answers

    @checked()
    def predict_batch(self, images: Iterable[ImageLike], *, max_pixels: int = MAX_PIXELS) -> list[Prediction]:
        """Classify several face crops, one after the other (artefacts have a static batch of 1). An ImageError names the
        image that cannot be read, as ``images[3]``."""
        return [self._prediction(feature) for feature in self._features(images, "images", max_pixels)]

    @checked()
    def predict_clip(self, frames: Iterable[ImageLike], *, max_pixels: int = MAX_PIXELS) -> Prediction:
        """Classify a video: the mean of the unnormalised features of **every** frame given (Exp-CLIP
        ``models/Exp_CLIP.py``, Dynamic_FER); ``fer_edge.sample_frames(video, 16)`` picks the paper's frames. Raises
        ImageError without any frame, and names a frame that cannot be read, as ``frames[3]``."""
        rows = list(self._features(frames, "frames", max_pixels))
        if not rows:
            raise ImageError("there is no frame to look at")
        return self._prediction(np.stack(rows).mean(0, dtype=np.float64).astype(np.float32))

    @checked()
    def features(self, images: Iterable[ImageLike], *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """Features (N, D) float32, before normalisation. Raises ImageError when there is no image."""
        rows = list(self._features(images, "images", max_pixels))
        if not rows:
            raise ImageError("there is no image to look at")
        return np.stack(rows)

    @checked("image")
    def box_features(
        self,
        image: ImageLike,
        boxes: Iterable[Box],
        *,
        shape: Shape = "square",
        angles: Iterable[float] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> NDArray[np.float32]:
        """Features (N, D) float32, before normalisation, of several faces of one photo; boxes as in :meth:`predict_boxes`.
        ``angles``: degrees by which each face leans, clockwise as seen: its square is turned with it. No boxes give
        (0, D)."""
        turns = None if angles is None else list(angles)
        rows = [self._run(crop) for crop in self._crops(image, list(boxes), 0.0, shape, max_pixels, turns)]
        return np.stack(rows) if rows else np.empty((0, self.bundle.manifest.feature_dim), np.float32)

    @checked()
    def predict_features(self, features: NDArray[np.float32]) -> list[Prediction]:
        """Score features (N, D), of this bundle's encoder, or means of such: a track's window, say."""
        wide = self.bundle.manifest.feature_dim
        if features.ndim != 2 or features.shape[1] != wide:
            raise UsageError(f"features must be (N, {wide}); got {features.shape}")
        return [self._prediction(feature) for feature in features.astype(np.float32, copy=False)]

    def close(self) -> None:
        """Give the engine back. Closing twice is fine."""
        if self._pid != os.getpid():
            return
        with self._lock:
            session, self._session = self._session, None
            finder, self._finder = self._finder, None
            if session is not None:
                session.close()
            if finder is not None:
                finder.close()

    def __enter__(self) -> Classifier:
        self._alive()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError("a classifier cannot be copied or sent to another process; call fer_edge.load there")

    def __repr__(self) -> str:
        state = "" if self._session is not None else ", closed"
        ran = f"{self.runtime} {self.precision} on {self.device}"
        return f"<Classifier {self.bundle.manifest.name}: {ran}, labels {self.label_set}{state}>"

    def _own_finder(self) -> FaceFinder:
        with self._lock:
            self._alive()
            if self._finder is None:
                self._finder = import_module("fer_edge.live.faces").FaceFinder()
            return self._finder

    def _alive(self) -> rt.Session:
        if self._pid != os.getpid():
            raise UsageError("this classifier was opened before a fork; call fer_edge.load in the child")
        if self._session is None:
            raise UsageError("this classifier is closed; call fer_edge.load again")
        return self._session

    def _feature(self, image: ImageLike, margin: float, shape: Shape, max_pixels: int) -> NDArray[np.float32]:
        self._alive()  # before the image: a closed classifier says so, whatever it is given
        spec = self.bundle.manifest.input
        return self._run(to_input(image, spec.size, spec.color, None, margin, shape=shape, max_pixels=max_pixels))

    def _features(self, images: Iterable[ImageLike], name: str, max_pixels: int) -> Iterator[NDArray[np.float32]]:
        self._alive()
        for i, image in enumerate(several(images, name)):
            try:
                yield self._feature(image, 0.0, "square", max_pixels)
            except ImageError as error:
                raise ImageError(f"{name}[{i}]: {error}") from error

    def _predictions(
        self, image: ImageLike, boxes: list[Box], margin: float, shape: Shape, max_pixels: int
    ) -> list[Prediction]:
        return [self._prediction(self._run(crop)) for crop in self._crops(image, boxes, margin, shape, max_pixels)]

    def _crops(
        self,
        image: ImageLike,
        boxes: list[Box],
        margin: float,
        shape: Shape,
        max_pixels: int,
        angles: list[float] | None = None,
    ) -> list[NDArray[np.uint8]]:
        self._alive()
        spec = self.bundle.manifest.input
        cut: dict[str, Any] = {"shape": shape, "scale": spec.crop.scale, "angles": angles, "max_pixels": max_pixels}
        return to_inputs(image, spec.size, spec.color, boxes, margin, **cut)

    def _run(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            feature, _ = rt.run(self._alive(), crop[None])
        if not np.isfinite(feature).all():
            raise EngineError(f"{self.engine} answered with NaN or Inf on {self.device}; run: fer-edge verify")
        return feature

    def _prediction(self, feature: NDArray[np.float32]) -> Prediction:
        scores = self._set.score_one(feature)
        best = max(scores)
        return Prediction(
            self._set.labels[scores.index(best)],
            dict(zip(self._set.labels, scores, strict=True)),
            self._set.is_certain(best, feature),
        )


@checked()
def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    runtime: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    labels: str | None = None,
    threads: int | None = None,
    execution_precision: str | None = None,
    digest: str | None = None,
    cache: bool | str | os.PathLike[str] | None = None,
) -> Classifier:
    """Open a bundle (None: the embedded default) and make it ready to predict.

    ``runtime``: openvino, litert, onnxruntime, null or one of a third party; None: the first installed one that the
    bundle has an artefact for (x86: openvino, onnxruntime, litert; ARM: litert, onnxruntime, openvino). ``device``: the
    engine's name (``fer-edge doctor`` lists them); None: its CPU. ``precision``: int8, fp16 or fp32; None: the first of
    these that there is. ``labels``: a label set of the bundle; None: its default. ``threads``: None: all processors up
    to 4. ``execution_precision``: ask for bf16 or fp16 arithmetic where the engine has it; never chosen by itself.
    ``digest``: the only bundle that is taken (``fer-edge info --json`` shows it). ``cache``: None: what an engine builds of
    a large model is kept for the next start, in the user's cache folder; True: of a small one, too; False: nothing is kept
    or read; a folder: as True, there. ``Classifier.cache`` says what became of it.

    Raises BundleError, LabelError, MissingExtraError, EngineError or UsageError."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be a whole number of at least 1; got {threads}")
    options = (device, threads or rt.default_threads(), execution_precision)

    def opened(bundle: Bundle) -> Classifier:
        name, artefact = choose_artefact(bundle, runtime, precision)
        check_label_sets(bundle)
        chosen = label_set(bundle, bundle.manifest.default_labels if labels is None else labels)
        session = open_session(bundle, name, artefact, *options, cache)
        return Classifier(bundle, name, artefact.precision if artefact else "fp32", options[1], session, chosen)

    return read_settled(DEFAULT_BUNDLE if bundle is None else bundle, opened, digest)


def choose_artefact(bundle: Bundle, runtime: str | None, precision: str | None) -> tuple[str, Artefact | None]:
    """The runtime and artefact that ``load`` takes; no artefact for ``null``, which answers from the golden set."""
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if runtime == "null":
        return runtime, None
    table = {(a.runtime, a.precision): a for a in bundle.manifest.general_artefacts}
    if runtime is not None:
        installed_engine(runtime)
    candidates = [runtime] if runtime is not None else [name for name in preferred_order() if installed(name)]
    if runtime is not None and runtime not in RUNTIMES:  # an engine of devices alone opens what was compiled for one
        compiled = {(a.runtime, a.precision): a for a in bundle.manifest.artefacts if a.target not in (None, FOR_COMPILERS)}
        table = {**compiled, **table}
    for name in candidates:
        for p in [precision] if precision else PRECISIONS:
            if (name, p) in table:
                return name, table[(name, p)]  # type: ignore[index]
    if runtime is None and not candidates:
        raise MissingExtraError(f"an inference engine ({', '.join(RUNTIMES)})", preferred_order()[0])
    wanted = f"{precision} artefact" if precision else "artefact"
    engines = runtime or f"the engines installed here ({', '.join(candidates)})"
    raise BundleError(f"{bundle.folder} has no {wanted} for {engines}; it has {artefact_names(bundle)}")


def artefact_names(bundle: Bundle) -> str:
    """The bundle's artefacts in words, for messages."""
    return ", ".join(artefact_name(a) for a in bundle.manifest.artefacts) or "none at all"


def artefact_name(artefact: Artefact) -> str:
    """Runtime, precision, and the target that it was compiled for, if any."""
    return f"{artefact.runtime} {artefact.precision}" + (f" for {artefact.target}" if artefact.target else "")


def open_session(
    bundle: Bundle,
    runtime: str,
    artefact: Artefact | None,
    device: str | None,
    threads: int,
    execution_precision: str | None,
    cache: bool | str | os.PathLike[str] | None = False,
) -> rt.Session:
    """Check an artefact's files and the golden set, open the artefact in its engine, and check what was opened; ``cache`` as
    in :func:`load`."""
    installed_engine(runtime)
    manifest = bundle.manifest
    store = None
    if cache is not False:
        facts = {
            "bundle": {"name": manifest.name, "version": manifest.version, "digest": digest_of(manifest)},
            "files": {ref.path: ref.sha256 for ref in artefact.files} if artefact else {},
        }
        store = Store(facts, None if cache in (None, True) else Path(os.fspath(cache)), cache is not None)  # type: ignore[arg-type]
        if artefact is not None and sum(ref.bytes for ref in artefact.files) >= LARGE:
            store.look_ahead()
    golden = checked_bytes(bundle, manifest.golden.path, manifest.golden.sha256)
    if artefact is None:
        golden_set(bundle)
        contents = {manifest.golden.path: golden}
    else:
        contents = artefact_contents(bundle, artefact)
    files = [rt.File(bundle.folder / path, content) for path, content in contents.items()]
    labels = next(len(ref.labels) for ref in manifest.label_sets if ref.name == manifest.default_labels)
    sizes = (*manifest.input.size, manifest.input.channels, manifest.feature_dim, labels if artefact else 0)
    precision = artefact.precision if artefact else "fp32"
    signature = rt.signature(*sizes)
    return rt.open_model(runtime, files, precision, device, threads, execution_precision, signature, store)
