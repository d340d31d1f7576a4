"""A source, a classifier and a finder of faces: events."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from fer_edge.arguments import checked
from fer_edge.classifier import Classifier
from fer_edge.errors import FerEdgeError, SourceError, UsageError

from .clock import Spread
from .events import Event, Summary
from .faces import LEAST_EYES, FaceFinder
from .judgement import WINDOW
from .outputs import Fan, Output
from .pipeline import LONGEST, STAGES, Pipeline, Step
from .predictions import Align
from .recordings import Recording
from .sources import Frame, Gap, Source, open_source
from .tracks import SETTLE


@checked("source")
def watch(
    source: str | os.PathLike[str] | int | Source,
    clf: Classifier,
    finder: FaceFinder | None = None,
    *,
    window: float = WINDOW,
    align: Align = "none",
    least_eyes: float = LEAST_EYES,
    frames: int | None = None,
    seconds: float | None = None,
    outputs: Sequence[Output] = (),
) -> Generator[Event | Summary, None, None]:
    """Events of a source as they happen; the last one is the summary.

    ``source``: what ``open_source`` takes, a path, a camera's number, or an opened source; ``finder``: None opens one with
    the detector that is installed, which looks at pictures of 320 pixels. ``window``: seconds of the medium over which the
    features of a face are averaged; ``align="eyes"`` turns each crop until the eyes are level; ``least_eyes``: pixels
    between the eyes below which a face is found and followed, but not judged. ``frames``, ``seconds``: end after so many
    frames that were looked at, or seconds of the medium (of a live source: of the clock).

    Of a file or folder every frame is looked at, and every face classified. Of a live source the newest frame is, and as
    many of its faces as there is time for: see :meth:`Pipeline.step`.

    ``outputs`` get every frame with its tracks, and every event. Source and outputs are closed at the end, also when the
    iteration is closed early (``close()``, or ``break`` and then garbage): then the outputs still get the ends of all tracks
    and the summary. An error in the middle is raised after these. The classifier, and a finder that was given, stay open.

    Raises UsageError for arguments that make no sense, at once; at the first ``next`` what ``open_source`` and
    ``FaceFinder`` raise, and SourceError for a single photo, in which nobody can be followed; later UsageError when the
    classifier is closed meanwhile or a source of yours goes back in time, EngineError when the engine answers with NaN,
    ImageError when the source breaks."""
    for name, value in (("window", window), ("least_eyes", least_eyes), ("seconds", seconds or 0.0)):
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be a number of at least 0; got {value}")
    if frames is not None and frames < 1:
        raise UsageError(f"frames must be a whole number of at least 1; got {frames}")
    if not isinstance(source, (str, os.PathLike, int)) and not (hasattr(source, "__iter__") and hasattr(source, "dropped")):
        raise UsageError(f"source must be a text, a path, a camera's number or a source; got {type(source).__name__}")
    pipeline = partial(Pipeline, clf, window=window, align=align, least_eyes=least_eyes)
    return _watch(source, clf, finder, pipeline, frames, seconds, outputs)


def _watch(
    source: str | os.PathLike[str] | int | Source,
    clf: Classifier,
    finder: FaceFinder | None,
    opened_pipeline: Callable[[FaceFinder], Pipeline],
    frames: int | None,
    seconds: float | None,
    outputs: Sequence[Output],
) -> Generator[Event | Summary, None, None]:
    with ExitStack() as stack:
        fan = Fan(outputs)
        stack.callback(fan.close)
        finder = stack.enter_context(FaceFinder(longest=LONGEST)) if finder is None else finder
        opened = open_source(str(source)) if isinstance(source, (str, os.PathLike, int)) else source
        stack.callback(opened.close)
        if isinstance(opened, Recording) and opened.single:
            raise SourceError(
                f"{opened.name} is one picture, and a face is followed once it has been seen for {SETTLE:g} s: for photos "
                "there is fer-edge predict --faces, or clf.predict_faces"
            )
        if seconds is not None and opened.live:  # one that delivers nothing gives no occasion to look at the clock
            stack.enter_context(_alarm(seconds, opened))
            seconds = None
        pipeline = opened_pipeline(finder)
        tally, trouble = _Tally(opened.live), None
        try:
            for item in _limited(opened, frames, seconds):
                if isinstance(item, Frame):
                    step = pipeline.step(item, dropped=opened.dropped, due=tally.due(item))
                    tally.add(step)
                    fan.step(step)
                    fan.events(step.events)
                    yield from step.events
                else:
                    ends = pipeline.end(*tally.last)
                    tally.gap()
                    fan.events(ends)
                    fan.lost(item)
                    yield from ends
        except FerEdgeError as error:
            if not tally.frames:
                raise
            trouble = error
        finally:
            opened.close()
            rest: list[Event | Summary] = [*pipeline.end(*tally.last), tally.summary(opened, clf, finder, pipeline.count)]
            fan.events(rest)
        yield from rest
        if trouble is not None:
            raise trouble


class _alarm:
    """A block in which a source is closed after so many seconds of the clock."""

    def __init__(self, seconds: float, source: Source) -> None:
        self._timer = threading.Timer(seconds, source.close)

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()


def _limited(source: Source, frames: int | None, seconds: float | None) -> Iterator[Frame | Gap]:
    """What a source gives, up to so many frames, and seconds of the medium."""
    looked = 0
    for item in source:
        if isinstance(item, Frame):
            if seconds is not None and item.time > seconds:
                return
            looked += 1
        yield item
        if looked == frames:
            return


class _Tally:
    """What the summary says."""

    def __init__(self, live: bool) -> None:
        self._live, self._began = live, time.monotonic()
        self._before: tuple[int, float] | None = None
        self._latency, self._age = Spread(), Spread()
        self._stages: dict[str, Spread] = defaultdict(Spread)
        self.frames = self.faces = self.classified = self.gaps = 0
        self.last = (0.0, 0)
        self._lost = False

    def due(self, frame: Frame) -> float | None:
        """When a live source's next frame is there, by the time between this frame and the one before; None: unknown, or
        there is time."""
        before, self._before = self._before, (frame.number, frame.time)
        if not self._live or before is None or frame.number <= before[0]:
            return None
        return frame.arrived + (frame.time - before[1]) / (frame.number - before[0])

    def add(self, step: Step) -> None:
        """One more frame."""
        self.frames, self._lost = self.frames + 1, False
        self.faces += len(step.tracks)
        self.classified += step.classified
        self.last = (step.frame.time, step.frame.number)
        for stage, milliseconds in step.stages.items():
            self._stages[stage].add(milliseconds)
        self._latency.add(sum(step.stages.values()))
        self._age.add(step.age * 1e3)

    def gap(self) -> None:
        """The source was lost, or says again that it is: once until the next frame."""
        self.gaps += not self._lost
        self._before, self._lost = None, True

    def summary(self, source: Source, clf: Classifier, finder: FaceFinder, tracks: int) -> Summary:
        """Until now."""
        seconds = time.monotonic() - self._began
        return Summary(
            frames=self.frames,
            dropped=source.dropped,
            tracks=tracks,
            seconds=seconds,
            fps=self.frames / seconds if seconds else 0.0,
            gaps=self.gaps,
            faces=self.faces,
            classified=self.classified,
            latency_ms=self._latency.as_dict(),
            age_ms=self._age.as_dict(),
            stages_ms={stage: self._stages[stage].as_dict() for stage in STAGES if stage in self._stages},
            source=source.name,
            live=source.live,
            detector=finder.name,
            bundle=clf.bundle.manifest.name,
            labels=clf.label_set,
            runtime=clf.runtime,
            device=clf.device,
            precision=clf.precision,
        )
