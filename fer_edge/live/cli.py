"""The commands of a live source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fer_edge.classifier import load
from fer_edge.console import Command, bundle_option, common, emit, engine_options, labels_option, show

from .events import Event
from .faces import FaceFinder
from .watch import watch as run


@click.command(cls=Command, examples=("fer-edge watch clip.mp4 --json",))
@click.argument("source")
@bundle_option
@click.option("--detector", type=click.Path(path_type=Path), help="The face detector's file.")
@labels_option
@engine_options
@common
def watch(source: str, bundle: Path | None, detector: Path | None, as_json: bool, **options: Any) -> None:
    """Say who appears in SOURCE, with which expression, and when that changes."""
    with load(bundle, **options) as clf, FaceFinder(detector) as finder:
        for event in run(source, clf, finder):
            if as_json:
                emit(event.to_dict())
            elif isinstance(event, Event):
                show(f"{event.time:8.2f} s  {event.event:6}  face {event.track}  {event.label or '-'}")
            else:
                show(f"{event.frames} frames, {event.tracks} faces, {event.seconds:.1f} s")
