"""The commands of a live source."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from fer_edge.classifier import load
from fer_edge.console import (
    Command,
    Finite,
    bundle_option,
    cache_option,
    common,
    emit,
    engine_options,
    labels_option,
    say,
    show,
    status,
    wipe,
)
from fer_edge.manifest import digest_of
from fer_edge.process import orderly

from .events import Event, Summary
from .faces import LEAST_EYES, FaceFinder
from .judgement import WINDOW
from .outputs import Output, Setup, open_outputs, output_needs, output_options
from .pipeline import LONGEST, Step
from .sources import SOURCE_OPTIONS, Gap, open_source, source_options
from .watch import watch as run

REPORT_PERIOD = 600.0
"""Seconds between two lines about a live source in a log."""


@click.command(
    cls=Command,
    examples=("fer-edge watch clip.mp4", "fer-edge watch 0 --json", "fer-edge watch rtsp://camera/stream --seconds 60"),
    needs=output_needs(),
)
@click.argument("source")
@bundle_option
@click.option("--detector", type=click.Path(path_type=Path), help="The face detector's file. Default: the installed one.")
@click.option(
    "--window",
    type=Finite(min=0),
    default=WINDOW,
    show_default=True,
    help="Seconds of the medium over which the looks at a face are averaged.",
)
@click.option(
    "--align",
    type=click.Choice(["none", "eyes"]),
    default="none",
    show_default=True,
    help="Turn each face until its eyes are level.",
)
@click.option(
    "--least-eyes",
    type=Finite(min=0),
    default=LEAST_EYES,
    show_default=True,
    help="Pixels between the eyes of a face; a smaller one is followed, not judged.",
)
@click.option(
    "--longest",
    type=click.IntRange(min=1),
    default=LONGEST,
    show_default=True,
    help="Pixels of the longer side of what the detector looks at; more find smaller faces, and take longer.",
)
@click.option("--frames", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--seconds", type=Finite(min=0), help="End after so many seconds: of a file's time, of a camera's clock.")
@source_options
@output_options
@labels_option
@engine_options
@cache_option
@common
def watch(source: str, bundle: Path | None, detector: Path | None, longest: int, as_json: bool, **options: Any) -> None:
    """Say who appears in SOURCE, with which expression, when that changes, and when the face has gone.

    SOURCE is a video, an animation, a folder of pictures, or - for standard input. Ctrl-C or SIGTERM ends it with the last
    events and the summary."""
    engine_names = ("labels", "runtime", "device", "precision", "threads", "execution_precision", "cache")
    engine = {name: options.pop(name) for name in engine_names}
    limits = {name: options.pop(name) for name in ("window", "align", "least_eyes", "frames", "seconds")}
    with ExitStack() as stack:
        opened = open_source(source, **{name: options.pop(name) for name in SOURCE_OPTIONS})
        stack.callback(opened.close)
        clf = stack.enter_context(load(bundle, **engine))
        finder = stack.enter_context(FaceFinder(detector, longest=longest))
        if engine["threads"]:
            import cv2

            cv2.setNumThreads(engine["threads"])  # the process is ours
        manifest = clf.bundle.manifest
        ran = (manifest.name, digest_of(manifest), clf.runtime, clf.device, clf.precision, finder.name)
        outputs: list[Output] = open_outputs(options, Setup(opened.name, opened.live, clf.labels, clf.label_set, *ran))
        progress = _Progress(stack.enter_context(status(REPORT_PERIOD if opened.live else None)), opened)
        stack.enter_context(orderly(opened.close))
        events = stack.enter_context(closing(run(opened, clf, finder, outputs=[*outputs, progress], **limits)))
        told = _Text()
        for event in events:
            progress.clear()
            emit(event.to_dict()) if as_json else show(told.line(event))


class _Text:
    """Events as lines for people."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[str | None, float, float]] = {}

    def line(self, event: Event | Summary) -> str:
        """One line; of the summary, three."""
        if isinstance(event, Summary):
            return _summary(event)
        label, since, appeared = self._before.get(event.track, (None, 0.0, event.time))
        self._before[event.track] = (event.label, event.since, appeared)
        if event.event == "appear":
            what = f"appears, {_label(event)}"
        elif event.event == "change":
            what = f"{_label(event)}, after {event.time - since:.1f} s of {label or 'no label'}"
        else:
            what = f"gone after {event.time - appeared:.1f} s, last {event.label or 'no label'}"
            del self._before[event.track]
        return f"{event.time:9.2f} s  face {event.track:<3} {what}"


def _label(event: Event) -> str:
    """As "happiness 93%", or "happiness? 41%" where the classifier is not certain."""
    if event.label is None:
        return "too small to be judged"
    return f"{event.label}{'' if event.certain else '?'} {event.scores[event.label]:.0%}"


def _summary(summary: Summary) -> str:
    faces = f"{summary.tracks} face{'' if summary.tracks == 1 else 's'}"
    frames = f"{summary.frames} frames in {summary.seconds:.1f} s ({summary.fps:.1f}/s), {summary.dropped} dropped"
    lines = [f"{faces}; {frames}{f', lost {summary.gaps} times' if summary.gaps else ''}"]
    if summary.frames:
        stages = ", ".join(f"{stage} {spread['p50']:.2f}" for stage, spread in summary.stages_ms.items())
        lines.append(f"a frame took {summary.latency_ms['p50']:.1f} ms (p99 {summary.latency_ms['p99']:.1f}): {stages}")
    engine = f"{summary.bundle}, {summary.runtime} {summary.precision} on {summary.device}, labels {summary.labels}"
    return "\n".join([*lines, f"({engine}; faces by {summary.detector})"])


class _Progress:
    """An output: how far it is, on stderr."""

    name = "progress"

    def __init__(self, tell: Callable[[str], None], source: Any) -> None:
        self._tell, self._source = tell, source
        self._told = self._began = time.monotonic()
        self._frames = 0

    def step(self, step: Step) -> None:
        """Four times a second at most."""
        self._frames += 1
        now = time.monotonic()
        if now - self._told < 0.25:
            return
        self._told = now
        rate = f"{self._frames / (now - self._began):.1f} frames/s"
        faces = f"{len(step.tracks)} face{'' if len(step.tracks) == 1 else 's'}"
        length = self._source.seconds
        share = f"{min(step.frame.time / length, 1):.0%}, " if length else ""
        dropped = f", {step.dropped} dropped" if step.dropped else ""
        self._tell(f"{share}{step.frame.time:.1f} s, {rate}, {faces}{dropped}: {self._source.name}")

    def clear(self) -> None:
        """Make room for a line on the same terminal."""
        wipe()
        self._told = 0.0

    def event(self, event: Event | Summary) -> None:
        """Nothing: the caller has it."""

    def lost(self, gap: Gap) -> None:
        """Say why."""
        self.clear()
        say(f"{self._source.name}: {gap.reason}")

    def close(self) -> None:
        """Nothing is held."""
