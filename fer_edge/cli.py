"""The command line. Commands of other rooms are imported when they are called, so that ``--help`` stays light."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .console import (
    Box,
    Finite,
    Rooms,
    bundle_argument,
    bundle_option,
    cache_option,
    common,
    emit,
    engine_options,
    labels_option,
    printable,
    required_bundle,
    say,
    shortened,
    show,
    status,
)
from .decode import BYTES_PER_PIXEL, MAX_PIXELS
from .errors import FerEdgeError, ImageError, IntegrityError
from .process import BROKEN_PIPE, OutputError, standard_streams, stoppable

if TYPE_CHECKING:
    from .bundle import Bundle
    from .classifier import Prediction
    from .labels import LabelSet

ROOM_COMMANDS = {
    "bench": ("fer_edge.benchmarks.cli_bench:bench", "Speed, memory, energy and right answers on this box."),
    "cache": ("fer_edge.cli_cache:cache", "What engines have built and left for the next start: list it, clear it."),
    "calibrate": ("fer_edge.benchmarks.cli:calibrate", "Temperature and threshold of a bundle, from labelled faces."),
    "compare": ("fer_edge.benchmarks.cli_bench:compare", "Was this build faster than that one? Two files of 'bench'."),
    "compile": ("fer_edge.converters.cli_compile:compile_", "From a bundle to an NPU: RKNN and Ethos-U."),
    "convert": ("fer_edge.converters.cli:convert", "Quantize a CLIP or a student, with its projection, into a bundle."),
    "evaluate": ("fer_edge.benchmarks.cli:evaluate", "WAR, UAR, confusion and recall on labelled faces."),
    "faces": ("fer_edge.live.cli_faces:faces", "Fetch the face detector of 'predict --faces' and 'watch'."),
    "twins": ("fer_edge.cli_twins:twins", "Which pictures two sets share, cut, relit or compressed differently."),
    "pack": (
        "fer_edge.converters.kit.cli:pack_command",
        "A kit that installs on a box without a network, or a slim bundle.",
    ),
    "transfer": ("fer_edge.converters.transfer.cli:transfer", "Learn a projection from unlabelled faces and an LLM."),
    "student": ("fer_edge.converters.student.cli:student", "Train the small encoder behind the embedded default."),
    "watch": ("fer_edge.live.cli:watch", "From a camera, a stream or a file to events: faces found, followed and judged."),
}
"""Command -> where it is, and its line in ``fer-edge --help``."""


@click.group(
    cls=Rooms,
    rooms=ROOM_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=("fer-edge doctor", "fer-edge predict face.jpg"),
)
@click.version_option(__version__, "-V", "--version", message="fer-edge %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="On an error, show the whole traceback.")
def cli() -> None:
    """Facial-expression recognition on edge devices: predict, check and measure bundles; convert your own.

    A bundle that is not named is the embedded default.

    \b
    Exit status:
      0    good
      1    a check failed: verify, compare, bench, doctor, a conversion's gate
      2    wrong use or bad input, said in one line
      3    inconclusive: the noise is larger than what compare asks about
      130  interrupted (Ctrl-C); 143 ended by SIGTERM; 141 nobody reads the output
    """


@cli.command(
    examples=(
        "fer-edge predict face.jpg other.png --json",
        "fer-edge predict photo.jpg --faces --draw labelled.png",
        "fer-edge predict photo.jpg --box 168,56,112,112 --labels rafdb7",
    ),
    needs={
        "margin": "box",
        "shape": "box",
        "detector": "faces",
        "longest": "faces",
        "align": "faces",
        "least_eyes": "faces",
    },
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@bundle_option
@click.option(
    "--box",
    type=Box(),
    multiple=True,
    help="A face in the photo: left, top, width, height in pixels; once for each face. Default: the whole picture is one.",
)
@click.option(
    "--margin",
    type=Finite(min=0),
    default=0.0,
    show_default=True,
    help="Widen the box on every side by this share of its size, as 0.1 for 10%.",
)
@click.option(
    "--shape",
    type=click.Choice(["square", "box"]),
    default="square",
    show_default=True,
    help="Cut a square round the box's centre, or the box as it is, which the model then sees stretched.",
)
@click.option("--faces", is_flag=True, help="Find the faces in the photo, the largest first, and label each (extra live).")
@click.option(
    "--detector",
    metavar="FILE",
    help="Weights of YuNet, or the name of another package's detector. Default: what 'fer-edge faces fetch' has fetched.",
)
@click.option(
    "--longest",
    type=click.IntRange(min=1),
    help="Look for faces in the photo made smaller, to this longer side in pixels. Default: 640. More finds smaller faces.",
)
@click.option("--align", type=click.Choice(["none", "eyes"]), help="Turn each face until its eyes are level. Default: none.")
@click.option(
    "--least-eyes",
    type=Finite(min=0),
    help="Pixels between the eyes of a face; a smaller one is found and not judged. Default: 12.",
)
@click.option(
    "--draw",
    metavar="FILE|FOLDER/",
    help="Write the photo with boxes and labels: PNG, JPEG or WebP. For several images, a folder.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Larger pictures are decoded smaller, or refused; 9 bytes of memory each.",
)
@labels_option
@engine_options
@cache_option
@common
def predict(
    images: tuple[str, ...],
    box: tuple[Any, ...],
    faces: bool,
    draw: str | None,
    max_pixels: int,
    bundle: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Label face crops, the faces in --box of a photo, or those that --faces finds. An IMAGE of - is read from standard
    input."""
    if faces and box:
        raise click.UsageError("--box names the faces and --faces finds them; choose one", click.get_current_context())
    if draw is not None and not (faces or box):
        raise click.UsageError("--draw goes with --faces or --box", click.get_current_context())
    from .classifier import load

    cut = {name: options.pop(name) for name in ("margin", "shape")}
    find = {name: options.pop(name) for name in ("detector", "longest", "align", "least_eyes")}
    live: Any = import_module("fer_edge.live.cli_predict") if faces or draw is not None else None
    files: dict[str, Path] = {} if draw is None else live.drawing_files(images, draw)
    failed = 0
    with load(bundle, **options) as clf, ExitStack() as stack:
        if faces:
            look = stack.enter_context(closing(live.Faces(clf, **find, max_pixels=max_pixels)))
        ran = {"runtime": clf.runtime, "device": clf.device, "precision": clf.precision}
        for image in images:
            try:
                source = _source(image, max_pixels, again=draw is not None)
                if faces:
                    found = look(source)
                    results = [(face.box, face.prediction) for face in found]
                elif box:
                    results = list(zip(box, clf.predict_boxes(source, box, max_pixels=max_pixels, **cut), strict=True))
                else:
                    results = [((), clf.predict(source, max_pixels=max_pixels))]
                if draw is not None:
                    live.draw(source, results, files[image], max_pixels)
            except ImageError as error:
                failed += 1
                if click.get_current_context().obj:
                    say(traceback.format_exc().rstrip())
                text = str(error) if image in str(error) else f"{image}: {error}"
                emit({"image": image, "error": str(error)}) if as_json else say(f"Error: {printable(text)}")
                continue
            if as_json and faces:
                emit({"image": image, "faces": [face.to_dict() for face in found], **ran})
            elif as_json:
                for where, result in results:
                    which = {"box": list(where)} if len(box) > 1 else {}
                    emit({"image": image, **which, "label": result.label, "scores": result.scores, **ran})
            else:
                for where, result in results:
                    place = (
                        f" [{','.join(f'{v:.0f}' if faces else f'{v:g}' for v in where)}]" if faces or len(box) > 1 else ""
                    )
                    show(f"{printable(image)}{place}: {_scores(result)}")
                if not results:
                    show(f"{printable(image)}: no face")
        if not as_json and failed < len(images):
            computed = f"{clf.precision} artefact computed in {clf.execution_precision}"
            cached = f", {clf.cache}" if clf.cache else ""
            say(f"({clf.engine}, {computed} on {clf.device}, labels {clf.label_set}{cached})")
    if failed:
        sys.exit(2)


def _source(image: str, max_pixels: int, again: bool) -> Any:
    """An image as ``predict`` takes it; ``again``: more than once."""
    if image != "-":
        return image
    return sys.stdin.buffer.read(max_pixels * BYTES_PER_PIXEL + 1) if again else sys.stdin.buffer


def _scores(result: Prediction | None) -> str:
    if result is None:
        return "too small to be judged"
    shown = ", ".join(f"{name} {score:.1%}" for name, score in result.top(3))
    return shown if result.certain else f"{shown} (uncertain)"


@cli.command(examples=("fer-edge info my-bundle/ --card", "fer-edge info --here"))
@bundle_argument
@click.option("--card", is_flag=True, help="Print the model card.")
@click.option("--here", is_flag=True, help="Also open every artefact, and tell which unit of this box computes how much.")
@common
def info(bundle: Path | None, card: bool, here: bool, as_json: bool) -> None:
    """What a bundle is: source, input, artefacts, label sets."""
    if card and here:
        raise click.UsageError("--card prints the card alone; --here goes without it", click.get_current_context())
    from .bundle import open_bundle
    from .classifier import DEFAULT_BUNDLE
    from .report import describe, summary

    opened = open_bundle(bundle or DEFAULT_BUNDLE)
    if card and not as_json:
        show(opened.manifest.card)
    elif as_json:
        emit({**summary(opened), **({"here": _here(opened)} if here else {})})
    else:
        show(describe(opened))
        if here:
            show("\n" + "\n".join(entry["text"] for entry in _here(opened)))


def _here(opened: Bundle) -> list[dict[str, Any]]:
    """Where each artefact runs on this box, by the benchmarks' room."""
    placing: Any = import_module("fer_edge.benchmarks.here")
    with status() as progress:
        found: list[dict[str, Any]] = placing.here(opened, progress)
    return found


@cli.command(examples=("fer-edge doctor --json",))
@common
def doctor(as_json: bool) -> None:
    """What this box has: processor features, engines, devices, and the command that mends what is missing."""
    from .doctor import diagnose
    from .report import diagnosis_text

    found = diagnose(__version__)
    emit(found.as_json()) if as_json else show(diagnosis_text(found))
    if not any(engine.ready for engine in found.engines):
        sys.exit(1)


@cli.command(examples=("fer-edge verify", "fer-edge verify my-bundle/ --runtime openvino --json"))
@bundle_argument
@partial(engine_options, runtime="every one installed", precision="all of them")
@common
def verify(bundle: Path | None, runtime: str | None, as_json: bool, **options: Any) -> None:
    """Check a bundle on this box: every file's hash, and every artefact's answers on the golden set."""
    from .bundle import open_bundle
    from .classifier import DEFAULT_BUNDLE
    from .engines import installed_engine
    from .manifest import digest_of
    from .report import verdict_text
    from .verify import Report
    from .verify import verify as run

    folder = bundle or DEFAULT_BUNDLE
    if runtime:
        installed_engine(runtime)
    digest = None
    try:
        opened = open_bundle(folder)
        digest = digest_of(opened.manifest)
        with status() as progress:
            report = run(opened, [runtime] if runtime else None, on_row=progress, **options)
    except IntegrityError as error:
        report = Report((), (str(error),))
    emit({"bundle": str(folder), "digest": digest, **report.as_json()}) if as_json else show(verdict_text(report))
    if not report.ok:
        sys.exit(1)


LABEL_COMMANDS = {"add": ("fer_edge.converters.cli:labels_add", "Compile sentences to a new label set of a bundle.")}


@cli.group(cls=Rooms, rooms=LABEL_COMMANDS, examples=("fer-edge labels list my-bundle/",))
def labels() -> None:
    """Label sets of a bundle: list them, add new ones, remove some."""


@labels.command("list", examples=("fer-edge labels list my-bundle/ --json",))
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
                    "temperature": s.temperature,
                    "threshold": s.threshold,
                    "least_length": s.least_length,
                    "prompts": dict(zip(s.labels, s.prompts, strict=True)),
                }
                for s in sets
            ]
        )
    else:
        rows = [[s.name + (" (default)" if s.name == default else ""), _certain_from(s), ", ".join(s.labels)] for s in sets]
        show(table(rows if any(row[1] for row in rows) else [[name, names] for name, _, names in rows]))


def _certain_from(labels: LabelSet) -> str:
    return f"certain from {labels.threshold:.3g}" if labels.threshold else ""


@labels.command("remove", examples=("fer-edge labels remove my-bundle/ moods",))
@required_bundle
@click.argument("name")
@common
def labels_remove(bundle: Path, name: str, as_json: bool) -> None:
    """Remove the label set NAME from BUNDLE. Its default one stays: it is baked into the models."""
    from .bundle import open_bundle, remove_label_set

    left = remove_label_set(open_bundle(bundle), name)
    if as_json:
        emit({"bundle": str(bundle), "name": name, "label_sets": [ref.name for ref in left.manifest.label_sets]})
    else:
        say(f"Removed the label set {name}. Left: {', '.join(ref.name for ref in left.manifest.label_sets)}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: runs the command, turns every error into one line and an exit status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    warnings.simplefilter("ignore")  # the process is ours: engines and Pillow warn about their own affairs
    with stoppable() as signals, standard_streams():
        try:
            # obj: whether tracebacks are wanted, for commands that go on after an error
            with cli.make_context("fer-edge", args, obj=debug) as context:
                cli.invoke(context)
        except Exception as error:
            if signals:  # an import that is interrupted comes out as an engine's failure, say
                raise
            sys.exit(_status(error, debug))
        sys.exit(0)


def _status(error: Exception, debug: bool) -> int:
    """The exit status of a command that an exception ended, after the one line that says why."""
    if isinstance(error, click.exceptions.Exit):  # of --help and --version
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        say(error.format_message())
        return 2
    if isinstance(error, OutputError) and error.broken_pipe:
        return BROKEN_PIPE
    fail(_reason(error), debug)
    return 2


def _reason(error: Exception) -> str:
    """What to tell a user."""
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fer-edge"
        return f"{error.format_message().rstrip('.')} (see: {path} --help)"
    if isinstance(error, (FerEdgeError, OutputError)):
        return str(error)
    if isinstance(error, MemoryError):
        return f"this box has not enough memory for that{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError) and error.strerror:  # a full disk, no folder for temporary files: nobody's bug
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {shortened(str(error), 300)} (run again with --debug, and report it)"


def fail(message: str, debug: bool) -> None:
    """One line on stderr, with --debug the traceback before it."""
    if debug:
        say(traceback.format_exc().rstrip())
    say(f"Error: {shortened(message)}")
