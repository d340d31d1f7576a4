"""``fer-edge evaluate`` and ``calibrate``. Nothing heavy is imported before the command runs."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import (
    Command,
    Finite,
    bundle_option,
    common,
    emit,
    engine_options,
    fraction,
    labels_option,
    need_extra,
    required_bundle,
    say,
    show,
)
from fer_edge.errors import UsageError
from fer_edge.files import check_target

if TYPE_CHECKING:
    from fer_edge.labelled import LabelledFaces

    from .evaluate import Evaluation


@click.command(
    cls=Command,
    examples=(
        "fer-edge evaluate faces/",
        "fer-edge evaluate test.npz --truth labels --classes names -b my-bundle/ --json",
        "fer-edge evaluate faces/ --robustness --html report.html",
        "fer-edge evaluate photos/ --faces",
    ),
    needs={"detector": "faces"},
)
@click.argument("data", type=click.Path(path_type=Path))
@bundle_option
@click.option(
    "--truth", metavar="MEMBER", help="npz: the member with one integer per image: a position in --classes, -1: left out."
)
@click.option("--classes", metavar="MEMBER", help="npz: the member with the class names, in the order of the integers.")
@click.option("--skip-unknown", is_flag=True, help="Leave out classes that are no label of the set, instead of stopping.")
@click.option("--recursive", is_flag=True, help="Also take the images in folders within a class folder.")
@click.option(
    "--leave-out",
    type=click.Path(path_type=Path),
    help="A file with a line for each picture that shall not count, as 'twins -o' writes it.",
)
@click.option(
    "--robustness",
    is_flag=True,
    help="Also spoil every face as cameras do: turned, dark, blurred, noisy, small, compressed, half hidden; more and less.",
)
@click.option(
    "--faces",
    is_flag=True,
    help="DATA holds photos: the largest face of each is found and judged (extra live). One without a face counts as wrong.",
)
@click.option(
    "--detector",
    metavar="FILE",
    help="Weights of YuNet, or the name of another package's detector. Default: what 'fer-edge faces fetch' has fetched.",
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the figures as a page with plots.")
@labels_option
@engine_options
@common
def evaluate(
    data: Path,
    bundle: Path | None,
    truth: str | None,
    classes: str | None,
    skip_unknown: bool,
    recursive: bool,
    leave_out: Path | None,
    robustness: bool,
    faces: bool,
    detector: str | None,
    html_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """WAR, UAR, confusion and recall on labelled faces.

    DATA: a folder with a folder of images per class, or an npz with a member 'images' (uint8) and --truth and --classes.
    An image that cannot be read is named and counts nowhere, and the exit status is 2. Hidden files and other files
    beside the images are named and left out.

    --robustness counts the same faces spoilt in seven ways. Eight of their strengths, marked in the table, are what
    figures of different models are compared by. It takes more than twenty times as long.
    """
    if robustness and faces:
        raise click.UsageError("--robustness spoils face crops, and --faces takes photos", click.get_current_context())
    need_extra("rich", extra="bench")
    if html_file is not None:
        need_extra("matplotlib", extra="bench")
    from fer_edge import FaceFinder, load
    from fer_edge.labelled import read_faces

    from .evaluate import evaluate as run
    from .report.files import try_write
    from .report.screen import evaluation_text

    if html_file is not None:
        check_target(html_file)
    labelled = read_faces(data, truth, classes, recursive, leave_out)
    with load(bundle, **options) as clf, ExitStack() as stack:
        finder = stack.enter_context(FaceFinder(detector)) if faces else None
        progress = stack.enter_context(fraction(sys.stderr, "evaluating"))
        result = run(clf, labelled, skip_unknown, progress, robustness, finder)
    for entry in result.unreadable:
        say(f"Left out, unreadable: {entry['error']}")
    for photo in result.missed or ():
        say(f"Counted as wrong: {photo.image} has {photo.why}")
    problem = None if html_file is None else try_write(html_file, _page(result))  # first, as 'bench' does
    emit(result.as_json()) if as_json else show(evaluation_text(result))
    if problem is not None:
        raise UsageError(problem)
    if result.unreadable:
        sys.exit(2)


@click.command(
    cls=Command,
    examples=(
        "fer-edge calibrate my-bundle/ faces/ --error 0.05",
        "fer-edge calibrate my-bundle/ a.npz --truth labels --classes names \\",
        "  --coverage 0.8 --evaluation test/",
    ),
)
@required_bundle
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--truth", metavar="MEMBER", help="npz: the member with one integer per image: a position in --classes, -1: left out."
)
@click.option("--classes", metavar="MEMBER", help="npz: the member with the class names, in the order of the integers.")
@click.option("--skip-unknown", is_flag=True, help="Leave out classes that are no label of a set, instead of stopping.")
@click.option("--recursive", is_flag=True, help="Also take the images in folders within a class folder.")
@click.option("--labels", "names", multiple=True, help="A label set to calibrate; repeatable. Default: the bundle's own.")
@click.option(
    "--error",
    type=Finite(0, 1, max_open=True),
    help="Threshold: at most this share of the certain answers is wrong, as 0.05.",
)
@click.option(
    "--coverage", type=Finite(0, 1, min_open=True), help="Threshold: at least this share of the faces gets a certain answer."
)
@click.option("--threshold", type=Finite(0, 1), help="Threshold: this score; 0 for none.")
@click.option("--temperature", type=Finite(0.001, 1000), help="This temperature, instead of the one that fits.")
@click.option(
    "--face-loss",
    type=Finite(0, 1, max_open=True),
    help="Also call uncertain what the encoder hardly answers to: most pictures without a face, and at most this share of "
    "DATA's faces, as 0.02.",
)
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path),
    help="Other labelled faces, as DATA is, to measure before and after on. A picture that is in both is refused.",
)
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    help="Pictures without a face (a folder, or an npz): how many get no certain answer?",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, only say what would be written.")
@engine_options
@common
def calibrate(
    bundle: Path,
    data: Path,
    truth: str | None,
    classes: str | None,
    skip_unknown: bool,
    recursive: bool,
    names: tuple[str, ...],
    evaluation: Path | None,
    background: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the scores of BUNDLE mean what they say, by labelled faces that no training saw.

    DATA: as for evaluate. The temperature is the one under which the right labels are most likely. The threshold is the
    score from which an answer counts as certain. They are written into the label sets, and the bundle has a new digest.
    """
    need_extra("rich", extra="bench")
    from fer_edge.bundle import change_label_sets, label_set
    from fer_edge.classifier import load
    from fer_edge.folders import ignored_lines
    from fer_edge.labelled import read_pictures
    from fer_edge.manifest import digest_of

    from .calibrate import Rule, check_apart, look, with_calibration
    from .calibrate import calibrate as run
    from .report.screen import calibration_text

    rule = Rule(**{name: options.pop(name) for name in ("error", "coverage", "threshold", "temperature", "face_loss")})
    if sum(value is not None for value in (rule.error, rule.coverage, rule.threshold)) > 1:
        raise UsageError("--error, --coverage and --threshold each give a threshold; name one of them")
    sources = _read(data, evaluation, truth, classes, recursive)
    if background is not None:
        sources["background"] = read_pictures(background)
    for name, faces in sources.items():
        for line in ignored_lines(faces.ignored):
            say(f"{name}: {line}")
    with load(bundle, **options) as clf, fraction(sys.stderr, "looking at faces") as progress:
        sets = [label_set(clf.bundle, name) for name in names or (clf.bundle.manifest.default_labels,)]
        seen = {name: look(clf, faces, partial(progress, text=name)) for name, faces in sources.items()}
    others = {name: seen.get(name) for name in ("evaluation", "background")}
    if evaluation is not None:
        check_apart(seen["faces"], seen["evaluation"], (str(data), str(evaluation)))
    found = [run(labels, seen["faces"], rule, skip_unknown, **others) for labels in sets]
    changed = [with_calibration(labels, entry) for labels, entry in zip(sets, found, strict=True)]
    after = clf.bundle if dry_run else change_label_sets(clf.bundle, changed)
    ran = {"runtime": clf.runtime, "device": clf.device, "precision": clf.precision}
    if as_json:
        digest = digest_of(after.manifest)
        about = {"bundle": str(bundle), "written": not dry_run, "digest": digest, **ran}
        emit({**about, "label_sets": [entry.as_json() for entry in found]})
    else:
        show(calibration_text(found, " ".join(ran.values())))
        say("Nothing was written." if dry_run else f"Written: {bundle}, digest {digest_of(after.manifest)}")


def _read(
    data: Path, evaluation: Path | None, truth: str | None, classes: str | None, recursive: bool
) -> dict[str, LabelledFaces]:
    """Labelled faces by what they are for. One of the two may be a folder, and the members are for the other."""
    from fer_edge.labelled import read_faces

    named = {"faces": data, **({} if evaluation is None else {"evaluation": evaluation})}
    folders = [name for name, path in named.items() if path.is_dir()]
    plain = folders if len(folders) < len(named) else []
    return {
        name: read_faces(path, *((None, None) if name in plain else (truth, classes)), recursive)
        for name, path in named.items()
    }


def _page(result: Evaluation) -> str:
    from .report.evaluation import evaluation_page  # and with it the plotting library

    return evaluation_page(result)
