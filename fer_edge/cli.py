"""The command line. Commands of other rooms are imported when they are called, so that ``--help`` stays light."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import __version__
from .console import (
    Box,
    Finite,
    Rooms,
    bundle_argument,
    bundle_option,
    common,
    emit,
    engine_options,
    labels_option,
    say,
    status,
)
from .errors import FerEdgeError, ImageError, IntegrityError, MissingExtraError, UsageError

ROOM_COMMANDS = {
    "bench": ("fer_edge.benchmarks.cli_bench:bench", "Speed, memory, energy and right answers on this box."),
    "compare": ("fer_edge.benchmarks.cli_bench:compare", "Was this build faster than that one? Two files of 'bench'."),
    "convert": ("fer_edge.converters.cli:convert", "Quantize a CLIP or a student, with its projection, into a bundle."),
    "evaluate": ("fer_edge.benchmarks.cli:evaluate", "WAR, UAR, confusion and recall on labelled faces."),
    "transfer": ("fer_edge.converters.transfer.cli:transfer", "Learn a projection from unlabelled faces and an LLM."),
    "student": ("fer_edge.converters.student.cli:student", "Train the small encoder behind the embedded default."),
}
"""Command -> where it is, and its line in ``fer-edge --help``."""


@click.group(
    cls=Rooms, rooms=ROOM_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, message="fer-edge %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="On an error, show the whole traceback.")
def cli() -> None:
    """Facial-expression recognition on edge devices: predict, check and measure bundles; convert your own.

    A bundle that is not named is the embedded default. Exit status: 0 good, 1 a check failed,
    2 wrong use or bad input, 130 interrupted.
    """


@cli.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@bundle_option
@click.option(
    "--box",
    type=Box(),
    help="The face in the photo: left, top, width, height in pixels. Default: the whole picture is one face.",
)
@click.option(
    "--margin",
    type=Finite(min=0),
    default=0.0,
    show_default=True,
    help="Widen the box on every side by this share of its size, as 0.1 for 10%.",
)
@labels_option
@engine_options
@common
def predict(images: tuple[str, ...], box: Any, margin: float, bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Label face crops, or the face in --box of a photo."""
    from .classifier import load

    failed = 0
    with load(bundle, **options) as clf:
        ran = {"runtime": clf.runtime, "device": clf.device, "precision": clf.precision}
        for image in images:
            try:
                result = clf.predict(image, box=box, margin=margin)
            except ImageError as error:
                failed += 1
                if click.get_current_context().obj:
                    traceback.print_exc()
                text = str(error) if image in str(error) else f"{image}: {error}"
                emit({"image": image, "error": str(error)}) if as_json else say(f"Error: {text}")
                continue
            if as_json:
                emit({"image": image, "label": result.label, "scores": result.scores, **ran})
            else:
                ranked = sorted(result.scores.items(), key=lambda item: -item[1])
                shown = ", ".join(f"{name} {score:.1%}" for name, score in ranked[:3])
                click.echo(f"{click.format_filename(image)}: {shown}")
        if not as_json and failed < len(images):
            computed = f"{clf.precision} artefact computed in {clf.execution_precision}"
            say(f"({clf.engine}, {computed} on {clf.device}, labels {clf.label_set})")
    if failed:
        sys.exit(2)


@cli.command()
@bundle_argument
@click.option("--card", is_flag=True, help="Print the model card.")
@common
def info(bundle: Path | None, card: bool, as_json: bool) -> None:
    """What a bundle is: source, input, artefacts, label sets."""
    from .bundle import open_bundle
    from .classifier import DEFAULT_BUNDLE
    from .report import describe, summary

    opened = open_bundle(bundle or DEFAULT_BUNDLE)
    if card and not as_json:
        click.echo(opened.manifest.card)
    elif as_json:
        emit(summary(opened))
    else:
        click.echo(describe(opened))


@cli.command()
@common
def doctor(as_json: bool) -> None:
    """What this box has: processor features, engines, devices, and the command that mends what is missing."""
    from .doctor import diagnose
    from .report import diagnosis_text

    found = diagnose(__version__)
    emit(found.as_json()) if as_json else click.echo(diagnosis_text(found))
    if not any(engine.ready for engine in found.engines):
        sys.exit(1)


@cli.command()
@bundle_argument
@partial(engine_options, runtime="every one installed", precision="all of them")
@common
def verify(bundle: Path | None, runtime: str | None, as_json: bool, **options: Any) -> None:
    """Check a bundle on this box: every file's hash, and every artefact's answers on the golden set."""
    from .bundle import open_bundle
    from .classifier import DEFAULT_BUNDLE
    from .report import verdict_text
    from .runtime import load_runtime
    from .verify import Report
    from .verify import verify as run

    folder = bundle or DEFAULT_BUNDLE
    if runtime:
        load_runtime(runtime)
    try:
        with status() as show:
            report = run(open_bundle(folder), [runtime] if runtime else None, on_row=show, **options)
    except IntegrityError as error:
        report = Report((), (str(error),))
    emit({"bundle": str(folder), **report.as_json()}) if as_json else click.echo(verdict_text(report))
    if not report.ok:
        sys.exit(1)


LABEL_COMMANDS = {"add": ("fer_edge.converters.cli:labels_add", "Compile sentences to a new label set of a bundle.")}


@cli.group(cls=Rooms, rooms=LABEL_COMMANDS)
def labels() -> None:
    """Label sets of a bundle: list them, add new ones."""


@labels.command("list")
@bundle_argument
@common
def labels_list(bundle: Path | None, as_json: bool) -> None:
    """The label sets of a bundle, with their labels."""
    from .bundle import label_set, open_bundle
    from .classifier import DEFAULT_BUNDLE
    from .report import table

    opened = open_bundle(bundle or DEFAULT_BUNDLE)
    default = opened.manifest.default_labels
    sets = [label_set(opened, ref.name) for ref in opened.manifest.label_sets]
    if as_json:
        emit(
            [
                {
                    "name": s.name,
                    "default": s.name == default,
                    "labels": list(s.labels),
                    "prompts": dict(zip(s.labels, s.prompts, strict=True)),
                }
                for s in sets
            ]
        )
    else:
        click.echo(table([[s.name + (" (default)" if s.name == default else ""), ", ".join(s.labels)] for s in sets]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs the command, turns every error into one line and an exit status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    warnings.simplefilter("ignore")  # the process is ours: engines and Pillow warn about their own affairs
    try:
        # obj: whether tracebacks are wanted, for commands that go on after an error
        sys.exit(cli.main(args, prog_name="fer-edge", standalone_mode=False, obj="--debug" in args) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fer-edge"
        fail(f"{error.format_message().rstrip('.')} (see: {path} --help)", args)
    except (FerEdgeError, MissingExtraError, UsageError) as error:
        fail(str(error), args)
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # click takes the end of a damaged file for Ctrl-D
            _bug(error.__cause__, args)
        say("Interrupted.")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.strerror and error.filename:
            fail(f"{error.filename}: {error.strerror}", args)
        _bug(error, args)


def _bug(error: BaseException, args: Sequence[str]) -> None:
    """A bug of ours: still one line, and the way to the traceback."""
    text = " ".join(str(error).split())[:300]
    fail(f"unexpected {type(error).__name__}: {text} (run again with --debug, and report it)", args)


def fail(message: str, args: Sequence[str]) -> None:
    """One line on stderr and exit status 2; with --debug the traceback before it."""
    if "--debug" in args:
        traceback.print_exc()
    say(f"Error: {' '.join(message.split())}")
    sys.exit(2)
