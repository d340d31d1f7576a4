"""The camera scenario: frames come at their times, go the way of ``fer-edge watch``, and end as events."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_edge.classifier import Classifier
from fer_edge.console import need_extra
from fer_edge.errors import ImageError, UsageError
from fer_edge.image import Box

from .traffic import FEWEST, Load, Traffic

if TYPE_CHECKING:
    from fer_edge.live.events import Event, Summary
    from fer_edge.live.faces import FaceFinder
    from fer_edge.live.pipeline import Step
    from fer_edge.live.sources import Frame, Gap

SIZE = (640, 480)
"""Width and height of our own clip, in which the portrait's tile has so many pixels:"""
TILE = 150
CLIP_SECONDS = 5.0
CLIP_FPS = 30
WARM_UP = 5
"""Frames before anything is timed."""
LEAD = 0.5
"""Seconds of frames that are not counted: a face is followed once it has been seen for a while."""


def camera(clf: Classifier, load: Load) -> Traffic:
    """Frames of a clip arrive at ``load.fps``; the newest one is looked at, others are dropped, as ``watch`` does with a
    live source. Samples: from the arrival of a frame to its events, ms. ``details`` has the stages of a frame and the
    summary of ``watch``.

    Without a detector the faces of our own clip are known, and finding them takes no time: ``details`` says so. Raises
    MissingExtraError without the extra ``live``, UsageError for a clip without a detector, ImageError for no clip."""
    need_extra(extra="live")
    from fer_edge.live.watch import watch

    with tempfile.TemporaryDirectory() as folder, _opencv_threads(clf.threads):
        clip = Path(load.clip) if load.clip else write_clip(Path(folder) / "clip.mp4", load.faces)
        paced, taken = PacedClip(clip, load, LEAD), _Taken(LEAD)
        with _finder(paced, load) as finder:
            for _ in watch(
                PacedClip(clip, replace(load, seconds=0.0, longest=60.0, fps=1000.0)), clf, finder, frames=WARM_UP
            ):
                pass
            *events, summary = watch(paced, clf, finder, outputs=[taken])
            detector = finder.name
    seconds, worked = taken.spent
    details = {
        "generator": "camera",
        "fps": load.fps,
        "faces": None if load.clip else load.faces,
        "clip": load.clip or f"our own, {SIZE[0]} x {SIZE[1]}",
        "detector": detector,
        "frames": taken.dropped + len(taken.ages),
        "dropped": taken.dropped,
        "events": len(events),
        "stages_ms": taken.stages(),
        "summary": summary.to_dict(),
    }
    return Traffic(tuple(taken.ages), taken.classified, taken.classified / seconds, worked / seconds, seconds, details)


class PacedClip:
    """A video, over and over, as a camera delivers it: a frame every ``load.fps``-th of a second. One that is late when the
    next one is there is dropped: it is not even decoded. Ends ``load.seconds`` after the first ``lead`` seconds, if FEWEST
    frames were looked at by then, or ``load.longest`` after them."""

    live = True
    seconds: float | None = None

    def __init__(self, clip: Path, load: Load, lead: float = 0.0) -> None:
        self.name, self._clip, self._load, self._lead = str(clip), clip, load, lead
        self.dropped = self.shown = 0
        self._closed = False

    def __iter__(self) -> Iterator[Frame | Gap]:
        from fer_edge.live.sources import Frame

        frames, load = self._frames(), self._load
        number, counted, began = 0, 0, time.monotonic()
        while not self._closed:
            passed = time.monotonic() - began
            timed = passed - self._lead
            if timed >= load.longest or (timed >= load.seconds and counted >= FEWEST):
                return
            newest = int(passed * load.fps)
            if newest < number:
                time.sleep(max(0.0, began + number / load.fps - time.monotonic()))
                newest = number
            self.dropped += newest - number
            self.shown += 1
            counted += newest / load.fps >= self._lead
            frame = next(frames)
            yield Frame(newest, newest / load.fps, frame.pixels, began + newest / load.fps, frame.decode_ms)
            number = newest + 1

    def _frames(self) -> Iterator[Frame]:
        from fer_edge.live.sources import Frame, open_source

        while True:
            source, count = open_source(str(self._clip)), 0
            for item in source:
                if isinstance(item, Frame):
                    count += 1
                    yield item
            source.close()
            if not count:
                raise ImageError(f"{self._clip} has no frame")

    def close(self) -> None:
        """No more frames."""
        self._closed = True


class _Taken:
    """An output of ``watch``: every frame's age and stages, after the first ``lead`` seconds."""

    name = "bench"

    def __init__(self, lead: float) -> None:
        self._lead = lead
        self.ages: list[float] = []
        self.classified = self.dropped = 0
        self._stages: dict[str, list[float]] = {}
        self._before = (0, 0.0, 0.0)  # dropped frames, and the clocks of wall and processor, when counting begins
        self._now = (0.0, 0.0)

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds of wall and of processor."""
        return self._now[0] - self._before[1], self._now[1] - self._before[2]

    def step(self, step: Step) -> None:
        self._now = (time.perf_counter(), time.process_time())
        if step.frame.time < self._lead:
            self._before = (step.dropped, *self._now)
            return
        self.dropped = step.dropped - self._before[0]
        self.ages.append(step.age * 1e3)
        self.classified += step.classified
        for stage, milliseconds in step.stages.items():
            self._stages.setdefault(stage, []).append(milliseconds)

    def stages(self) -> dict[str, dict[str, float]]:
        """{stage: {"p50", "p99"}} in ms."""
        return {
            stage: {f"p{share}": float(np.percentile(values, share)) for share in (50, 99)}
            for stage, values in self._stages.items()
        }

    def event(self, event: Event | Summary) -> None:
        """The caller has them."""

    def lost(self, gap: Gap) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is held."""


class KnownFaces:
    """A detector of our own clip, that knows where the faces are."""

    def __init__(self, paced: PacedClip, faces: int) -> None:
        self._paced, self._faces = paced, faces

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """As :class:`fer_edge.live.detectors.Detector`."""
        scale = pixels.shape[1] / SIZE[0]
        rows: list[list[float]] = []
        for x, y, side, _ in boxes_at((self._paced.shown - 1) % round(CLIP_SECONDS * CLIP_FPS), self._faces):
            marks = ((0.35, 0.4), (0.65, 0.4), (0.5, 0.6), (0.38, 0.75), (0.62, 0.75))
            rows.append([x, y, side, side, *(v for a, b in marks for v in (x + a * side, y + b * side)), 0.9 / scale])
        found: NDArray[np.float64] = np.array(rows, np.float64) * scale
        return found

    def close(self) -> None:
        """Nothing is held."""


def boxes_at(frame: int, faces: int, size: tuple[int, int] = SIZE) -> list[Box]:
    """Where the faces of our own clip are, about: each goes up and down in a cell of its own, once a clip."""
    columns = min(faces, 4)
    rows, scale = math.ceil(faces / columns), size[1] / SIZE[1]
    turn = 2 * math.pi * frame / (CLIP_SECONDS * CLIP_FPS)
    found: list[Box] = []
    for i in range(faces):
        x = (i % columns + 0.5) * size[0] / columns + 4 * scale * math.cos(turn + i)
        y = (i // columns + 0.5) * size[1] / rows + 30 * scale * math.sin(turn + i)
        side = TILE * scale * 0.5
        found.append((x - side / 2, y - side / 2, side, side))
    return found


def write_clip(path: Path, faces: int, size: tuple[int, int] = SIZE, tile: int | None = None) -> Path:
    """Our own clip: the shipped portrait, ``faces`` times, moving over a gray ground; 5 s that end as they begin. ``tile``:
    pixels of the portrait; None: as many as go with the size."""
    import av

    tile = tile or TILE * size[1] // SIZE[1]
    with as_file(files("fer_edge") / "astronaut_face.png") as file, Image.open(file) as picture:
        portrait = picture.convert("RGB").resize((tile, tile), Image.Resampling.BILINEAR)
    ground = np.random.default_rng(0).integers(90, 130, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
    empty = Image.fromarray(ground).resize(size, Image.Resampling.BICUBIC)
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=CLIP_FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(round(CLIP_SECONDS * CLIP_FPS)):
            frame = empty.copy()
            for x, y, side, _ in boxes_at(number, faces, size):
                frame.paste(portrait, (round(x + (side - tile) / 2), round(y + (side - tile) / 2)))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def _finder(paced: PacedClip, load: Load) -> FaceFinder:
    from fer_edge.live.faces import FaceFinder
    from fer_edge.live.pipeline import LONGEST

    try:
        return FaceFinder(load.detector, longest=LONGEST)
    except UsageError:
        if load.detector or load.clip:
            raise
        return FaceFinder(KnownFaces(paced, load.faces), longest=LONGEST)


@contextmanager
def _opencv_threads(count: int) -> Iterator[None]:
    """OpenCV has one pool of threads, which is the process's."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
