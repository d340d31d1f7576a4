"""A source, a classifier and a finder of faces: events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fer_edge.classifier import Classifier

from .events import Event, Summary
from .faces import FaceFinder
from .pipeline import Pipeline, Step
from .sources import Frame, Source, open_source


def watch(
    source: str | Source, clf: Classifier, finder: FaceFinder, *, on_step: Callable[[Step], None] = lambda step: None
) -> Iterator[Event | Summary]:
    """Events of a source as they happen; the last one is the summary. ``source``: what ``open_source`` takes, or a source;
    ``on_step`` gets every frame with its tracks."""
    opened = open_source(source) if isinstance(source, str) else source
    began, frames, last = time.monotonic(), 0, (0.0, 0)
    pipeline = Pipeline(clf, finder)
    try:
        for item in opened:
            if isinstance(item, Frame):
                step = pipeline.step(item)
                frames, last = frames + 1, (item.time, item.number)
                on_step(step)
                yield from step.events
            else:
                yield from pipeline.end(*last)
    finally:
        opened.close()
    yield from pipeline.end(*last)
    yield Summary(frames, opened.dropped, pipeline.tracks, time.monotonic() - began)
