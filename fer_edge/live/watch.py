"""A source, a classifier and a finder of faces: events."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from fer_edge.classifier import Classifier

from .events import Event, Summary
from .faces import FaceFinder
from .outputs import Fan, Output
from .pipeline import Pipeline
from .sources import Frame, Source, open_source


def watch(
    source: str | Source, clf: Classifier, finder: FaceFinder, *, outputs: Sequence[Output] = ()
) -> Generator[Event | Summary, None, None]:
    """Events of a source as they happen; the last one is the summary. ``source``: what ``open_source`` takes, or a source.
    ``outputs`` get every frame with its tracks, and every event; both are closed at the end, also when the iteration is
    closed early: then the outputs still get the ends of all tracks and the summary."""
    opened = open_source(source) if isinstance(source, str) else source
    began, frames, last = time.monotonic(), 0, (0.0, 0)
    pipeline, fan = Pipeline(clf, finder), Fan(outputs)
    rest: list[Event | Summary] = []
    try:
        try:
            for item in opened:
                if isinstance(item, Frame):
                    step = pipeline.step(item, opened.dropped)
                    frames, last = frames + 1, (item.time, item.number)
                    fan.step(step)
                    events = step.events
                else:
                    events = tuple(pipeline.end(*last))
                for event in events:
                    fan.event(event)
                if not isinstance(item, Frame):
                    fan.lost(item)
                yield from events
        finally:
            opened.close()
            rest = [
                *pipeline.end(*last),
                Summary(frames, opened.dropped, pipeline.tracks, time.monotonic() - began),
            ]
            for last_event in rest:
                fan.event(last_event)
        yield from rest
    finally:
        fan.close()
