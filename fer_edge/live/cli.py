"""The commands of a live source."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from fer_edge.classifier import load
from fer_edge.console import Command, bundle_option, common, emit, engine_options, labels_option, show
from fer_edge.manifest import digest_of

from .events import Event
from .faces import FaceFinder
from .outputs import Setup, open_outputs, output_needs, output_options
from .sources import open_source
from .watch import watch as run


@click.command(cls=Command, examples=("fer-edge watch clip.mp4 --json",), needs=output_needs())
@click.argument("source")
@bundle_option
@click.option("--detector", type=click.Path(path_type=Path), help="The face detector's file.")
@output_options
@labels_option
@engine_options
@common
def watch(source: str, bundle: Path | None, detector: Path | None, as_json: bool, **options: Any) -> None:
    """Say who appears in SOURCE, with which expression, and when that changes."""
    engine = {name: options.pop(name) for name in ("labels", "runtime", "device", "precision", "threads")}
    engine["execution_precision"] = options.pop("execution_precision")
    with load(bundle, **engine) as clf, FaceFinder(detector) as finder:
        opened = open_source(source)
        manifest, looks = clf.bundle.manifest, detector.name if detector else "yunet"
        ran = (manifest.name, digest_of(manifest), clf.runtime, clf.device, clf.precision)
        outputs = open_outputs(options, Setup(opened.name, opened.live, clf.labels, clf.label_set, *ran, looks))
        with closing(run(opened, clf, finder, outputs=outputs)) as events:
            for event in events:
                if as_json:
                    emit(event.to_dict())
                elif isinstance(event, Event):
                    show(f"{event.time:8.2f} s  {event.event:6}  face {event.track}  {event.label or '-'}")
                else:
                    show(f"{event.frames} frames, {event.tracks} faces, {event.seconds:.1f} s")
